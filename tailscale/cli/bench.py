"""`pytailscale bench PEER`: what the path to a peer gives, measured by both ends."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tailscale.cli.exit_codes import OK, UNREACHABLE
from tailscale.cli.screen import Screen, in_time
from tailscale.cli.session import joined

if TYPE_CHECKING:
    from tailscale.measured import BenchResult, RoundTrips

WIDTH = 40  # of a bar
PHASES = {"idle": "round trips alone", "down": "from there", "up": "to there", "pings": "pings"}


async def bench(options: argparse.Namespace, screen: Screen) -> int:
    """0 where rates were measured."""

    def tell(phase: str, share: float) -> None:
        if phase:
            screen.show(f"measuring {PHASES[phase]}: {share:.0%}")

    async with joined(options, screen) as device:
        result = await device.bench(
            options.host, seconds=options.seconds, streams=options.streams, direction=options.dir, tell=tell
        )
    screen.hide()
    if options.json:
        screen.json(result.to_dict())
    else:
        show(screen, result)
    return OK if not result.why else UNREACHABLE


def show(screen: Screen, result: BenchResult) -> None:
    """The rates as bars beside each other, and round trips without and with streams beside them."""
    screen.note((result.peer, "bold"), f" by {result.path or 'an unknown path'}")
    highest = max((rate for rate in (result.up, result.down) if rate), default=0.0)
    for word, rate in (("to there", result.up), ("from there", result.down)):
        if rate is not None:
            bar = "#" * max(1, round(rate / highest * WIDTH)) if highest else ""
            screen.say(f"{word:<11}{_rate(rate):>14}  {bar}".rstrip())
    for words, trips in (("round trip", result.idle), ("  beside it", result.loaded)):
        if trips is not None:
            screen.say(f"{words:<11}{_trips(trips)}")
    if result.loss:
        screen.say(f"lost       {result.loss:>13.1%}")
    for uplink, size in result.uplinks.items():
        screen.say(f"by {uplink:<8}{size / 1e6:>11,.1f} MB")
    if result.why:
        screen.note((f"no rates: {result.why}", "yellow"))


def _rate(bytes_a_second: float) -> str:
    return f"{bytes_a_second * 8 / 1e6:,.1f} Mbit/s"


def _trips(trips: RoundTrips) -> str:
    return f"{in_time(trips.median):>14}  {in_time(trips.least)} at best, {in_time(trips.p99)} at the 99th percentile"
