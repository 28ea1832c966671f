"""`web`: the status page, served until Ctrl-C."""

from __future__ import annotations

import argparse
import functools

import trio

from tailscale.cli.exit_codes import OK
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined
from tailscale.web import serve_page


async def web(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device, trio.open_nursery() as nursery:
        serve = functools.partial(serve_page, device, options.listen, changes=options.allow_changes)
        link = await nursery.start(serve)
        screen.note("Open this; it works once, for one browser. Ctrl-C ends the page.")
        screen.say((link, "cyan"))
    return OK
