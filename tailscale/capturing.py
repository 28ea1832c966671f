"""Captures: packets inside the tunnel, written to a pcapng file while they go by.

Owns the queue, its bounds, and the file: private, and under its name only when it is whole. The packet path puts ready
blocks into the queue; a thread writes them, so that a slow disk or a stopped reader costs packets of the file and no
others. What a packet's comment says is `runtime/packet_watch.py`'s; the format is `pcapng.py`'s.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import trio

from tailscale import pcapng
from tailscale._private_files import Draft
from tailscale.errors import CaptureFailed

if TYPE_CHECKING:
    from types import TracebackType

    from tailscale.runtime.packet_watch import PacketWatch, Sighting
    from ts_base.who import PeerId

PROGRAM = "pytailscale"
QUEUE_LIMIT = 8 << 20  # bytes that wait for the thread that writes
QUEUE_FULL = "capture.queue_full"
CLOSE_PATIENCE = 2.0  # for what still waits, where the file or its reader takes nothing more


class Sink(Protocol):
    """A file open for bytes."""

    def write(self, data: bytes, /) -> int | None: ...


class CaptureStatistics(NamedTuple):
    """What one capture has done."""

    packets: int
    """In the file, or on their way to it."""
    bytes: int
    """Of the file."""
    dropped: int
    """Seen, and not kept: more waited to be written than is held."""


class Limits(NamedTuple):
    """Where a capture ends by itself, and how much of each packet it keeps."""

    snaplen: int
    packets: int | None
    bytes: int | None


class Capture:
    """A capture that runs until it is closed, or a limit is reached. Use it in an `async with` block.

    ```python
    async with device.capture("x.pcapng", peer="db") as capture:
        await device.ping("db", "tsmp")
    print(capture.statistics().packets)
    ```
    """

    def __init__(
        self,
        watch: PacketWatch,
        sink: Sink | Draft,
        *,
        device: str,
        peer: PeerId,
        limits: Limits,
    ) -> None:
        self._watch = watch
        self._sink = sink
        self._draft = sink if isinstance(sink, Draft) else None  # else whoever opened it closes it
        self._limits = limits
        self._queue: deque[bytes] = deque()
        self._waiting = self._packets = self._dropped = self._bytes = 0
        self._newest = 0.0
        self._is_ending = False
        self._news, self._is_full, self._is_shut = trio.Event(), trio.Event(), trio.Event()
        self._writing = trio.CancelScope()
        self._problem: Exception | None = None
        self._put(pcapng.header(PROGRAM, "tailnet", f"inside the tunnel of {device}", limits.snaplen))
        self._stop_watching = watch.begin(self._show, peer)

    # What the packet path calls

    def _show(self, seen: Sighting) -> None:
        if self._is_full.is_set():
            return  # the rest of a burst
        data = seen.packet[: self._limits.snaplen]
        block = pcapng.packet_block(seen.at, data, len(seen.packet), is_inbound=seen.is_inbound, comment=seen.comment)
        if self._limits.bytes is not None and self._bytes + len(block) > self._limits.bytes:
            self._end_early()
        elif self._waiting + len(block) > QUEUE_LIMIT:
            self._dropped += 1
            self._watch.drops[QUEUE_FULL] += 1
        else:
            self._packets += 1
            self._newest = seen.at
            self._put(block)
            if self._packets == self._limits.packets:
                self._end_early()

    def _put(self, block: bytes) -> None:
        self._queue.append(block)
        self._waiting += len(block)
        self._bytes += len(block)
        self._news.set()

    def _end_early(self) -> None:
        self._stop_watching()
        self._is_full.set()

    # What writes

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Write until closed. Also when the device ends first, what was seen until then is in the file."""
        try:
            with self._writing:
                while not self._is_ending:
                    await self._news.wait()
                    self._news = trio.Event()
                    await self._write_out()
        finally:
            self._stop_watching()
            with trio.move_on_after(CLOSE_PATIENCE, shield=True) as patience:
                if self._problem is None:
                    self._put(pcapng.end_block(self._newest, received=self._packets, dropped=self._dropped))
                    await self._write_out()
            if patience.cancelled_caught:
                self._problem = TimeoutError(f"nobody took what was written within {CLOSE_PATIENCE:g} s")
            self._close()

    async def _write_out(self) -> None:
        blocks, self._queue, self._waiting = b"".join(self._queue), deque(), 0
        try:  # a pipe that nobody reads is left; our own file is written to its end; memory keeps nobody waiting
            if isinstance(self._sink, io.BytesIO):
                self._sink.write(blocks)
                return
            await trio.to_thread.run_sync(write_all, self._sink, blocks, abandon_on_cancel=self._draft is None)
        except Exception as problem:  # whatever somebody's own file object raises
            self._problem = problem
            self._is_ending = True
            self._end_early()

    def _close(self) -> None:
        if self._draft is not None and self._problem is not None:
            self._draft.abandon()
        elif self._draft is not None:
            try:
                self._draft.finish()
            except OSError as problem:
                self._problem = problem
                self._draft.abandon()
        self._is_full.set()
        self._is_shut.set()

    # What users call

    def statistics(self) -> CaptureStatistics:
        """Packets and bytes so far."""
        return CaptureStatistics(self._packets, self._bytes, self._dropped)

    async def wait(self) -> None:
        """Until a limit is reached, or nothing more can be written."""
        await self._is_full.wait()

    async def aclose(self) -> None:
        """No more packets; returns when the file is whole, and raises `CaptureFailed` where it could not be."""
        if not self._is_full.is_set():
            self._watch.flush()
        self._stop_watching()
        self._is_ending = True
        self._news.set()
        with trio.move_on_after(CLOSE_PATIENCE) as patience:
            await self._is_shut.wait()
        if patience.cancelled_caught:
            self._writing.cancel()
            await self._is_shut.wait()
        if self._problem is not None:
            reason = getattr(self._problem, "strerror", None) or str(self._problem)
            left = f". {self._draft.left}" if self._draft is not None else ""
            raise CaptureFailed(f"the capture could not be written whole: {reason}{left}") from self._problem

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(CaptureFailed) if error is not None else contextlib.nullcontext():
            await self.aclose()


async def open_capture(
    file: str | os.PathLike[str] | Sink,
    peer: PeerId,
    watch: PacketWatch,
    spawn: Callable[..., object],
    *,
    device: str,
    limits: Limits,
) -> Capture:
    """Begin to write to a file of that name, or to one that is open."""
    await trio.lowlevel.checkpoint()
    for name, limit in zip(("snaplen", "max_packets", "max_bytes"), limits, strict=True):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} is 1 or more, not {limit}: leave it out for no limit")
    sink = Draft(Path(file)) if isinstance(file, str | os.PathLike) else file
    capture = Capture(watch, sink, device=device, peer=peer, limits=limits)
    spawn(capture.run)
    return capture


def write_all(sink: Sink | Draft, data: bytes) -> None:
    """All of it, in a thread; whoever reads a pipe sees it at once."""
    left = memoryview(data)
    while left:
        written = sink.write(left)  # type: ignore[arg-type]
        left = left[len(left) if written is None else written :]
    flush = getattr(sink, "flush", None)
    if flush is not None:
        flush()
