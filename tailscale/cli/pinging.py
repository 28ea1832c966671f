"""`pytailscale ping`: one line for each, and what came of all of them, also when Ctrl-C is what ends it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import trio

from tailscale.cli.exit_codes import FAILED, OK, UNREACHABLE
from tailscale.cli.screen import Screen, in_time
from tailscale.cli.session import joined
from tailscale.errors import ConnectionTimedOut

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.status import PingResult

PATIENCE = 5.0
PINGS, PINGS_UNTIL_DIRECT = 4, 20
PATHS_SHOWN = 3


async def ping(options: argparse.Namespace, screen: Screen) -> int:
    """0 when anybody answered, as other programs of that name have it. Ctrl-C is how people end one, and no failure."""
    tally = Tally()
    try:
        async with joined(options, screen) as device:
            await _ping(device, options, screen, tally)
    except* trio.Cancelled:
        if not tally.sent:
            raise
        tally.was_cut = True
    if not options.json and (tally.sent > 1 or tally.was_cut):
        tally.say(screen)
    if not tally.latencies:
        return UNREACHABLE
    if options.until_direct and not tally.is_direct:
        screen.note("no direct path was found: `pytailscale netcheck` says what the network allows")
        return FAILED
    return OK


class Tally:
    """What was sent, and what came back by which way."""

    def __init__(self) -> None:
        self.sent = 0
        self.latencies: list[float] = []
        self.is_direct = False
        self.was_cut = False
        self._paths: dict[str, None] = {}

    def add(self, result: PingResult) -> None:
        self.latencies.append(result.latency)
        self.is_direct = result.path.kind == "direct"
        self._paths[str(result.path)] = None

    def say(self, screen: Screen) -> None:
        for line in screen.fitted(self._summary(), 0):
            screen.say((line, "dim"))

    def _summary(self) -> str:
        answered = len(self.latencies)
        sentence = f"{self.sent} sent, {answered} answered, {(self.sent - answered) / self.sent:.0%} lost"
        if not answered:
            return sentence
        best, mean, worst = min(self.latencies), sum(self.latencies) / answered, max(self.latencies)
        paths = list(self._paths)
        more = f" and {len(paths) - PATHS_SHOWN} more" if len(paths) > PATHS_SHOWN else ""
        by = ", ".join(paths[:PATHS_SHOWN]) + more
        return f"{sentence}; min {in_time(best)}, avg {in_time(mean)}, max {in_time(worst)}; by {by}"


async def _ping(device: Device, options: argparse.Namespace, screen: Screen, tally: Tally) -> None:
    count = options.count or (PINGS_UNTIL_DIRECT if options.until_direct else PINGS)
    patience = min(options.timeout, PATIENCE)
    while tally.sent < count:
        if tally.sent:
            await trio.sleep(options.interval)
        tally.sent += 1
        try:
            result = await device.ping(options.host, options.kind, options.size, timeout=patience)
        except ConnectionTimedOut as error:
            _say(screen, options, tally.sent, None, str(error))
            continue
        tally.add(result)
        _say(screen, options, tally.sent, result, "")
        if options.until_direct and tally.is_direct:
            return


def _say(screen: Screen, options: argparse.Namespace, number: int, result: PingResult | None, why: str) -> None:
    if options.json:
        found: dict[str, Any] = {"sequence": number, "host": options.host}
        screen.json_line(found | (result.to_dict() if result is not None else {"error": why}))
    elif result is None:
        screen.say((f"{number:>3}  {why}", "yellow"))
    else:
        name = result.node.hostname if result.node is not None else options.host
        style = "green" if result.path.kind == "direct" else "yellow"
        screen.say(f"{number:>3}  {name} answered in {in_time(result.latency)} by ", (result.path, style))
