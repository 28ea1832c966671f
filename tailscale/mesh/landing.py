"""Where files land: a folder of this disk, what is there already, and how bytes from a connection get into a file.

The same for what is pushed to us and for what we pull. Owns no connection: it is given something to read from.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tailscale.files.folders import Folder, walk
from tailscale.files.parts import Busy, Exists, Occupied
from tailscale.files.pieces import Read, WrongLength, all_of, to_disk
from tailscale.mesh.batch import Batch, SmallFile, Stored
from tailscale.mesh.hash_cache import FileKey
from tailscale.mesh.sink import PERMISSIONS, Missing, Sink, Unequal, beside, hash_file
from ts_mesh.blocks import BLOCK, Hashes, JournalKey, complete, root_of

if TYPE_CHECKING:
    from tailscale.mesh.hash_cache import HashCache
    from ts_mesh.offers import Entry

WHOLE = 1 << 20  # a file up to so many bytes is taken into memory and written at once
BATCHES = 2  # of small files, at once: others receive meanwhile
SYNCING = 4  # threads that put a batch on the disk: what they wait for, the disk does at once
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Landing:
    """One folder that files arrive in. What has no `async` blocks: call it in a worker thread."""

    def __init__(self, top: Path, exists: Exists, cache: HashCache, threads: trio.CapacityLimiter) -> None:
        self.top = top
        self.exists = exists
        self._cache = cache
        self._threads = threads
        self._batches = trio.CapacityLimiter(BATCHES)

    def prepare(self) -> int:
        """Make the folder itself. How many bytes there is room for."""
        self.top.mkdir(parents=True, exist_ok=True)
        with Folder.open(self.top) as folder:
            return folder.free_bytes()

    def present(self, owner: str, entry: Entry) -> Hashes:
        """The hashes of what is there: of the file itself if it looks the same, else of what was left of it.

        Raises Occupied where something else has the name and must keep it.
        """
        *parts, name = entry.path.split("/")
        try:
            folder = walk(self.top, parts)
        except FileNotFoundError:
            return []
        with folder:
            status = folder.look(name)
            if status is not None:
                if _looks_same(status, entry):
                    _clear(folder, name, status)
                    return self._hashes_of(folder, name, status)
                if self.exists == "refuse" or (self.exists == "replace" and stat.S_ISDIR(status.st_mode)):
                    raise Occupied
        if entry.size <= BLOCK:
            return []
        try:
            sink = self.open(owner, entry, resume_only=True)
        except (Busy, FileNotFoundError):
            return []
        sink.close()
        return sink.hashes

    def is_in_place(self, entry: Entry) -> bool:
        """Whether the file itself looks the same; what was left of it does not count, were it all of it."""
        *parts, name = entry.path.split("/")
        try:
            folder = walk(self.top, parts)
        except FileNotFoundError:
            return False
        with folder:
            status = folder.look(name)
            return status is not None and _looks_same(status, entry)

    def open(self, owner: str, entry: Entry, *, resume_only: bool = False) -> Sink:
        """Where the bytes of a file go. `resume_only`: FileNotFoundError unless something was left of it."""
        *parts, name = entry.path.split("/")
        key = JournalKey(owner, entry.path, entry.size, entry.mtime_ns)
        folder = walk(self.top, parts, make=not resume_only)
        return Sink(folder, name, key, entry.mode, self.exists, resume_only=resume_only)

    def store(self, file: SmallFile) -> Stored:
        """One small file. Raises what went wrong with it."""
        batch = self.batch()
        try:
            batch.write([file])
            batch.sync()
            (became,) = batch.name()
        finally:
            batch.close()
        if isinstance(became, Exception):
            raise became
        return became

    async def store_many(self, files: Sequence[SmallFile]) -> list[Stored | Exception]:
        """Many small files, a batch at a time; what became of each."""
        became: list[Stored | Exception] = []
        while len(became) < len(files):
            async with self._batches:
                became += await self._store_batch(files[len(became) :])
        return became

    async def _store_batch(self, files: Sequence[SmallFile]) -> list[Stored | Exception]:
        """The first of them: as many as one batch takes."""
        in_thread = partial(trio.to_thread.run_sync, limiter=self._threads)
        batch = self.batch()
        try:
            await in_thread(batch.write, files)
            await all_of(*[partial(in_thread, batch.sync)] * min(SYNCING, len(files)))
            return await in_thread(batch.name)
        finally:
            if batch.is_open:
                with trio.CancelScope(shield=True):
                    await in_thread(batch.close)

    def batch(self) -> Batch:
        """An empty one, of this folder."""
        return Batch(self.top, self.exists, self._cache, self._confirm)

    def complete(self, owner: str, entry: Entry, root: bytes | None) -> Stored:
        """A file of which nothing was missing: it has its name already, or all its blocks."""
        if root is not None and self._confirm(entry, root):
            return Stored(entry.path.rpartition("/")[2], root)
        sink = self.open(owner, entry)
        try:
            return self.finish(sink, entry, root)
        finally:
            sink.close()

    def finish(self, sink: Sink, entry: Entry, root: bytes | None) -> Stored:
        """Raises Missing, Unequal or Occupied."""
        found = sink.compare(root)
        if self._confirm(entry, found):  # it was sent twice, because an answer was lost or nobody knew that it is there
            sink.discard()
            return Stored(sink.name, found)
        return Stored(sink.take_place(self._cache), found)

    def _confirm(self, entry: Entry, root: bytes) -> bool:
        """Whether the file has its name already. Its permissions are then those that are asked for."""
        *parts, name = entry.path.split("/")
        try:
            folder = walk(self.top, parts)
        except FileNotFoundError:
            return False
        with folder:
            status = folder.look(name)
            if status is None or not _looks_same(status, entry):
                return False
            if root_of(self._hashes_of(folder, name, status)) != root:
                return False
            if stat.S_IMODE(status.st_mode) != entry.mode & PERMISSIONS:
                folder.set_mode(name, entry.mode & PERMISSIONS)
            return True

    def make_folder(self, entry: Entry) -> None:
        """With its own attributes, once nothing more is put into it."""
        with walk(self.top, entry.path.split("/"), make=True) as folder:
            folder.set_attributes(entry.mode & PERMISSIONS, entry.mtime_ns)
            folder.sync()

    async def pump(self, read: Read, sink: Sink, start: int, end: int) -> None:
        """Everything that `read` yields, into the run from `start` to `end`. Raises WrongLength."""
        sink.begin_run(start)
        await to_disk(read, sink.write, end - start, self._threads)

    def _hashes_of(self, folder: Folder, name: str, status: os.stat_result) -> list[bytes]:
        """Of a file that has its name already."""
        key = FileKey.of(status)
        hashes = complete(self._cache.get(key), key.size)
        if hashes is None:
            hashes = hash_file(folder, name)
            self._cache.bytes_hashed += key.size
            self._cache.put(key, hashes)
        return hashes


def _clear(folder: Folder, name: str, status: os.stat_result) -> None:
    """What a writer that was killed at the very end left beside a file that has its name."""
    part, journal = beside(name)
    left = folder.look(part)
    if left is None or left.st_ino == status.st_ino:
        folder.remove(journal)
        folder.remove(part)


def _looks_same(status: os.stat_result, entry: Entry) -> bool:
    """As rsync looks at it; whether it is the same, its hashes say."""
    return stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns)


async def read_whole(read: Read, size: int) -> list[bytes]:
    """A body of exactly so many bytes."""
    pieces = []
    while data := await read():
        pieces.append(data)
        size -= len(data)
        if size < 0:
            break
    if size:
        raise WrongLength
    return pieces


def why(problem: Exception) -> str:
    """The protocol's word for what the disk or the file objects to."""
    match problem:
        case Busy():
            return "busy"
        case Occupied():
            return "exists"
        case Unequal():
            return "root"
        case Missing():
            return "blocks"
        case WrongLength():
            return "length"
        case OSError() if problem.errno in FULL:
            return "no-space"
        case PermissionError() | NotADirectoryError():
            return "not-allowed"
        case OSError() if problem.errno in (errno.EROFS, errno.ELOOP):
            return "not-allowed"
    return "disk"
