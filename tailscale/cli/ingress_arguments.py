"""What may be typed after `ingress`. Owns that part of the parser; knows no device."""

from __future__ import annotations

import argparse
from typing import Any

from tailscale.cli.ports import port

DEFAULT_LISTEN = ":443"


def add_ingress(adder: Any) -> None:
    ingress = adder.add("ingress", "be a Funnel relay: carry TLS from the internet by name to nodes of the tailnet")
    ingress.add_argument(
        "listen", nargs="?", metavar="LISTEN", default=DEFAULT_LISTEN, help=f"where ({DEFAULT_LISTEN}: every address)"
    )
    ingress.add_argument("--to", metavar="NODE", default="", help="the node of all names")
    ingress.add_argument(
        "--name", metavar="NAME=NODE", type=_pair, action="append", default=[], help="the node of one, or of *.NAME"
    )
    ingress.add_argument("--port", type=port, default=0, help="the port that targets are told (that of LISTEN)")
    ingress.add_argument("--connections", metavar="N", type=_count, help="at most so many at once")
    ingress.add_argument("--per-name", metavar="N", type=_count, help="of those, for one name")
    ingress.add_argument("--per-source", metavar="N", type=_count, help="of those, from one address")
    ingress.add_argument(
        "--proxy-protocol", action="store_true", help="a load balancer in front says who comes, and is believed"
    )
    ingress.add_argument("--no-ui", action="store_true", help="no live line")


def _pair(text: str) -> tuple[str, str]:
    name, mark, node = text.partition("=")
    if not mark or not name or not node:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NODE, as in web.example.com=web")
    return name, node


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of connections")
    return int(text)
