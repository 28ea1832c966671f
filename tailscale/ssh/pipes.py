"""Bytes between a session's handler and the thread that speaks SSH: bounded, and waited for by either side in its way.

A `Pipe` may be touched from any thread. Who waits on it leaves a call that wakes him; which loop that is, if any, is
his own affair. Owns the bound. Refuses to know channels.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Protocol

Wake = Callable[[], object]
BOUND = 256 << 10  # bytes in a pipe that nobody has taken; a writer who may wait does so from here on
LONGEST_LINE = 1 << 20


class Waiter(Protocol):
    """One wait of a coroutine."""

    def set(self) -> None:
        """From any thread."""

    def wait(self) -> Awaitable[object]: ...


class Pipe:
    """One direction."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data = bytearray()
        self._is_ended = False
        self._problem: Exception | None = None
        self._waiting: list[Wake] = []

    def put(self, data: bytes) -> None:
        """Whoever may wait asks `is_full` before."""
        with self._lock:
            if self._problem is not None:
                raise self._problem
            if self._is_ended:
                raise BrokenPipeError("this stream has been ended")
            self._data += data
        self._wake()

    def take(self, most: int) -> bytes | None:
        """What is there; b"" at the end, None while there is nothing yet."""
        with self._lock:
            if self._data:
                taken = bytes(self._data[:most])
                del self._data[:most]
            elif self._is_ended or self._problem is not None:
                return b""
            else:
                return None
        self._wake()
        return taken

    def take_line(self) -> bytes | None:
        """Up to and with a line break; the rest at the end; None while it is not whole."""
        with self._lock:
            at = self._data.find(b"\n") + 1
            is_last = self._is_ended or self._problem is not None or len(self._data) >= LONGEST_LINE
        if at:
            return self.take(at)
        return self.take(LONGEST_LINE) if is_last else None

    def end(self) -> None:
        """Nothing more is put in; what is there can be taken."""
        self._is_ended = True
        self._wake()

    def fail(self, problem: Exception) -> None:
        """The other side is gone: what is put in from now on is an error."""
        self._problem = problem
        self._wake()

    @property
    def is_full(self) -> bool:
        if self._problem is not None:
            raise self._problem
        return len(self._data) > BOUND

    @property
    def is_empty(self) -> bool:
        return not self._data

    @property
    def is_line_due(self) -> bool:
        """Whether what is there must be read as it is: its line would be longer than a pipe holds."""
        return len(self._data) > BOUND

    def on_change(self, wake: Wake) -> None:
        """Call this once, when anything has changed since."""
        self._waiting.append(wake)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()


class Reader:
    """What the client sends. Read it as a trio stream, as asyncio's, or line by line with `async for`."""

    def __init__(self, pipe: Pipe, waiter: Callable[[], Waiter]) -> None:
        self._pipe, self._waiter = pipe, waiter

    async def read(self, most: int = -1) -> bytes:
        """At most so many bytes, at least one; b"" at the end. Without a number: everything until the end."""
        if most >= 0:
            return await self._next(lambda: self._pipe.take(most)) if most else b""
        whole = bytearray()
        while piece := await self.receive_some():
            whole += piece
        return bytes(whole)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """At least one byte, or b"" when the client has finished sending."""
        return await self._next(lambda: self._pipe.take(max_bytes or BOUND))

    async def readline(self) -> bytes:
        """A line with its break; b"" at the end."""
        return await self._next(self._line)

    def _line(self) -> bytes | None:
        line = self._pipe.take_line()
        return self._pipe.take(BOUND) if line is None and self._pipe.is_line_due else line

    async def _next(self, take: Callable[[], bytes | None]) -> bytes:
        while True:
            waiter = self._waiter()
            self._pipe.on_change(waiter.set)
            if (data := take()) is not None:
                return data
            await waiter.wait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line


class Writer:
    """What the client is shown. Write to it as to a trio stream, or as to asyncio's."""

    def __init__(self, pipe: Pipe, waiter: Callable[[], Waiter]) -> None:
        self._pipe, self._waiter = pipe, waiter

    def write(self, data: bytes | str) -> None:
        """Without waiting; `await drain()` now and then, or a slow client makes it grow."""
        self._pipe.put(data.encode() if isinstance(data, str) else bytes(data))

    async def drain(self) -> None:
        """Until there is room for more. OSError when the client has gone."""
        while True:
            waiter = self._waiter()
            self._pipe.on_change(waiter.set)
            if not self._pipe.is_full:
                return
            await waiter.wait()

    async def send_all(self, data: bytes | str) -> None:
        """Write, and wait until there is room for more."""
        self.write(data)
        await self.drain()

    def write_eof(self) -> None:
        """Nothing more is written here."""
        self._pipe.end()

    async def send_eof(self) -> None:
        self._pipe.end()


class SyncReader:
    """What the client sends, for a handler in a thread."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def read(self, most: int = -1) -> bytes:
        """At most so many bytes, at least one; b"" at the end. Without a number: everything until the end."""
        if most >= 0:
            return self._next(lambda: self._pipe.take(most)) if most else b""
        whole = bytearray()
        while piece := self._next(lambda: self._pipe.take(BOUND)):
            whole += piece
        return bytes(whole)

    def readline(self) -> bytes:
        """A line with its break; b"" at the end."""
        return self._next(self._line)

    def _line(self) -> bytes | None:
        line = self._pipe.take_line()
        return self._pipe.take(BOUND) if line is None and self._pipe.is_line_due else line

    def _next(self, take: Callable[[], bytes | None]) -> bytes:
        while True:
            changed = threading.Event()
            self._pipe.on_change(changed.set)
            if (data := take()) is not None:
                return data
            changed.wait()

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line


class SyncWriter:
    """What the client is shown, for a handler in a thread."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def write(self, data: bytes | str) -> int:
        """All of it; waits while a slow client has much to take. OSError when the client has gone."""
        piece = data.encode() if isinstance(data, str) else bytes(data)
        self._pipe.put(piece)
        while True:
            changed = threading.Event()
            self._pipe.on_change(changed.set)
            if not self._pipe.is_full:
                return len(piece)
            changed.wait()

    def flush(self) -> None:
        """What is written is on its way already."""

    def close(self) -> None:
        """Nothing more is written here."""
        self._pipe.end()
