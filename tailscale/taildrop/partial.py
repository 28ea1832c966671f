"""One file that arrives: it grows hidden beside its place, and gets its name when it is whole and on the disk.

Whoever is killed at whatever moment leaves nothing under the name, or all of it. What broke off is kept for an hour, so
that its sender can go on from the last byte that both have: it asks for hashes of what is here, and compares.
Everything blocks: one worker thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from tailscale.files.folders import Folder
from tailscale.files.parts import Busy, Exists, Occupied, begin_writing, open_part
from tailscale.taildrop.names import is_partial, partial_name, renamed
from tailscale.taildrop.wire import BLOCK, encode_block

SPARE = 16 << 20  # bytes of a disk that no file may take
NAMES_TRIED = 1000
BEGIN_EVERY = 8 << 20  # bytes after which the disk is asked to begin: what is left to sync at the end is little
READ = 1 << 20
KEPT_FOR = 3600.0  # seconds that an unfinished file is kept after its last byte
KEPT_MOST = 64  # unfinished files of all senders


class BeyondEnd(Exception):
    """A sender wants to go on behind what is here."""


class TooLong(Exception):
    """More came than may."""


class Whole(NamedTuple):
    """A file that has its name."""

    name: str
    size: int
    is_new: bool
    """False where the very same file was there already."""


class Partial:
    """Open until `close`. `most`: bytes that it may become."""

    def __init__(self, top: Path, name: str, key: str, *, most: int | None = None) -> None:
        self.name = name
        self._part = partial_name(name, key)
        self._most = most
        self._descriptor = -1
        self._folder = Folder.open(top)
        try:
            self._descriptor, status = open_part(self._folder, self._part)
        except BaseException:
            self._folder.close()
            raise
        self.size = status.st_size
        self._begun = 0

    def begin(self, offset: int) -> None:
        """What is written next goes there; what was behind it is gone, also where it was longer."""
        if offset > self.size:
            raise BeyondEnd
        os.ftruncate(self._descriptor, offset)
        self.size = self._begun = offset

    def write(self, pieces: Sequence[bytes]) -> None:
        """The next bytes. Raises TooLong, and OSError for a disk without room."""
        if self._most is not None and self.size + sum(map(len, pieces)) > self._most:
            raise TooLong
        if self._folder.free_bytes() < SPARE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for piece in pieces:
            view = memoryview(piece)
            while view:
                written = os.pwrite(self._descriptor, view, self.size)
                self.size += written
                view = view[written:]
        if self.size - self._begun >= BEGIN_EVERY:
            begin_writing(self._descriptor, self._begun, self.size - self._begun)
            self._begun = self.size

    def finish(self, exists: Exists) -> Whole:
        """Put it on the disk, then give it its name. Raises Occupied."""
        os.fsync(self._descriptor)
        whole = self._take_name(exists)
        self._folder.sync()
        return whole

    def _take_name(self, exists: Exists) -> Whole:
        if exists == "replace":
            try:
                self._folder.replace(self._part, self.name)
            except IsADirectoryError:
                raise Occupied from None
            return Whole(self.name, self.size, True)
        tries = 0 if exists == "refuse" else NAMES_TRIED
        for new in [self.name, *(renamed(self.name, attempt) for attempt in range(1, tries + 1))]:
            try:
                self._folder.rename_where_free(self._part, new)
            except FileExistsError:
                if self._is_same(new):  # sent once more, because an answer was lost or nobody knew that it is here
                    self.discard()
                    return Whole(new, self.size, False)
                continue
            return Whole(new, self.size, True)
        raise Occupied

    def _is_same(self, name: str) -> bool:
        status = self._folder.look(name)
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != self.size:
            return False
        try:
            other = self._folder.open_file(name, os.O_RDONLY)
        except OSError:
            return False
        try:
            return all(
                os.pread(other, READ, at) == os.pread(self._descriptor, READ, at) for at in range(0, self.size, READ)
            )
        finally:
            os.close(other)

    def discard(self) -> None:
        """Nothing of it is worth keeping."""
        self._folder.remove(self._part)

    def close(self) -> None:
        """Let go of it. What is empty is not kept."""
        if self._descriptor >= 0:
            status = self._folder.look(self._part)
            if not self.size and status is not None and os.path.samestat(status, os.fstat(self._descriptor)):
                self.discard()
            os.close(self._descriptor)
            self._descriptor = -1
        self._folder.close()


def hash_lines(top: Path, name: str, key: str) -> Generator[bytes, None, None]:
    """Of what is here of a file, a line for each block, some at a time.

    Without a lock: whoever asked and did not wait for the end may write already, and does not read this any more.
    """
    with contextlib.suppress(OSError), Folder.open(top) as folder:
        descriptor = folder.open_file(partial_name(name, key), os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            for at in range(0, status.st_size if status.st_nlink == 1 else 0, READ):
                data = memoryview(os.pread(descriptor, READ, at))
                yield b"".join(encode_block(data[start : start + BLOCK]) for start in range(0, len(data), BLOCK))
        finally:
            os.close(descriptor)


def partials(top: Path, key: str) -> list[str]:
    """The unfinished files of one sender."""
    with Folder.open(top) as folder:
        return [name for name in folder.names() if is_partial(name, key)]


def sweep(top: Path, now: float, needed: int = 0) -> int:
    """Remove unfinished files that nobody came back for, or of which there are too many, or for whose room there is
    use: the oldest first, and none that somebody is writing. The bytes that are free then.
    """
    with Folder.open(top) as folder:
        found = []
        for name in folder.names():
            status = folder.look(name) if is_partial(name) else None
            if status is not None:
                found.append((status.st_mtime, name))
        found.sort()
        left = len(found)
        for written_at, name in found:
            is_old = now - written_at > KEPT_FOR
            if is_old or left > KEPT_MOST or folder.free_bytes() < needed + SPARE:
                left -= _remove_idle(folder, name)
        return max(folder.free_bytes() - SPARE, 0)


def _remove_idle(folder: Folder, name: str) -> bool:
    try:
        descriptor, _ = open_part(folder, name)
    except (Busy, OSError):
        return False
    folder.remove(name)
    os.close(descriptor)
    return True


def waiting_files(top: Path) -> list[tuple[str, int]]:
    """The whole files in a folder: names and sizes."""
    found = []
    with Folder.open(top) as folder:
        for name in folder.names():
            status = folder.look(name)
            if status is not None and stat.S_ISREG(status.st_mode) and not is_partial(name):
                found.append((name, status.st_size))
    return found
