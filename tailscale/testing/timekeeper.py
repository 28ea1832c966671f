"""The clock of a server that has none: calls a sans-IO machine's timers when they are due."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio


class Timed(Protocol):
    def next_timer(self) -> float: ...
    def handle_timer(self, now: float) -> None: ...


class Timekeeper:
    """`look_again()` whenever the machine was spoken to: its next deadline may be another."""

    def __init__(self, machine: Timed, after: Callable[[], None]) -> None:
        self._machine = machine
        self._after = after  # what became ready at a deadline wants to leave
        self._moved = trio.Event()

    def look_again(self) -> None:
        self._moved.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        machine = self._machine
        while True:
            self._moved = trio.Event()
            with trio.move_on_at(machine.next_timer()):
                await self._moved.wait()
            if machine.next_timer() <= trio.current_time():
                machine.handle_timer(trio.current_time())
                self._after()
                await trio.lowlevel.checkpoint()
