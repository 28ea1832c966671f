"""`pytailscale why HOST:PORT`: the way to a port, step by step, and what stands in it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Literal

from tailscale.cli.exit_codes import FAILED, NOT_FOUND, OK, REFUSED, UNREACHABLE
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined
from tailscale.explanation import MARKS, TITLE_WIDTH
from tailscale.faults import in_option_words

if TYPE_CHECKING:
    from tailscale.explanation import Explanation

PATIENCE = 10.0  # seconds; a port that is open answers sooner
STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red", "skip": "dim"}
INDENT = 4 + 2 + TITLE_WIDTH + 2
CODES = {"NameNotFound": NOT_FOUND, "ConnectionRefused": REFUSED}  # as where a dial fails


async def why(options: argparse.Namespace, screen: Screen) -> int:
    host, port = options.where
    async with joined(options, screen) as device:
        screen.show(f"looking at the way to {host} ...")
        protocol: Literal["tcp", "udp"] = "udp" if options.udp else "tcp"
        found = await device.explain(host, port, protocol=protocol, timeout=min(options.timeout, PATIENCE))
    if options.json:
        screen.json(found.to_dict())
    else:
        say(found, screen)
    if found.error:
        return CODES.get(found.error, UNREACHABLE)
    return FAILED if found.is_reachable is False else OK


def say(found: Explanation, screen: Screen) -> None:
    """For people."""
    for step in found.steps:
        if step.outcome == "skip":
            continue
        first, *more = screen.fitted(in_option_words(step.sentence), INDENT)
        screen.say((MARKS[step.outcome], STYLES[step.outcome]), f"  {step.name:<{TITLE_WIDTH}}  ", first)
        for line in more:
            screen.say(" " * INDENT, line)
    screen.say()
    for line in screen.fitted(in_option_words(found.verdict), 0):
        screen.say((line, "bold"))
    if found.remedy:
        first, *more = screen.fitted(in_option_words(found.remedy), len("  try: "))
        screen.say(("  try: ", "cyan"), first)
        for line in more:
            screen.say(" " * len("  try: "), line)
