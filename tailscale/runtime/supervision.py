"""What becomes of an actor that fails: it is counted, warned of, logged with its traceback, and started again.

Bytes from outside must never end a Device, not even where they find a mistake of ours. Only what fails again and again
takes it down, with a typed error; a `TailscaleError` is a decision, and passes. Knows no actor.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

import trio

from tailscale.errors import DeviceFailed, TailscaleError
from tailscale.runtime.bus import Bus
from tailscale.runtime.health import Health

log = logging.getLogger("tailscale")
FAILURES_LIMIT, FAILURES_WITHIN = 8, 60.0  # so many of one actor in so many seconds are a loop
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
STEADY = 30.0  # it ran so long since: no longer worth a warning


class Start(Protocol):
    """An actor, ready to be started."""

    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[object]: ...


@dataclass(frozen=True)
class SupervisionStatistics:
    """How often each actor has failed."""

    failures: dict[str, int]


class Supervision:
    """One per Device."""

    def __init__(self, bus: Bus) -> None:
        self._health = Health(bus)
        self._failures: Counter[str] = Counter()
        self._steady_at: dict[str, float] = {}  # when each actor that failed has run for so long that it is forgiven
        self._has_failed = trio.Event()

    def statistics(self) -> SupervisionStatistics:
        return SupervisionStatistics(dict(self._failures))

    @trio.lowlevel.enable_ki_protection
    async def keep(
        self, name: str, start: Start, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run an actor until it ends by itself, however often it fails on the way."""
        recent: deque[float] = deque(maxlen=FAILURES_LIMIT)
        status = _Once(task_status)
        in_a_row = 0
        while True:
            began = trio.current_time()
            if recent:
                self._steady_at[name] = began + STEADY
            try:
                await start(task_status=status)
            except Exception as error:
                if _is_decision(error):
                    raise
                failure = error
            else:
                return
            now = trio.current_time()
            self._tell(name, failure)
            self._steady_at[name] = math.inf
            recent.append(now)
            if len(recent) == FAILURES_LIMIT and now - recent[0] <= FAILURES_WITHIN:
                raise DeviceFailed(name, len(recent), FAILURES_WITHIN) from failure
            in_a_row = 1 if now - began >= STEADY else in_a_row + 1
            await trio.sleep(min(FIRST_PAUSE * 2 ** (in_a_row - 1), LONGEST_PAUSE))
            self._has_failed.set()

    @trio.lowlevel.enable_ki_protection
    async def run_forgiver(self) -> None:
        """Take the warnings back of those that run well again."""
        while True:
            self._has_failed = trio.Event()
            with trio.move_on_at(min(self._steady_at.values(), default=math.inf)):
                await self._has_failed.wait()
            now = trio.current_time()
            for name in [name for name, at in self._steady_at.items() if at <= now]:
                del self._steady_at[name]
                self._health.clear(f"failed-{name}")

    def _tell(self, name: str, failure: Exception) -> None:
        self._failures[name] += 1
        log.error("%s failed and is started again", name, exc_info=failure)
        self._health.show(
            f"failed-{name}",
            f"a part of this device ({name}) failed with {type(failure).__name__} and was started again",
            "this is a mistake of pytailscale: please report it with the traceback in the log",
        )


class _Once:
    """An actor says that it has started each time it is; whoever started us is told once."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status: trio.TaskStatus[None] | None = status

    def started(self, value: None = None) -> None:
        status, self._status = self._status, None
        if status is not None:
            status.started()


def _is_decision(error: Exception) -> bool:
    """A Device ends by its own decision: a `TailscaleError`, alone or among what a nursery collected."""
    if isinstance(error, ExceptionGroup):
        return error.split(TailscaleError)[0] is not None
    return isinstance(error, TailscaleError)
