"""What is sent: a file of this disk, or bytes that come from elsewhere. Each finds out how much of it is there already.

Owns the reading. Refuses to know who takes it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import trio

from tailscale._private_files import CAREFULLY
from tailscale.files.pieces import PIECE, from_disk
from tailscale.taildrop.wire import Block

Send = Callable[[bytes], Awaitable[None]]


class Changed(Exception):
    """A file cannot be sent, or no longer; says why."""


class Outgoing(Protocol):
    """One file that is sent. `size` is None where it is known only at the end."""

    name: str
    size: int | None
    can_begin_again: bool

    async def match(self, blocks: Sequence[Block]) -> int:
        """Compare with the next blocks of the other side: the bytes of those, from the first on, that are equal."""
        ...

    async def send_rest(self, send: Send) -> None:
        """All that did not match, and a check that what was sent is one file and not halves of two."""
        ...

    async def rewind(self) -> None:
        """What `match` has compared is forgotten."""
        ...

    async def close(self) -> None: ...


class FileOut:
    """A file of this disk."""

    can_begin_again = True

    def __init__(self, path: Path, name: str, threads: trio.CapacityLimiter) -> None:
        self.name = name
        self._threads = threads
        self._at = 0
        try:
            self._descriptor = os.open(path, os.O_RDONLY | (CAREFULLY & ~getattr(os, "O_NOFOLLOW", 0)))
        except OSError as problem:
            raise Changed(f"it cannot be read: {problem.strerror}") from problem
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise Changed("it is no file: Taildrop sends files only" if not stat.S_ISDIR(status.st_mode) else A_FOLDER)
        self.size: int | None = status.st_size
        self._length = status.st_size
        self._seen = _identity(status)

    async def match(self, blocks: Sequence[Block]) -> int:
        return await trio.to_thread.run_sync(self._match, blocks, limiter=self._threads)

    def _match(self, blocks: Sequence[Block]) -> int:
        matched = 0
        for block in blocks:
            data = os.pread(self._descriptor, block.size, self._at)
            if not block.size or len(data) < block.size or hashlib.sha256(data).digest() != block.digest:
                break
            matched += block.size
            self._at += block.size
        return matched

    async def rewind(self) -> None:
        self._at = 0
        await trio.lowlevel.checkpoint()

    async def send_rest(self, send: Send) -> None:
        await from_disk(self._pieces(), send, self._threads)

    def _pieces(self) -> Iterator[bytes]:
        """In a thread. The last piece is given away only if the file is still the same: without it, there is none."""
        at = self._at
        while at < self._length:
            try:
                data = os.pread(self._descriptor, min(PIECE, self._length - at), at)
            except OSError as problem:
                raise Changed(f"it cannot be read: {problem.strerror}") from problem
            at += len(data)
            if not data or (at >= self._length and _identity(os.fstat(self._descriptor)) != self._seen):
                raise Changed("it changed while it was sent")
            yield data

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


A_FOLDER = "it is a folder: Taildrop sends files only (make an archive of it, or use a mesh)"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


class StreamOut:
    """Bytes that come once, from wherever: what was compared and is not equal is sent from a buffer."""

    can_begin_again = False

    def __init__(self, pieces: AsyncIterator[bytes], name: str, size: int | None) -> None:
        self.name, self.size = name, size
        self._pieces = pieces
        self._held = bytearray()
        self._is_read = False

    async def _fill(self, size: int) -> None:
        while len(self._held) < size and not self._is_read:
            piece = await anext(self._pieces, b"")
            self._is_read = not piece
            self._held += piece

    async def match(self, blocks: Sequence[Block]) -> int:
        matched = 0
        for block in blocks:
            await self._fill(block.size)
            part = bytes(self._held[: block.size])
            if not block.size or len(part) < block.size or hashlib.sha256(part).digest() != block.digest:
                break
            matched += block.size
            del self._held[: block.size]
        return matched

    async def rewind(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_rest(self, send: Send) -> None:
        while self._held or not self._is_read:
            await self._fill(1)
            held, self._held = bytes(self._held), bytearray()
            if held:
                await send(held)

    async def close(self) -> None:
        """Whoever makes the bytes hears that no more are wanted."""
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()
        await trio.lowlevel.checkpoint()
