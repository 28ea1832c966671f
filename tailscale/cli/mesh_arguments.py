"""What may be typed of the commands of a mesh. Knows no device."""

from __future__ import annotations

import argparse
import re
from typing import Any

from tailscale.cli.ports import host_and_port

DEFAULT_APP = "pytailscale"
DEFAULT_NAMESPACE = "text"
NAMESPACE = re.compile(r"[a-z0-9.:-][a-z0-9._:-]{0,63}")


def add_mesh(adder: Any) -> None:
    """`adder.add` makes a command with the common options."""
    ls = _command(adder, "ls", "devices of the mesh: who can be sent to", json=True)
    ls.add_argument("-a", "--all", action="store_true", help="also peers that are no members")
    ls.add_argument("-l", "--long", action="store_true", help="addresses, mesh ids, and whether a session stands")

    send = _command(adder, "send", "send text to a device of the mesh, and wait until its program holds it", json=True)
    send.add_argument("peer", nargs="?", help="name, address or mesh id (not with --all)")
    send.add_argument("text", help="the text; - reads it from standard input")
    send.add_argument("--all", action="store_true", help="to every member that is online")
    _add_namespace(send, "--ns")

    recv = _command(adder, "recv", "print what is sent to this device", json=True)
    recv.add_argument(
        "namespace", nargs="?", type=_namespace, default=DEFAULT_NAMESPACE, help=f"which ({DEFAULT_NAMESPACE})"
    )
    recv.add_argument("--from", dest="sender", metavar="PEER", help="only from this one")
    recv.add_argument("-n", dest="count", type=_count, metavar="N", help="end after so many")

    wait = _command(adder, "wait", "wait until a device is in the mesh and answers", json=True)
    wait.add_argument("peer", help="name, address or mesh id")

    _command(adder, "watch", "print who joins, leaves and connects, as it happens", json=True)

    cp = _command(adder, "cp", "copy files and folders to a device of the mesh, or from one", json=True)
    cp.add_argument(
        "source", nargs="+", metavar="SRC", help="a file or folder here, or PEER:PATH of what a peer shares"
    )
    cp.add_argument("target", metavar="DST", help="PEER: or PEER:FOLDER in its inbox, or a folder here")
    cp.add_argument("--no-resume", dest="resume", action="store_false", help="send all, whatever is there already")

    tcp = adder.add("tcp", "connect standard input and output to a port, or see whether that works", json=True)
    tcp.add_argument("target", type=host_and_port, metavar="HOST:PORT", help="of a peer, or behind one")
    tcp.add_argument("--check", action="store_true", help="only connect, and say by which path")


def _command(adder: Any, name: str, help: str, **options: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = adder.add(name, help, **options)
    parser.add_argument("--app", default=DEFAULT_APP, metavar="NAME", help=f"whose mesh ({DEFAULT_APP})")
    return parser


def _add_namespace(parser: argparse.ArgumentParser, flag: str) -> None:
    parser.add_argument(
        flag,
        dest="namespace",
        type=_namespace,
        default=DEFAULT_NAMESPACE,
        metavar="NS",
        help=f"namespace ({DEFAULT_NAMESPACE})",
    )


def _namespace(text: str) -> str:
    if not NAMESPACE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!a} is no namespace: 1 to 64 of a-z, 0-9, dot, colon and dash")
    return text


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


_count.__name__ = "number"
