"""Bytes between a connection and a disk, both at work at once: one piece is on its way while the next is read.

Owns the two tasks of one run of bytes. Knows neither files nor protocols.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator

import trio

PIECE = 1 << 20  # what is read or written at once
WAITING = 1  # pieces, besides the one each side has in its hands
Read = Callable[[], Awaitable[bytes]]
"""The next bytes of a body; b"" at its end."""
Send = Callable[[bytes], Awaitable[None]]


class WrongLength(Exception):
    """A body was shorter or longer than it said."""


async def from_disk(pieces: Iterator[bytes], send: Send, threads: trio.CapacityLimiter) -> None:
    """Every piece, read in a thread, to `send`. What reading raises is raised here, once what came before is sent."""
    read, ready = trio.open_memory_channel[bytes](WAITING)
    problems: list[Exception] = []

    async def fill() -> None:
        async with read:
            try:
                while (piece := await trio.to_thread.run_sync(next, pieces, None, limiter=threads)) is not None:
                    await read.send(piece)
            except trio.BrokenResourceError:
                return  # nobody takes more
            except Exception as problem:  # whatever the disk says; told to who asked
                problems.append(problem)

    async def drain() -> None:
        async with ready:
            try:
                async for piece in ready:
                    await send(piece)
            except Exception as problem:
                problems.append(problem)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        nursery.start_soon(drain)
    if problems:
        raise problems[0]


async def to_disk(
    read: Read, write: Callable[[list[bytes]], None], length: int | None, threads: trio.CapacityLimiter
) -> None:
    """All that `read` yields to `write`, in a thread. Raises WrongLength unless it is `length` bytes; all is kept.

    None is any length. What came before a connection broke is written as well.
    """
    full, ready = trio.open_memory_channel[list[bytes]](WAITING)
    problems: list[Exception] = []
    left = math.inf if length is None else length

    async def fill() -> None:
        nonlocal left
        async with full:
            pieces: list[bytes] = []
            size = 0
            try:
                while left >= 0 and (data := await read()):
                    left -= len(data)
                    pieces.append(data)
                    size += len(data)
                    if left >= 0 and (size >= PIECE or not left):
                        await full.send(pieces)
                        pieces, size = [], 0
                if pieces and left >= 0:
                    await full.send(pieces)
            except trio.BrokenResourceError as problem:
                if not problems:  # the connection's, not the disk's
                    problems.append(problem)
                    if pieces and left >= 0:
                        with contextlib.suppress(trio.BrokenResourceError):
                            await full.send(pieces)
            except Exception as problem:
                problems.append(problem)

    async def drain() -> None:
        async with ready:
            async for pieces in ready:
                try:
                    await trio.to_thread.run_sync(write, pieces, limiter=threads)
                except Exception as problem:
                    problems.append(problem)
                    return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        nursery.start_soon(drain)
    if problems:
        raise problems[0]
    if left and length is not None:
        raise WrongLength


async def all_of(*works: Callable[[], Awaitable[None]]) -> None:
    """Side by side. The first that fails ends the others, and what it raised is raised, in no group."""
    problems: list[Exception] = []

    async def run(work: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await work()
        except Exception as problem:
            problems.append(problem)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for work in works:
            nursery.start_soon(run, work, nursery.cancel_scope)
    if problems:
        raise problems[0]
