"""The command `file`: Taildrop, in upstream's words. What comes waits in the spool of the daemon, or of this command.

Paths are those of whoever typed the command. Without a daemon, `get` is there for others only while it runs.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tailscale.cli.copying import follow, tell
from tailscale.cli.exit_codes import FAILED, OK, USAGE
from tailscale.cli.hosted import hosting
from tailscale.cli.pipes import StandardInput
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined, state_path
from tailscale.figures import in_bytes
from tailscale.state_file import FileStore

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.nodes import Node
    from tailscale.taildrop.spool import Fetched, Spool, WaitingFile

STANDARD_INPUT = "-"


async def file(options: argparse.Namespace, screen: Screen) -> int:
    if options.deed == "get":
        return await _get(options, screen)
    if options.targets:
        return await _targets(options, screen)
    if len(options.what) < 2 or not options.what[-1].endswith(":"):
        return _usage(screen, "file cp takes files and NODE: with a colon, as in `file cp a.jpg phone:`")
    *names, target = options.what
    if STANDARD_INPUT in names and (len(names) > 1 or not options.name):
        return _usage(screen, "standard input is sent alone, and under a --name")
    if options.name and len(names) > 1:
        return _usage(screen, "--name is for a single file")
    return await _cp(names, target.removesuffix(":"), options, screen)


def _usage(screen: Screen, sentence: str) -> int:
    screen.note(("pytailscale: ", "bold red"), sentence)
    return USAGE


def _directory() -> str:
    host = hosting()
    return str(host.call.cwd if host is not None else Path.cwd())


async def _cp(names: Sequence[str], target: str, options: argparse.Namespace, screen: Screen) -> int:
    from tailscale import taildrop  # few send files

    directory = _directory()
    files = [_input() if name == STANDARD_INPUT else Path(directory, name) for name in names]
    async with joined(options, screen) as device:
        report = await follow(taildrop.send(device, target, *files, name=options.name), screen)
        tell(report, options, screen)
    return OK


async def _input() -> AsyncIterator[bytes]:
    source = StandardInput()
    while piece := await source.receive():
        yield piece


async def _targets(options: argparse.Namespace, screen: Screen) -> int:
    from tailscale import taildrop

    async with joined(options, screen) as device:
        nodes = taildrop.targets(device)
        if options.json:
            screen.json([node.to_dict() for node in nodes])
        elif nodes:
            screen.table(("ADDRESS", "NAME", "OS", "STATE"), [_row(node) for node in nodes])
        else:
            screen.note("no device of this tailnet can be sent files to")
    return OK


def _row(node: Node) -> tuple[str, ...]:
    return node.ipv4 or node.ipv6 or "-", node.hostname, node.os or "-", node.presence or "-"


async def _get(options: argparse.Namespace, screen: Screen) -> int:
    into = Path(_directory(), options.what)
    if not await trio.Path(into).is_dir():
        return _usage(screen, f"{into} is no folder")
    async with joined(options, screen) as device, _spool(device, options) as spool:
        left: set[str] = set()
        code = OK
        while True:
            patience = math.inf if options.loop or (options.wait and not left) else 0.0
            screen.show("waiting for files") if patience else None
            waiting = [one for one in await _news(spool, patience, left) if one.name not in left]
            if not waiting:
                return code
            for one in waiting:
                fetched = await trio.to_thread.run_sync(spool.fetch, one.name, into, options.conflict)
                _show(fetched, options, screen)
                if fetched.path is None:
                    left.add(one.name)
                    code = FAILED
            if not options.loop:
                return code


async def _news(spool: Spool, patience: float, left: set[str]) -> list[WaitingFile]:
    """Those that wait, as soon as there is one that was not left."""
    while True:
        news = spool.news
        found = await trio.to_thread.run_sync(spool.waiting)
        if not patience or any(one.name not in left for one in found):
            return found
        await news.wait()


def _show(fetched: Fetched, options: argparse.Namespace, screen: Screen) -> None:
    if options.json:
        path = str(fetched.path) if fetched.path is not None else None
        screen.json_line({"name": fetched.name, "size": fetched.size, "path": path, "problem": fetched.problem})
    elif fetched.path is None:
        screen.note((f"{fetched.name} still waits: {fetched.problem}", "yellow"))
    else:
        screen.say(f"{fetched.path}", (f"  {in_bytes(fetched.size)}", "dim"))


@asynccontextmanager
async def _spool(device: Device, options: argparse.Namespace) -> AsyncIterator[Spool]:
    """The daemon's; else one of our own, beside the state, that takes files as long as this command runs."""
    from tailscale.taildrop.spool import Spool

    host = hosting()
    if host is not None:
        yield host.served_by.taildrop.spool
        return
    where = state_path(options)
    if where is None:
        with tempfile.TemporaryDirectory(prefix="pytailscale-") as folder:
            async with _taking(device, Spool(Path(folder, "files"))) as spool:
                yield spool
    else:
        async with _taking(device, Spool(FileStore(where).path.with_suffix(".files"))) as spool:
            yield spool


@asynccontextmanager
async def _taking(device: Device, spool: Spool) -> AsyncIterator[Spool]:
    from tailscale.taildrop import Inbox

    async def tell_of(inbox: Inbox) -> None:
        async for _ in inbox:
            spool.tell()

    async with Inbox(device, spool.folder, accept=True) as inbox, trio.open_nursery() as nursery:
        nursery.start_soon(partial(tell_of, inbox))
        yield spool
        nursery.cancel_scope.cancel()
