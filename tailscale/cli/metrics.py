"""`metrics`: print them once, or serve them until Ctrl-C."""

from __future__ import annotations

import argparse
import functools

import trio

from tailscale.cli.exit_codes import OK
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined
from tailscale.metrics import exposition, serve_metrics


async def metrics(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        if options.listen is None:
            for line in exposition(device, options.peers).splitlines():
                screen.say(line)
            return OK
        async with trio.open_nursery() as nursery:
            url = await nursery.start(functools.partial(serve_metrics, device, options.listen, peers=options.peers))
            screen.note(f"{url}/metrics, /healthz and /readyz, until Ctrl-C")
    return OK
