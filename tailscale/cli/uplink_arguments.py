"""What may be typed after `uplinks` and `paths`, and what is a strategy. Knows no device."""

from __future__ import annotations

import argparse
from typing import Any, Protocol

VERBS = ("show", "enable", "disable", "weight", "metered", "use")


class Adds(Protocol):
    """What adds a command with the options of all."""

    def add(self, name: str, help: str, *, json: bool = False, **options: Any) -> argparse.ArgumentParser: ...


def strategy(text: str) -> str:
    """The text, where it is one."""
    from tailscale.uplinks import strategy_from_text  # `--help` does without

    try:
        strategy_from_text(text)
        return text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_bench(adder: Adds, seconds: Any, whole: Any) -> None:
    bench = adder.add("bench", "what the path to a peer gives: rates, and round trips alone and beside them", json=True)
    bench.add_argument("host", metavar="PEER", help="name or address of the peer")
    bench.add_argument("--seconds", type=seconds, default=5.0, metavar="N", help="for each direction (5)")
    bench.add_argument("--streams", type=whole, default=1, metavar="N", help="beside each other (1)")
    bench.add_argument("--dir", choices=("up", "down", "both"), default="both", help="to the peer, from it, or both")


def add_uplinks(adder: Adds, again: dict[str, Any]) -> None:
    """`again`: how `--watch` is read everywhere."""
    every = f"again and again, until Ctrl-C ({again['const']:g})"
    uplinks = adder.add("uplinks", "the interfaces by which peers are reached, and what is wanted of each", json=True)
    uplinks.add_argument("verb", nargs="?", default="show", choices=VERBS, help="(show)")
    uplinks.add_argument("name", nargs="?", metavar="NAME", help="the interface; with use also all or none")
    uplinks.add_argument("value", nargs="*", metavar="VALUE", help="a weight; on or off; more names after use")
    uplinks.add_argument("--watch", **again, help=every)
    paths = adder.add("paths", "every way to a peer: round trips, losses, and what is thought of it", json=True)
    paths.add_argument("host", metavar="PEER", help="name or address of the peer")
    paths.add_argument("--watch", **again, help=every)
