"""What a user holds of files under way: how far a Transfer is, and what came of it.

Owns the values and the waiting. Refuses to know protocols and disks: a Transfer is given something to run.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import trio

from tailscale.errors import ConnectionRefused, ConnectionTimedOut, NameNotFound, NoRoute, PeerKeyExpired, PeerOffline
from tailscale.files.errors import TransferFailed, TransferRefused

if TYPE_CHECKING:
    from types import TracebackType

EVERY = 0.1  # seconds between two Progress of one reader
DIALS = (ConnectionRefused, ConnectionTimedOut, NameNotFound, NoRoute, PeerOffline, PeerKeyExpired)
KEPT = (TransferFailed, TransferRefused, *DIALS)
NAMES_TOLD = 8  # of the files that failed, in one sentence


class Skipped(NamedTuple):
    """Something that was not sent, and why."""

    path: str
    why: str


class Progress(NamedTuple):
    """How far a transfer is."""

    name: str
    """The file under way."""
    done: int
    """Bytes of the whole transfer that are there, whether sent now or before."""
    total: int
    rate: float
    """Bytes a second since it began, without those that were there before."""

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        return self.done / self.total if self.total else 1.0


class TransferReport(NamedTuple):
    """What came of a transfer."""

    files: int
    """That are whole at the other end now."""
    bytes_sent: int
    """Of files, over the wire, in this transfer."""
    bytes_skipped: int
    """That were there already."""
    skipped: tuple[Skipped, ...] = ()
    """Links, devices and names that no other system can keep: not sent, and why."""


@dataclass
class Tally:
    """What the tasks of one transfer write down, and its Transfer reads."""

    now: Callable[[], float] = field(default_factory=lambda: trio.lowlevel.current_clock().current_time)
    """Asked from other threads as well: how far it is may be looked at from any."""
    name: str = ""
    total: int = 0
    files: int = 0
    sent: int = 0
    there: int = 0
    lost: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    began: float = math.nan
    changed: trio.Event = field(default_factory=trio.Event)
    on_sent: Callable[[int], None] | None = None

    def tell_of_sent(self, on_sent: Callable[[int], None]) -> None:
        """Have somebody told of bytes over the wire: who counts those of all transfers."""
        self.on_sent = on_sent

    def begin(self, total: int) -> None:
        self.total, self.began = total, self.now()

    def grow(self, count: int) -> None:
        """There is more than was known."""
        self.total += count

    def add_sent(self, name: str, count: int) -> None:
        self.name = name
        self.sent += count
        self.changed.set()
        if self.on_sent is not None:
            self.on_sent(count)

    def add_there(self, name: str, count: int) -> None:
        self.name = name
        self.there += count
        self.changed.set()

    def add_lost(self, count: int) -> None:
        """Bytes that were sent and did not get there: they are sent again."""
        self.lost += count

    def fail(self, name: str, why: str) -> None:
        """The first reason is the cause; what follows is its echo."""
        self.failed.setdefault(name, why)

    def progress(self) -> Progress:
        elapsed = self.now() - self.began
        rate = self.sent / elapsed if elapsed > 0 else 0.0
        return Progress(self.name, min(self.sent + self.there - self.lost, self.total), self.total, rate)

    def report(self) -> TransferReport:
        return TransferReport(self.files, self.sent, self.there, tuple(self.skipped))


class Transfer:
    """Files under way to or from one peer. Leaving the block waits for the end; leaving it by an error breaks it off.

    ```python
    async with taildrop.send(device, "phone", "a.jpg", "b.pdf") as transfer:
        async for progress in transfer:
            print(f"{progress.fraction:.0%} at {progress.name}")
    print(transfer.result.bytes_sent)
    ```

    `report = await ...` of the same call does it without looking. Raises `TransferRefused`, `TransferFailed`, or
    what a dial raises; the same call again goes on where this one broke off.
    """

    FAILURE: ClassVar[type[TransferFailed]] = TransferFailed
    CARRIER: ClassVar[str] = "device"
    KEPT: ClassVar[tuple[type[Exception], ...]] = ()
    """Errors that say what happened better than a TransferFailed around them; refusals and dials always do."""

    def __init__(
        self,
        what: str,
        work: Callable[[Tally], Awaitable[None]],
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._what = what
        self._work = work
        self._spawn = spawn
        self._tally = Tally()
        self._scope = trio.CancelScope()
        self._is_begun = False
        self._ended = trio.Event()
        self._problem: BaseException | None = None
        self._told_at = -math.inf
        self._is_last_told = False

    async def __aenter__(self) -> Self:
        if self._is_begun:
            raise RuntimeError("a Transfer is entered once: make another, it goes on where this one was")
        self._is_begun = True
        await trio.lowlevel.checkpoint()
        self._spawn(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.cancel()
        try:
            await self._ended.wait()
        except trio.Cancelled:
            self.cancel()
            with trio.CancelScope(shield=True):
                await self._ended.wait()  # as long as a disk takes: files are let go of before we go
            raise
        if error is None and self._problem is not None:
            raise self._problem

    def __await__(self) -> Generator[Any, Any, TransferReport]:
        return self._finished().__await__()

    async def _finished(self) -> TransferReport:
        async with self:
            pass
        return self.result

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Progress:
        """The next Progress: at most ten a second, and the last one always."""
        if not self._is_begun:
            raise RuntimeError("use it inside `async with`")
        await trio.lowlevel.checkpoint()
        with trio.move_on_at(self._told_at + EVERY):
            await self._ended.wait()
        while not (self._ended.is_set() or self._tally.changed.is_set()):
            await self._until_news()
        if self._ended.is_set():
            if self._is_last_told or self._problem is not None:
                raise StopAsyncIteration  # a failure is raised where the block is left
            self._is_last_told = True
        self._tally.changed = trio.Event()
        self._told_at = trio.current_time()
        return self._tally.progress()

    async def _until_news(self) -> None:
        """Something moved, or it is over: `_run` sets both then."""
        await self._tally.changed.wait()

    def cancel(self) -> None:
        """Break it off. What has arrived is kept and not sent again; leaving the block then raises TransferFailed."""
        self._scope.cancel()

    @property
    def result(self) -> TransferReport:
        """What came of it. Raises what it failed with, and RuntimeError before the end."""
        if self._problem is not None:
            raise self._problem
        if not self._ended.is_set():
            raise RuntimeError("it is not over: leave the `async with` first")
        return self._tally.report()

    @property
    def failed(self) -> Mapping[str, str]:
        """The files that did not arrive so far, and why."""
        return dict(self._tally.failed)

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._work(self._tally)
            if self._scope.cancelled_caught:
                self._problem = self.FAILURE(f"{self._what} was broken off here; the same again goes on from there")
            elif self._tally.failed:
                self._problem = self.FAILURE(self._sentence(), self._tally.failed)
        except Exception as problem:  # whatever it is, it is told to who waits, and ends nothing else
            self._problem = self._named(problem)
        except BaseException:  # cancelled, alone or in a group
            self._problem = self.FAILURE(f"{self._what} ended with its {self.CARRIER}")
            raise
        finally:
            self._ended.set()
            self._tally.changed.set()

    def _named(self, problem: Exception) -> Exception:
        """What breaks under a transfer fails the transfer; refusals and dials keep their own names."""
        if not isinstance(problem, (OSError, trio.BrokenResourceError)) or isinstance(problem, (*KEPT, *self.KEPT)):
            return problem
        failure = self.FAILURE(f"{self._what} broke off: {problem}. The same again goes on from there", self.failed)
        failure.__cause__ = problem
        return failure

    def _sentence(self) -> str:
        names = [f"{name} ({why})" for name, why in list(self._tally.failed.items())[:NAMES_TOLD]]
        more = len(self._tally.failed) - len(names)
        return f"{self._what} failed for {', '.join(names)}{f' and {more} more' if more else ''}"
