"""What control is told of us between two maps: at once, after every change, and again where it was refused.

Owns: what was told last and when to try again. Refuses to know: what there is to tell (`self_report.py`), and how a
connection comes about.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from tailscale.runtime.bus import Bus
from tailscale.runtime.self_report import SelfReport
from ts_control.connection import ControlConnection
from ts_control.errors import ControlLost, RequestRefused
from ts_control.retry import Backoff
from ts_control.wire import MapRequest

log = logging.getLogger("tailscale.control")


class Updates:
    """Lite updates: map requests that ask for no map."""

    def __init__(
        self, report: SelfReport, make_request: Callable[[], MapRequest], entropy: Callable[[int], bytes]
    ) -> None:
        self._report = report
        self._make_request = make_request
        self._entropy = entropy
        self._changed = trio.Event()

    def look_again(self) -> None:
        """Something about us may have changed."""
        self._changed.set()

    @trio.lowlevel.enable_ki_protection
    async def run(self, connection: ControlConnection, bus: Bus) -> None:
        """Runs as long as one connection does; what changes during an update goes with the next one."""
        backoff = Backoff(self._entropy)
        told: object = None
        while True:
            self._changed = trio.Event()
            facts = self._report.worth_telling()
            if facts == told:
                await self._changed.wait()
                continue
            whereabouts = self._report.whereabouts()
            try:
                await connection.update(self._make_request())
                told = facts
                bus.publish(whereabouts)
                backoff.succeeded()
            except ControlLost:
                return  # the map stream notices as well
            except RequestRefused as problem:
                log.info("the control server refused an update: %s", problem)
                await trio.sleep_until(backoff.failed(trio.current_time()))
