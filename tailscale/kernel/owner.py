"""Whether a Device has a TUN device, and the task that it lives in.

Owns that there is one at most. What it does is `life.py`, which is read when somebody wants one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from tailscale.errors import TunFailed, TunHeld
from tailscale.runtime.health import Health

if TYPE_CHECKING:
    from tailscale.tun_options import TunOptions, TunStatus

log = logging.getLogger("tailscale.tun")
ENDED = "tun-ended"


class Life(Protocol):
    """One TUN device."""

    @property
    def options(self) -> TunOptions: ...
    def status(self) -> TunStatus: ...
    async def run(self, *, task_status: trio.TaskStatus[None]) -> None: ...


class TunOwner:
    """One per Device."""

    def __init__(self, make: Callable[[TunOptions], Life], health: Health) -> None:
        self._make, self._health = make, health
        self._life: Life | None = None
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        self._problem: TunFailed | None = None

    def status(self) -> TunStatus | None:
        return self._life.status() if self._life is not None else None

    async def up(self, options: TunOptions, nursery: trio.Nursery) -> None:
        """Returns when the kernel has all it needs; TunFailed when it cannot, and then it has nothing."""
        if self._life is not None:
            raise TunHeld(self._life.options.name, os.getpid())
        life = self._life = self._make(options)
        self._scope, self._ended, self._problem = trio.CancelScope(), trio.Event(), None
        self._health.clear(ENDED)
        try:
            await nursery.start(self._run, life, name="tun")
        except BaseException:
            self._life = None
            raise
        log.info("%s is up", options.name)

    async def down(self) -> None:
        """Returns when everything is as it was before; at once where there is none."""
        self._scope.cancel()
        if self._life is not None:
            await self._ended.wait()
        await trio.lowlevel.checkpoint()

    async def wait(self) -> None:
        """Until it is down. TunFailed where nobody asked for that."""
        if self._life is not None:
            await self._ended.wait()
        await trio.lowlevel.checkpoint()
        if self._problem is not None:
            raise self._problem

    @trio.lowlevel.enable_ki_protection
    async def _run(self, life: Life, *, task_status: trio.TaskStatus[None]) -> None:
        """What ends it ends no Device; while it starts, it is whoever asked that hears of it."""
        starting = Starting(task_status)
        try:
            with self._scope:
                await life.run(task_status=starting)
        except TunFailed as failure:
            if not starting.has_started:
                raise
            self._tell(life.options.name, failure)
        except Exception as mistake:
            if not starting.has_started:
                raise
            log.exception("%s met an exception that nobody expected", life.options.name)
            self._tell(life.options.name, TunFailed(f"a mistake of pytailscale: {type(mistake).__name__}"))
        finally:
            self._life = None
            self._ended.set()

    def _tell(self, name: str, failure: TunFailed) -> None:
        self._problem = failure
        log.warning("%s is down: %s", name, failure)
        self._health.show(ENDED, f"the TUN device {name} has ended: {failure}", "pytailscale tun up")


class Starting:
    """A task's word that it has started, and the memory of it."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status
        self.has_started = False

    def started(self, value: None = None) -> None:
        self.has_started = True
        self._task_status.started(value)
