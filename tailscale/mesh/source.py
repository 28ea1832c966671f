"""One file that leaves: read piece by piece, hashed on the way, watched so that no half of another version is sent.

Everything blocks: one worker thread at a time. Knows nothing of the network.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tailscale.files.pieces import PIECE
from tailscale.mesh.hash_cache import FileKey
from ts_mesh.blocks import BLOCK, Hashes, block_length, complete, count_blocks, is_same, root_of

if TYPE_CHECKING:
    from tailscale.files.folders import Folder
    from tailscale.mesh.hash_cache import HashCache
    from tailscale.mesh.tree import Item

REMEMBER_EVERY = 16  # blocks: what a killed process has to hash again
# A file may change twice within one tick of the file system's clock and look the same. Such hashes are not kept.
TICK_NS = 20_000_000


class Unreadable(Exception):
    """A file cannot be sent, or no longer; says why."""


CHANGED = "it changed while it was sent"


class Source:
    """An open file, its identity, and what is known of its blocks. `folder` is open and the source's to close."""

    def __init__(self, folder: Folder, name: str, cache: HashCache, expected: FileKey) -> None:
        self._folder = folder
        self._name = name
        self._cache = cache
        self._descriptor = -1
        self._fresh = 0  # blocks hashed since the cache was told
        self.bytes_hashed = 0
        try:
            self._descriptor = folder.open_file(name, os.O_RDONLY)
            self.key = FileKey.of(os.fstat(self._descriptor))
            if expected != self.key:
                raise Unreadable(CHANGED)
        except BaseException as problem:
            self.close()
            if isinstance(problem, OSError):
                raise Unreadable(f"it cannot be read: {problem.strerror}") from problem
            raise
        self.size = self.key.size
        self.hashes: list[bytes | None] = [None] * count_blocks(self.size)
        known = cache.get(self.key)
        if len(known) <= len(self.hashes):
            self.hashes[: len(known)] = known
        self._may_remember = is_settled(self.key)

    @classmethod
    def open(cls, item: Item, cache: HashCache) -> Source:
        """The file of an entry, if it is still the one that was found there. Raises Unreadable."""
        try:
            folder = item.folder()
        except OSError as problem:
            raise Unreadable(f"it cannot be read: {problem.strerror}") from problem
        return cls(folder, item.parts[-1], cache, item.key)

    def close(self) -> None:
        """Also when it was not sent whole: what was hashed is remembered."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._cache.bytes_hashed += self.bytes_hashed
        self._folder.close()
        self._remember()

    def read_bytes(self, start: int, end: int) -> Iterator[bytes]:
        """Any bytes, in pieces. Blocks that lie in them whole are hashed on their way."""
        at = start
        while at < end:
            block, inside = divmod(at, BLOCK)
            if not inside and at + block_length(self.size, block) <= end:
                yield from self._read_block(block)
                at += BLOCK
                continue
            length = min(PIECE - at % PIECE, end - at)
            yield self._read(at, length)
            at += length

    def hash_block(self, block: int) -> bytes:
        """From the cache, or from the disk."""
        if self.hashes[block] is None:
            for _ in self._read_block(block):
                pass
        digest = self.hashes[block]
        assert digest is not None
        return digest

    def known_root(self) -> bytes | None:
        """Without reading anything."""
        hashes = complete(self.hashes, self.size)
        return root_of(hashes) if hashes is not None else None

    def root(self) -> bytes:
        """Reads what was never hashed. Raises Unreadable unless the file is still the one that was opened."""
        hashes = [self.hash_block(block) for block in range(len(self.hashes))]
        self.check()
        return root_of(hashes)

    def check(self) -> None:
        """Raise Unreadable if the file was written to, cut, replaced or removed."""
        beside = self._folder.look(self._name)
        if beside is None or self.key != FileKey.of(beside) or self.key != FileKey.of(os.fstat(self._descriptor)):
            raise Unreadable(CHANGED)

    def _read_block(self, block: int) -> Iterator[bytes]:
        start = block * BLOCK
        hasher = hashlib.sha256() if self.hashes[block] is None else None
        for at in range(start, start + block_length(self.size, block), PIECE):
            data = self._read(at, min(PIECE, start + BLOCK - at))
            if hasher is not None:
                hasher.update(data)
                self.bytes_hashed += len(data)
            yield data
        if hasher is not None:
            self.hashes[block] = hasher.digest()
            self._fresh += 1
            if self._fresh >= REMEMBER_EVERY:
                self._remember()

    def _read(self, at: int, length: int) -> bytes:
        length = min(length, self.size - at)
        try:
            data = os.pread(self._descriptor, length, at)
        except OSError as problem:
            raise Unreadable(f"it cannot be read: {problem.strerror}") from problem
        if len(data) < length:  # it was cut
            raise Unreadable(CHANGED)
        return data

    def _remember(self) -> None:
        if self._fresh and self._may_remember:
            self._cache.put(self.key, self.hashes)
        self._fresh = 0


class Small(NamedTuple):
    """A small file in memory."""

    data: bytes | None
    """None: the hash that it was asked for is its own."""
    hashes: list[bytes]


def read_small(folder: Folder, name: str, expected: FileKey, held: Hashes, cache: HashCache) -> Small:
    """All of a file of at most one block, if it is still the one that was found there. Raises Unreadable.

    `held` is what the other side has: where the cache says that it is the same, nothing is read.
    """
    try:
        descriptor = folder.open_file(name, os.O_RDONLY)
        try:
            if FileKey.of(os.fstat(descriptor)) != expected:
                raise Unreadable(CHANGED)
            known = complete(cache.get(expected), expected.size) if held else None
            if known and is_same(known, held, 0):
                return Small(None, known)
            data = os.pread(descriptor, expected.size, 0)
            if len(data) != expected.size or FileKey.of(os.fstat(descriptor)) != expected:
                raise Unreadable(CHANGED)
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise Unreadable(f"it cannot be read: {problem.strerror}") from problem
    hashes = [hashlib.sha256(data).digest()] if data else []
    cache.bytes_hashed += len(data)
    return Small(None if hashes and is_same(hashes, held, 0) else data, hashes)


def is_settled(key: FileKey) -> bool:
    """Whether it was written long enough ago to be known again by its time."""
    return key.mtime_ns < time.time_ns() - TICK_NS
