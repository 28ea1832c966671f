"""What becomes of an actor that fails: it is counted, warned of, logged with its traceback, and started again.

Bytes from outside must never end a Device, not even where they find a mistake of ours. Only what fails again and again
takes it down, with a typed error; a `TailscaleError` is a decision, and passes. So does what a callback of the program
raised. Knows no actor.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import trio

from tailscale.errors import DeviceFailed, TailscaleError
from tailscale.runtime.bus import Bus
from tailscale.runtime.health import Health
from ts_base.errors import BadPacket
from ts_control.errors import ControlLost, NotControl, RegistrationRefused, RequestRefused
from ts_derp.errors import RelayLost, RelayUnreachable

log = logging.getLogger("tailscale")
FAILURES_LIMIT, FAILURES_WITHIN = 8, 60.0  # so many of one actor in so many seconds are a loop
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
STEADY = 30.0  # it ran so long since: no longer worth a warning
# TailscaleErrors as well, but of what somebody else did: where nobody expected one, it is a failure like any other.
OF_OTHERS = (BadPacket, ControlLost, NotControl, RegistrationRefused, RequestRefused, RelayLost, RelayUnreachable)


class CallbackFailed(Exception):
    """A function of the program's own raised `__cause__`: that is not ours to survive."""


class Start(Protocol):
    """An actor, ready to be started."""

    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[object]: ...


class SupervisionStatistics(NamedTuple):
    """How often each actor has failed."""

    failures: dict[str, int]


class Supervision:
    """One per Device."""

    def __init__(self, bus: Bus) -> None:
        self._health = Health(bus)
        self._failures: Counter[str] = Counter()
        self._steady_at: dict[str, float] = {}  # when each part that failed has run for so long that it is forgiven
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
        in_a_row, pause, failure = 0, 0.0, None
        while True:
            began = trio.current_time() + pause
            try:
                if failure is not None:
                    await trio.sleep(pause)
                await start(task_status=status)
            except BaseException as error:
                failure = self._judge(name, error, _is_decision)
            else:
                return
            now = trio.current_time()
            recent.append(now)
            if len(recent) == FAILURES_LIMIT and now - recent[0] <= FAILURES_WITHIN:
                raise DeviceFailed(name, len(recent), FAILURES_WITHIN) from failure
            in_a_row = 1 if now - began >= STEADY else in_a_row + 1
            pause = min(FIRST_PAUSE * 2 ** (in_a_row - 1), LONGEST_PAUSE)

    @trio.lowlevel.enable_ki_protection
    async def keep_running(self, name: str, run: Callable[[], Awaitable[object]]) -> None:
        """`keep` of what has nothing to get ready."""

        async def start(*, task_status: trio.TaskStatus[None]) -> None:
            await run()

        await self.keep(name, start)

    @contextmanager
    def contained(self, name: str, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """What fails inside has come to its end, and no more: one link's attempt, one answer, one measurement."""

        def passes(failure: Exception) -> bool:
            return _holds(failure, (CallbackFailed, DeviceFailed, *passing))

        try:
            yield
        except BaseException as error:
            self._judge(name, error, passes)

    def _judge(self, name: str, error: BaseException, is_decision: Callable[[Exception], bool]) -> Exception:
        """Tell of a failure. Raises what is none: decisions, cancellation, and what is beyond exceptions."""
        failure, rest = _split(error)
        if failure is None or is_decision(failure):
            raise error
        self._tell(name, failure)
        if rest is not None:
            raise rest
        return failure

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
        self._steady_at[name] = trio.current_time() + LONGEST_PAUSE + STEADY
        self._has_failed.set()
        log.error("%s failed, and goes on", name, exc_info=failure)
        self._health.show(
            f"failed-{name}",
            f"a part of this device ({name}) failed with {type(failure).__name__}, and goes on",
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


def _split(error: BaseException) -> tuple[Exception | None, BaseException | None]:
    """The failure in what was raised, and what else a nursery collected beside it."""
    if isinstance(error, Exception):
        return error, None
    if isinstance(error, BaseExceptionGroup):
        failure, rest = error.split(Exception)
        assert failure is None or isinstance(failure, Exception)
        return failure, rest
    return None, error


def _is_decision(error: Exception) -> bool:
    """A Device ends by its own decision: a `TailscaleError`, alone or among what a nursery collected."""
    return _holds(error, (TailscaleError, CallbackFailed), but=OF_OTHERS)


def _holds(error: Exception, kinds: tuple[type[Exception], ...], *, but: tuple[type[Exception], ...] = ()) -> bool:
    if isinstance(error, ExceptionGroup):
        return any(_holds(one, kinds, but=but) for one in error.exceptions)
    return isinstance(error, kinds) and not isinstance(error, but)
