"""`GET capture`: the packets inside the tunnel as a pcapng stream, for as long as somebody reads it.

Owns the captures under way and what waits of each. A reader that is slow makes the capture wait, and then lose packets,
which it counts (`capture.queue_full`) and says in its last block; one that has stopped is left by the door. Knows no
format.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import trio

from tailscale.daemon.answering import Answer, Question, Refused, Routes
from tailscale.daemon.keeper import Keeper
from tailscale.daemon.own_api import ROOT
from tailscale.device import Device
from tailscale.errors import DeviceNotReady, TailscaleError

log = logging.getLogger("tailscale.daemon")
KIND = "application/x-pcapng"
CAPTURES_LIMIT = 16  # at once: each looks at every packet
WAITING_LIMIT = 1 << 20  # bytes of one that wait for its reader; behind them waits the capture's own queue
NUMBERS = {"snaplen": "snaplen", "count": "max_packets", "bytes": "max_bytes"}


class CapturesStatistics(NamedTuple):
    running: int


class Captures:
    """Those of one device, while it is usable."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._nursery: trio.Nursery | None = None
        self._running = 0

    def statistics(self) -> CapturesStatistics:
        return CapturesStatistics(self._running)

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{ROOT}capture", self._capture, writers=True)

    async def run(self, device: Device) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _capture(self, question: Question) -> Answer:
        device, query = self._keeper.usable, question.query
        limits = {ours: int(query[name]) for name, ours in NUMBERS.items() if name in query}
        seconds = float(query.get("seconds", "inf"))
        if not seconds > 0:
            raise ValueError(f"seconds={query['seconds']} is no time")
        if self._running >= CAPTURES_LIMIT:
            raise Refused(503, f"{CAPTURES_LIMIT} captures run already")
        if self._nursery is None:
            raise DeviceNotReady("a capture needs a device that has joined")
        pieces = Pieces(scope := trio.CancelScope())
        await self._nursery.start(self._run, device, pieces, scope, seconds, query.get("peer") or None, limits)
        return Answer(pieces, kind=KIND)

    async def _run(
        self,
        device: Device,
        pieces: Pieces,
        scope: trio.CancelScope,
        seconds: float,
        peer: str | None,
        limits: dict[str, Any],
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        has_begun = False
        self._running += 1
        try:
            with scope:
                async with device.capture(pieces, peer, **limits) as running:
                    has_begun = True
                    task_status.started()
                    with trio.move_on_after(seconds):
                        await running.wait()
                    pieces.take_all()
        except (TailscaleError, OSError, ValueError) as error:
            if not has_begun:
                raise
            log.debug("a capture ended: %s", error)
        finally:
            self._running -= 1
            pieces.end()


class Pieces:
    """What a capture writes, in a thread, until its reader takes it. When the reader leaves, the capture ends."""

    def __init__(self, capture: trio.CancelScope) -> None:
        self._capture = capture
        self._waiting = bytearray()
        self._takes_all = self._has_ended = False
        self._lot = trio.lowlevel.ParkingLot()

    # What the capture calls

    def write(self, data: bytes, /) -> int:
        """From a worker thread; returns once there is room."""
        trio.from_thread.run(self._put, bytes(data))
        return len(data)

    async def _put(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while len(self._waiting) >= WAITING_LIMIT and not self._takes_all:
            await self._lot.park()
        if not self._has_ended:
            self._waiting += data
            self._lot.unpark_all()

    def take_all(self) -> None:
        """The last blocks need no room: the capture's own queue was bounded."""
        self._takes_all = True
        self._lot.unpark_all()

    def end(self) -> None:
        self._takes_all = self._has_ended = True
        self._lot.unpark_all()

    # What the reader calls

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._has_ended:
                raise StopAsyncIteration
            await self._lot.park()
        data, self._waiting = bytes(self._waiting), bytearray()
        self._lot.unpark_all()
        return data

    async def aclose(self) -> None:
        self._capture.cancel()
        self.end()
        await trio.lowlevel.checkpoint()
