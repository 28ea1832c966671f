"""The one way to ask control something: over the live connection, or the next one.

Owns: which connection is live, and the small jobs beside the conversation. Refuses to know: what is asked, and how a
connection comes about (`control_actor.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from tailscale.runtime.supervision import Supervision
from ts_control.connection import ANSWER_LIMIT, REQUEST_TIMEOUT, ControlConnection
from ts_control.errors import ControlLost

JOB_LIMIT = 16  # login callbacks and answers that have not begun
JOBS_FULL = "control.jobs_full"
JOBS = "control-answers"


class ControlLine:
    """Requests of anybody's, at any time."""

    def __init__(self) -> None:
        self._connection: ControlConnection | None = None
        self._connected = trio.Event()

    @property
    def is_live(self) -> bool:
        return self._connection is not None

    @contextmanager
    def carried_by(self, connection: ControlConnection) -> Iterator[None]:
        """What is asked goes over this connection while the block runs."""
        self._connection = connection
        self._connected.set()
        try:
            yield
        finally:
            self._connection = None
            self._connected = trio.Event()

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, timeout: float = REQUEST_TIMEOUT, limit: int = ANSWER_LIMIT
    ) -> bytes:
        """One request and its whole answer. It is sent once: whether control heard it when the connection breaks is
        for the caller to judge. Raises ControlLost, also when there is no connection in time, RequestRefused or
        BadPacket.
        """
        deadline = trio.current_time() + timeout
        with trio.move_on_at(deadline):
            while self._connection is None:
                await self._connected.wait()
        if self._connection is None:
            raise ControlLost(f"the control server was not there within {timeout:.0f} s to be asked for {path}")
        return await self._connection.request(method, path, body, timeout=deadline - trio.current_time(), limit=limit)


class JobStatistics(NamedTuple):
    waiting: int
    drops: dict[str, int]


class Jobs:
    """Small tasks that outlive the message they came with: started by plain functions, run by the actor."""

    def __init__(self, supervision: Supervision) -> None:
        self.drops: Counter[str] = Counter()
        self._supervision = supervision
        self._begin, self._begun = trio.open_memory_channel[Callable[[], Awaitable[None]]](JOB_LIMIT)

    def statistics(self) -> JobStatistics:
        return JobStatistics(self._begin.statistics().current_buffer_used, dict(self.drops))

    def start(self, job: Callable[[], Awaitable[None]]) -> bool:
        """False when too many wait already."""
        try:
            self._begin.send_nowait(job)
        except trio.WouldBlock:
            self.drops[JOBS_FULL] += 1
            return False
        return True

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            async for job in self._begun:
                nursery.start_soon(self._run_one, job)

    @trio.lowlevel.enable_ki_protection
    async def _run_one(self, job: Callable[[], Awaitable[None]]) -> None:
        with self._supervision.contained(JOBS):
            await job()
