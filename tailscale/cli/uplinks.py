"""The commands `uplinks` and `paths`: by which interfaces peers are reached, and how each way to one of them does."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import trio

from tailscale.cli.exit_codes import OK
from tailscale.cli.screen import Cell, Screen, in_time
from tailscale.cli.session import joined

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.uplinks import PathRecord, Uplink

UPLINKS_HEADER = ("UPLINK", "STATE", "ADDRESSES", "WEIGHT", "SENT", "RECEIVED", "outside", "bound")
PATHS_HEADER = ("UPLINK", "ADDRESS", "KIND", "STATE", "RTT", "LOSS", "RATE", "why")
STYLES = {"good": "green", "degraded": "yellow", "suspect": "yellow", "dead": "red", "unknown": "dim"}
SWITCHES = ("enable", "disable")
WORDS = {"on": True, "off": False, "yes": True, "no": False}


async def uplinks(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        await change(device, options)
        while options.watch is not None:
            if options.json:
                screen.json_line(told(device))
            else:
                screen.clear()
                show_uplinks(screen, device.uplinks)
            await trio.sleep(options.watch)
        if options.json:
            screen.json(told(device))
        else:
            show_uplinks(screen, device.uplinks)
    return OK


def told(device: Device) -> dict[str, object]:
    return {"uplinks": [uplink.to_dict() for uplink in device.uplinks]}


async def change(device: Device, options: argparse.Namespace) -> None:
    """What the words after `uplinks` ask for."""
    verb, name, value = options.verb, options.name, options.value
    if verb == "show":
        return
    if name is None:
        raise ValueError(f"which uplink? `uplinks {verb} NAME`; those there are: `uplinks`")
    if verb == "use":
        await device.set(uplinks=None if name == "none" else [name, *value])
    elif verb in SWITCHES:
        await device.set_uplink(name, enabled=verb == "enable")
    elif verb == "metered":
        word = value[0] if value else "on"
        if word not in WORDS:
            raise ValueError(f"metered is on or off, not {word!r}: `uplinks metered {name} off`")
        await device.set_uplink(name, metered=WORDS[word])
    else:
        try:
            weight = float(value[0])
        except (IndexError, ValueError):
            raise ValueError(f"a weight is a number: `uplinks weight {name} 2`") from None
        await device.set_uplink(name, weight=weight)


def show_uplinks(screen: Screen, found: tuple[Uplink, ...]) -> None:
    if not found:
        screen.say("no uplinks: the system chooses by which interface datagrams leave; `--uplink NAME` names some")
        return
    screen.table(UPLINKS_HEADER, [_uplink_row(uplink) for uplink in found])


def _uplink_row(uplink: Uplink) -> tuple[Cell, ...]:
    state: Cell = ("up", "green") if uplink.up else ("down", "red")
    if not uplink.enabled:
        state = ("off", "dim")
    elif uplink.metered:
        state = (f"{state[0]}, metered", state[1])
    return (
        (uplink.name, "bold"),
        state,
        ", ".join(uplink.addresses) or "-",
        f"{uplink.weight:g}",
        _size(uplink.sent),
        _size(uplink.received),
        uplink.external or "-",
        uplink.bound or "-",
    )


async def paths(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        await device.ping(options.host, timeout=options.timeout)
        while options.watch is not None:
            found = device.paths(options.host)
            if options.json:
                screen.json_line(_paths_told(options.host, found))
            else:
                screen.clear()
                show_paths(screen, found)
            await trio.sleep(options.watch)
        found = device.paths(options.host)
        if options.json:
            screen.json(_paths_told(options.host, found))
        else:
            show_paths(screen, found)
    return OK


def _paths_told(host: str, found: tuple[PathRecord, ...]) -> dict[str, object]:
    return {"peer": host, "paths": [path.to_dict() for path in found]}


def show_paths(screen: Screen, found: tuple[PathRecord, ...]) -> None:
    screen.table(PATHS_HEADER, [_path_row(path) for path in found])


def _path_row(path: PathRecord) -> tuple[Cell, ...]:
    return (
        path.uplink or "-",
        (path.address, "bold" if path.in_use else ""),
        path.kind,
        (f"{path.state}, in use" if path.in_use else path.state, STYLES[path.state]),
        in_time(path.rtt) if path.rtt is not None else "-",
        f"{path.loss:.1%}",
        f"{_size(int(path.rate))}/s" if path.rate is not None else "-",
        path.why,
    )


def _size(count: int) -> str:
    number, units = float(count), iter(("B", "KB", "MB", "GB", "TB"))
    unit = next(units)
    for larger in units:
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
