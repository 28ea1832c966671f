"""The command `tun`: let every program of this machine reach the tailnet, stop it, and clean up after what was killed.

Through the daemon the interface stays when the command has ended, and comes back with the daemon's device; alone it is
there until Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing

from tailscale.cli.exit_codes import FAILED, OK
from tailscale.cli.hosted import hosting
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined
from tailscale.errors import TunFailed
from tailscale.kernel.interface import sentence_of
from tailscale.kernel.netlink import Netlink
from tailscale.kernel.record import cleanup, look, records_folder
from tailscale.tun_options import TunStatus
from tailscale.tun_options import tun as tun_options


async def tun(options: argparse.Namespace, screen: Screen) -> int:
    if options.cleanup:
        return _cleanup(options, screen)
    if options.verb == "up":
        return await _up(options, screen)
    host = hosting()
    if host is None:
        return _look_around(options, screen)
    async with joined(options, screen) as device:
        if options.verb == "down":
            host.served_by.keep_tun(None)
            await device.tun_down()
        _show(device.tun, options, screen)
    return OK


async def _up(options: argparse.Namespace, screen: Screen) -> int:
    chosen = tun_options(
        options.name, mtu=options.mtu, split=options.split, exclude=options.exclude, dns=options.dns
    )  # before anything is joined
    host = hosting()
    async with joined(options, screen) as device:
        await device.tun_up(chosen)
        _show(device.tun, options, screen)
        if host is not None:
            host.served_by.keep_tun(chosen)
        else:
            screen.note("until Ctrl-C")
            await device.tun_ended()
    return OK


def _look_around(options: argparse.Namespace, screen: Screen) -> int:
    """Without a daemon there is nothing to take down, and nothing to join for."""
    found = []
    if sys.platform == "linux":
        with closing(Netlink()) as netlink:
            found = look(netlink, records_folder())
    for name, holder in found:
        remedy = (
            f"in use by process {holder}, which Ctrl-C ends" if holder else "left behind: pytailscale tun --cleanup"
        )
        screen.note(f"{name} is {remedy}")
    if options.json or not found:
        _show(None, options, screen)
    return FAILED if options.verb == "down" and found else OK


def _cleanup(options: argparse.Namespace, screen: Screen) -> int:
    """What a killed process left. It needs no device, and knows none."""
    if sys.platform != "linux":
        raise TunFailed(f"a TUN device is made on Linux only; this is {sys.platform}")
    try:
        with closing(Netlink()) as netlink:
            found = cleanup(netlink, records_folder())
    except OSError as error:
        raise TunFailed(f"nothing was cleaned up: {error}", sentence_of(error)) from error
    if options.json:
        screen.json({"tun": None, "cleaned": [one.name for one in found if not one.holder]})
    for name, holder in found:
        if holder:
            screen.note(f"{name} is in use by process {holder}: nothing of it was touched")
        elif not options.json:
            screen.say(f"{name}: everything that was left is taken back")
    return FAILED if found and all(one.holder for one in found) else OK


def _show(status: TunStatus | None, options: argparse.Namespace, screen: Screen) -> None:
    if options.json:
        screen.json({"tun": status.to_dict() if status is not None else None})
        return
    if status is None:
        screen.say("no TUN device: only this device's own sockets reach the tailnet")
        return
    way = "everything, by the exit node" if status.mode == "full" else "the tailnet and accepted subnets"
    screen.say((status.name, "bold"), f"  {way}, MTU {status.mtu}, names: {status.dns}")
    screen.say("  addresses  ", " ".join(status.addresses))
    screen.say("  routes     ", " ".join(status.routes))
    if status.exclude:
        screen.say("  excluded   ", " ".join(status.exclude))
    for prefix, why in status.refused.items():
        screen.say(("  refused    ", "yellow"), f"{prefix}: {why}")
