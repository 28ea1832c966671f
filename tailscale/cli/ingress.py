"""The command `ingress`: a Funnel relay of one's own, until Ctrl-C. What it does is `tailscale/ingress`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import trio

from tailscale.cli.exit_codes import OK
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined
from tailscale.figures import in_bytes
from tailscale.ingress import Ingress, IngressLimits
from tailscale.ingress import ingress as run_ingress

REDRAW = 1.0
LIMITS = ("connections", "per_name", "per_source")


async def ingress(options: argparse.Namespace, screen: Screen) -> int:
    to = dict(options.name) if options.name else options.to
    if options.name and options.to:
        raise ValueError("--to is the node of all names: give it, or --name for each")
    wished = {name: getattr(options, name) for name in LIMITS if getattr(options, name) is not None}
    limits = replace(IngressLimits(proxy_protocol=options.proxy_protocol), **wished)
    async with joined(options, screen) as device, trio.open_nursery() as nursery:
        run = partial(run_ingress, port=options.port, limits=limits)
        relay = await nursery.start(run, device, options.listen, to)
        screen.note(("relay at ", "dim"), f"{relay.address[0]}:{relay.port}", (" (TLS by name)", "dim"))
        while screen.is_live and not options.no_ui:
            screen.show(line_of(relay))
            await trio.sleep(REDRAW)
    return OK


def line_of(relay: Ingress) -> str:
    """How it goes, in one line."""
    done = relay.statistics()
    carried = f"{done.carried} connections for {len(done.names)} names"
    moved = f"{in_bytes(done.bytes_sent)} in, {in_bytes(done.bytes_received)} out"
    return f"{carried}, {moved}, {sum(done.drops.values())} led nowhere"
