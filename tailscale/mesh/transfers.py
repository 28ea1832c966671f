"""What a user holds of files under way: what an Inbox takes, how far a Transfer is, and what came of it.

Owns the values and the waiting. Refuses to know protocols and disks: a Transfer is given something to run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import trio

from tailscale.errors import ConnectionRefused, ConnectionTimedOut, NoRoute, PeerKeyExpired, PeerOffline
from tailscale.mesh.errors import PeerGone, TransferFailed, TransferRefused
from tailscale.mesh.tree import Skipped

if TYPE_CHECKING:
    from types import TracebackType

EVERY = 0.1  # seconds between two Progress of one reader
DIALS = (ConnectionRefused, ConnectionTimedOut, NoRoute, PeerOffline, PeerKeyExpired)
KEEP = (TransferFailed, TransferRefused, PeerGone, *DIALS)
NAMES_TOLD = 8  # of the files that failed, in one sentence


@dataclass(frozen=True)
class Offer:
    """Files that a peer wants to send: what `Inbox(accept=...)` is asked about."""

    sender: Any
    """The `MeshPeer`; who it is was proven by the tailnet."""
    paths: tuple[str, ...]
    """Of every file, below the inbox; always with `/`."""
    total: int
    """Bytes of all files."""


Judge = Callable[[Offer], bool | Awaitable[bool]]


class Inbox:
    """What files may arrive, and where they go: a pushed folder `tree/` lands as `folder/tree/`.

    ```python
    inbox = Inbox("incoming", accept=lambda offer: offer.sender.name == "laptop", largest=10 << 30)
    ```

    - `accept`: True, or a callable (sync or async) that looks at the `Offer`; nothing arrives by default.
    - `largest`: bytes of one offer; None for what the disk has room for.
    - `exists`: a file of the same name is a reason to refuse, is replaced at once by the whole new one, or stays
      while the new one becomes `name (2)`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        accept: bool | Judge = False,
        largest: int | None = None,
        exists: Literal["refuse", "replace", "rename"] = "refuse",
    ) -> None:
        if exists not in ("refuse", "replace", "rename"):
            raise ValueError(f"exists={exists!r}: it is refuse, replace or rename")
        self.folder = Path(folder).expanduser().absolute()
        self.accept = accept
        self.largest = largest
        self.exists = exists

    def __repr__(self) -> str:
        return f"Inbox({os.fspath(self.folder)!r}, exists={self.exists!r})"


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
    skipped: list[Skipped] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    began: float = math.nan
    changed: trio.Event = field(default_factory=trio.Event)
    on_sent: Callable[[int], None] | None = None
    """Told of bytes over the wire, by whoever counts those of all transfers."""

    def begin(self, total: int) -> None:
        self.total, self.began = total, self.now()

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

    def fail(self, name: str, why: str) -> None:
        """The first reason is the cause; what follows is its echo."""
        self.failed.setdefault(name, why)

    def progress(self) -> Progress:
        elapsed = self.now() - self.began
        rate = self.sent / elapsed if elapsed > 0 else 0.0
        return Progress(self.name, min(self.sent + self.there, self.total), self.total, rate)

    def report(self) -> TransferReport:
        return TransferReport(self.files, self.sent, self.there, tuple(self.skipped))


class Transfer:
    """Files under way to or from one peer. Leaving the block waits for the end; leaving it by an error breaks it off.

    ```python
    async with bob.push("thesis/", "photo.jpg") as transfer:
        async for progress in transfer:
            print(f"{progress.fraction:.0%} at {progress.name}")
    print(transfer.result.bytes_sent)
    ```

    `report = await bob.push("thesis/")` does the same without looking. Raises `TransferRefused`, `TransferFailed`, or
    what a dial raises; the same call again goes on where this one broke off.
    """

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
            raise RuntimeError("a Transfer is entered once: push or pull again, it goes on where it was")
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
                self._problem = TransferFailed(f"{self._what} was broken off here; the same again goes on from there")
            elif self._tally.failed:
                self._problem = TransferFailed(self._sentence(), self._tally.failed)
        except Exception as problem:  # whatever it is, it is told to who waits, and ends nothing else
            self._problem = self._named(problem)
        except BaseException:  # cancelled, alone or in a group
            self._problem = TransferFailed(f"{self._what} ended with its mesh")
            raise
        finally:
            self._ended.set()
            self._tally.changed.set()

    def _named(self, problem: Exception) -> Exception:
        """What breaks under a transfer fails the transfer; refusals and dials keep their own names."""
        if not isinstance(problem, (OSError, trio.BrokenResourceError)) or isinstance(problem, KEEP):
            return problem
        failure = TransferFailed(f"{self._what} broke off: {problem}. The same again goes on from there", self.failed)
        failure.__cause__ = problem
        return failure

    def _sentence(self) -> str:
        names = [f"{name} ({why})" for name, why in list(self._tally.failed.items())[:NAMES_TOLD]]
        more = len(self._tally.failed) - len(names)
        return f"{self._what} failed for {', '.join(names)}{f' and {more} more' if more else ''}"
