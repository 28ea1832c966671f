"""The command `exits`: which ways out of the tailnet there are, where, and which one a choice would take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import trio

from tailscale.cli.exit_codes import OK
from tailscale.cli.screen import Cell, Screen, in_time
from tailscale.cli.session import joined
from tailscale.errors import TailscaleError
from tailscale.proxy.exits import Exits

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.proxy.exits_status import ExitsStatus, ExitStanding
    from tailscale.status import ExitNode

HEADER = ("NAME", "LOCATION", "STATE", "PATH", "LATENCY", "priority", "address")
MEASURED, PATIENCE = 16, 3.0  # so many exits, the best first, are asked how far they are, for so many seconds
STYLES = {"in use": "green", "ready": "", "lost": "yellow", "broken": "red", "trial": "yellow", "unwanted": "dim"}


async def exits(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        chosen = Exits.from_spec(device, options.choice)
        if chosen.kind == "policy":
            await measure(device, chosen.candidates[:MEASURED])
        status = chosen.status()
        if options.json:
            screen.json(status.to_dict() | {"choice": options.choice})
        elif chosen.kind != "policy":
            screen.say(f"{options.choice}: {FIXED[chosen.kind]}")
        else:
            show(screen, status)
    return OK


FIXED = {
    "none": "only the tailnet and the subnets that it routes",
    "direct": "what the tailnet does not have goes by this machine's own network",
}


async def measure(device: Device, found: tuple[ExitNode, ...]) -> None:
    """One ping each, all at once: a device that has just joined knows no paths yet."""

    async def ask(exit_node: ExitNode) -> None:
        try:
            await device.ping(exit_node.node.addresses[0], timeout=PATIENCE)
        except (TailscaleError, OSError):
            return  # the table says that nothing is known of it

    async with trio.open_nursery() as nursery:
        for exit_node in found:
            if exit_node.online is not False and exit_node.node.addresses:
                nursery.start_soon(ask, exit_node)


def show(screen: Screen, status: ExitsStatus) -> None:
    if not status.exits:
        screen.say("no exits: nobody in this tailnet is an exit node that this device may use")
        return
    screen.table(HEADER, [row(standing) for standing in status.exits])
    screen.say()
    if status.current is None:
        screen.say(f"{status.policy}: no exit fits, or can be used")
    else:
        screen.say(f"{status.policy}: ", (status.current.node.hostname, "bold"), f", {status.reason}")


def row(standing: ExitStanding) -> tuple[Cell, ...]:
    exit_node = standing.exit
    place = ", ".join(word for word in (exit_node.city, exit_node.country or exit_node.country_code) if word)
    state = standing.state if standing.state in ("in use", "ready") else f"{standing.state}: {standing.reason}"
    return (
        (exit_node.node.hostname, "bold"),
        place or "-",
        (state, STYLES[standing.state]),
        exit_node.path or "-",
        in_time(exit_node.latency) if exit_node.latency is not None else "-",
        str(exit_node.priority or "-"),
        exit_node.node.ipv4 or exit_node.node.ipv6 or "-",
    )
