"""Small files that land together: all are written, then all are put on the disk, then all get their names.

What is synced at the same time goes to the disk in one commit of the file system; one after another, every file would
wait for one of its own. The promise to each file is that of `sink.py`: whoever is killed at whatever moment leaves the
old one or the new one under its name, and what a caller is told of has survived. One that fails fails alone. There is
no journal: of a small file nothing is resumed.

Everything blocks: one worker thread at a time, but for `sync`, which several may run at once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tailscale.files.folders import Folder, Walks
from tailscale.files.parts import Busy, Exists, Occupied, begin_writing, open_part
from tailscale.mesh.hash_cache import FileKey
from tailscale.mesh.sink import PERMISSIONS, Unequal, beside, take_name
from ts_mesh.blocks import root_of

if TYPE_CHECKING:
    from tailscale.mesh.hash_cache import HashCache
    from ts_mesh.offers import Entry

TOGETHER = 128  # files of one batch: each has a descriptor, and its folder may have another
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
FAILURES = (Busy, Occupied, Unequal, OSError)


class SmallFile(NamedTuple):
    """One that came in one piece."""

    entry: Entry
    data: bytes | memoryview
    root: bytes | None
    """What it must hash to; None to take it as it is."""
    is_inside: bool = False
    """Its folder comes later and is put on the disk then."""


class Stored(NamedTuple):
    """What became of a file that is whole and in place."""

    name: str
    """Another than it was meant to get, where that was taken and `exists` is "rename"."""
    root: bytes


class _Growing:
    """A file of a batch, under its temporary name, open in its folder."""

    def __init__(self, file: SmallFile, folder: Folder, hashes: list[bytes], root: bytes) -> None:
        self.file = file
        self.folder = folder
        self.hashes = hashes
        self.root = root
        self.name = file.entry.path.rpartition("/")[2]
        self.part, _ = beside(self.name)
        self.descriptor, status = open_part(folder, self.part)
        try:
            self._fill(status.st_size)
        except BaseException:
            self.discard()
            raise

    def _fill(self, left: int) -> None:
        """Its bytes and attributes, over so many that a killed writer left."""
        here, entry = self.descriptor, self.file.entry
        if left:
            os.ftruncate(here, 0)
        data, at = memoryview(self.file.data), 0
        while at < len(data):
            at += os.pwrite(here, data[at:], at)
        os.fchmod(here, entry.mode & PERMISSIONS)
        os.utime(here, ns=(entry.mtime_ns, entry.mtime_ns))
        begin_writing(here)

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # what was wrong with the disk has been told
            self.folder.remove(self.part)
        self.close()

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Batch:
    """`write`, `sync`, `name`, in this order; `close` where that broke off.

    `confirm` says whether a file has its name already, with that root: it was sent twice, or nobody knew it is there.
    """

    def __init__(self, top: Path, exists: Exists, cache: HashCache, confirm: Callable[[Entry, bytes], bool]) -> None:
        self._top = top
        self._exists = exists
        self._cache = cache
        self._confirm = confirm
        self._walks = Walks(make=True)
        self._files: list[_Growing | Exception] = []
        self._unsynced: deque[int] = deque()
        self.is_open = True

    def write(self, files: Sequence[SmallFile]) -> None:
        """As many of them as a batch may have and the system lets be open: the first ones."""
        for file in files[:TOGETHER]:
            try:
                grown: _Growing | Exception = self._grow(file)
                self._unsynced.append(len(self._files))
            except FAILURES as problem:
                if isinstance(problem, OSError) and problem.errno in NO_DESCRIPTORS and self._unsynced:
                    break
                grown = problem
            self._files.append(grown)

    def _grow(self, file: SmallFile) -> _Growing:
        hashes = [hashlib.sha256(file.data).digest()] if file.data else []
        root = root_of(hashes)
        if file.root not in (None, root):
            raise Unequal
        folder = self._walks.to(self._top, file.entry.path.split("/")[:-1])
        return _Growing(file, folder, hashes, root)

    def sync(self) -> None:
        """Put on the disk what is not yet, or is not being by another thread."""
        while self._unsynced:
            try:
                number = self._unsynced.popleft()
            except IndexError:
                return  # another thread took the last one
            grown = self._files[number]
            assert isinstance(grown, _Growing)
            try:
                os.fsync(grown.descriptor)
            except OSError as problem:
                grown.discard()
                self._files[number] = problem

    def name(self) -> list[Stored | Exception]:
        """Give each its name; what became of them, in order. What has its name lasts when this returns."""
        named: list[Stored | Exception] = []
        known: list[tuple[FileKey, list[bytes]]] = []
        unsynced: dict[Folder, list[int]] = {}
        for number, grown in enumerate(self._files):
            if isinstance(grown, Exception):
                named.append(grown)
                continue
            try:
                named.append(self._name(grown))
            except FAILURES as problem:
                named.append(problem)
                grown.discard()
                continue
            if grown.descriptor >= 0:
                known.append((FileKey.of(os.fstat(grown.descriptor)), grown.hashes))
                grown.close()
                if not grown.file.is_inside:
                    unsynced.setdefault(grown.folder, []).append(number)
        for folder, numbers in unsynced.items():
            try:
                folder.sync()
            except OSError as problem:
                for number in numbers:
                    named[number] = problem
        self._cache.put_many(known)
        self.close()
        return named

    def _name(self, grown: _Growing) -> Stored:
        try:
            first = self._exists if self._exists == "replace" else "refuse"
            return Stored(take_name(grown.folder, grown.part, grown.name, first), grown.root)
        except Occupied:
            if self._confirm(grown.file.entry, grown.root):
                grown.discard()
                return Stored(grown.name, grown.root)
            if self._exists != "rename":
                raise
        return Stored(take_name(grown.folder, grown.part, grown.name, self._exists), grown.root)

    def close(self) -> None:
        """Let go of all. What has not got its name is thrown away."""
        for grown in self._files:
            if isinstance(grown, _Growing) and grown.descriptor >= 0:
                grown.discard()
        self._walks.close()
        self.is_open = False
