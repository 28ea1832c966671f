"""The loop that carries packets: whoever reads a burst takes it through the engine, then everything ready is sent.

Owns the order of calls and the two tasks around the engine (flush on demand, timers). There is no queue and no lock:
nothing here awaits between a burst's arrival and its last consequence. `now` is read once per burst.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import trio

from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import StunArrived
from tailscale.runtime.underlay import Path, Runs, Underlay
from ts_dataplane.engine import Engine
from ts_dataplane.paths import PathFinder

BURSTS_PER_TURN = 8  # bursts sent before other tasks get a turn


class Dataplane:
    """Inbound: `deliver`. Outbound: `kick`. Both end in `flush`."""

    def __init__(self, engine: Engine, finder: PathFinder, underlay: Underlay, bus: Bus) -> None:
        self.engine = engine
        self.finder = finder
        self.underlay = underlay
        self._bus = bus
        self._kicked = trio.Event()
        self._timer_moved = trio.Event()
        self._armed_for = math.inf
        self._after_flush = trio.lowlevel.ParkingLot()
        self.on_message: Callable[[Any], None] = lambda message: None

    def deliver(self, runs: Runs) -> None:
        """Take a burst of datagrams off one socket or relay."""
        now = trio.current_time()
        engine = self.engine
        engine.receive(runs, now)
        disco = engine.take_disco()
        if disco:
            self.finder.receive(disco, now)
        heard = engine.take_heard()
        if heard:
            self.finder.on_data_heard(heard, now)
        stun = engine.take_stun()
        if stun:
            self._bus.publish(StunArrived(stun))
        self.flush(now)

    def flush(self, now: float) -> None:
        """Send all that is ready and wake all that waits for it."""
        engine, finder = self.engine, self.finder
        outbound = engine.transmit(now)
        sent = engine.take_sent()
        if sent:
            finder.on_data_sent(sent, now)
        outbound += finder.transmit(now)
        if outbound:
            self.underlay.send(outbound)
        for message in engine.take_messages():
            owner = getattr(message, "owner", None)
            if owner is not None:
                owner.wake()
            else:
                self.on_message(message)
        for message in finder.take_messages():
            self.on_message(message)
        if min(engine.next_timer(), finder.next_timer()) < self._armed_for:
            self._timer_moved.set()
        self._after_flush.unpark_all()

    async def flushed(self) -> None:
        """Wait until something was carried through once more."""
        await self._after_flush.park()

    def kick(self) -> None:
        """An app wrote something: flush soon. All writers since the last turn share one flush."""
        self._kicked.set()

    @trio.lowlevel.enable_ki_protection
    async def run_flusher(self) -> None:
        while True:
            await self._kicked.wait()
            self._kicked = trio.Event()
            self.flush(trio.current_time())

    @trio.lowlevel.enable_ki_protection
    async def run_timers(self) -> None:
        engine, finder = self.engine, self.finder
        while True:
            self._timer_moved = trio.Event()
            self._armed_for = min(engine.next_timer(), finder.next_timer())
            with trio.move_on_at(self._armed_for):
                await self._timer_moved.wait()
            now = trio.current_time()
            if self._armed_for <= now:
                engine.handle_timer(now)
                finder.handle_timer(now)
                self.flush(now)

    @trio.lowlevel.enable_ki_protection
    async def run_reader(self, read: Callable[[], Any]) -> None:
        """Carry one UDP socket's bursts for ever."""
        while True:
            self.deliver(await read())


__all__ = ["Dataplane", "Path", "Runs"]
