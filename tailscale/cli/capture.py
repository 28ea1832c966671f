"""`pytailscale capture FILE`: the packets inside the tunnel of this device, as a pcapng file or down a pipe."""

from __future__ import annotations

import argparse
import math
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tailscale.cli.arguments import STANDARD_OUTPUT
from tailscale.cli.exit_codes import FAILED, OK
from tailscale.cli.pipes import OutputFile, file_to_write
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined
from tailscale.errors import CaptureFailed
from tailscale.figures import in_bytes

if TYPE_CHECKING:
    from tailscale.capturing import Capture, CaptureStatistics, Sink
    from tailscale.device import Device


async def capture(options: argparse.Namespace, screen: Screen) -> int:
    async with AsyncExitStack() as stack:
        device = await stack.enter_async_context(joined(options, screen))
        where: Path | Sink = OutputFile()
        if options.file != STANDARD_OUTPUT:
            where = await stack.enter_async_context(file_to_write(options.file))
        try:
            await _capture_to(where, device, options, screen)
        except CaptureFailed as problem:
            if isinstance(problem.__cause__, BrokenPipeError):  # whoever read it has seen enough
                return FAILED
            raise
    return OK


async def _capture_to(where: Path | Sink, device: Device, options: argparse.Namespace, screen: Screen) -> None:
    limits = {"snaplen": options.snaplen, "max_packets": options.count}
    async with device.capture(where, options.peer, **limits) as running:
        screen.note(("capturing ", "dim"), f"{options.peer or 'all peers'} of {device.hostname}; Ctrl-C ends it")
        try:
            with trio.move_on_after(math.inf if options.seconds is None else options.seconds):
                await running.wait()
        finally:
            await _end(running)
            _say_how_much(running.statistics(), screen)


async def _end(running: Capture) -> None:
    """Also after Ctrl-C: it takes a moment, and a bounded one, and the file is whole then."""
    with trio.CancelScope(shield=True), suppress(CaptureFailed):
        await running.aclose()


def _say_how_much(done: CaptureStatistics, screen: Screen) -> None:
    lost = f", {done.dropped} not kept" if done.dropped else ""
    screen.note(f"{done.packets} packets, {in_bytes(done.bytes)}{lost}")
