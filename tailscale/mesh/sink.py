"""One file that arrives: it grows as `.name.part`, and gets its name when it is whole, compared and on the disk.

Whoever is killed at whatever moment leaves the old file or the new one under its name, never a part of either.
Beside the part lies a journal of the blocks it has, so that what broke off is resumed and not read again. A journal
whose last line is not a seal was left by a writer that was killed: what it claims is then looked at before the file is
believed. Everything blocks: one worker thread at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tailscale.files.folders import Folder
from tailscale.files.parts import Exists, Occupied, begin_writing, open_part
from tailscale.mesh.hash_cache import FileKey
from ts_base.errors import BadPacket
from ts_mesh.blocks import (
    BLOCK,
    JournalKey,
    Seal,
    block_length,
    complete,
    count_blocks,
    decode_journal_untrusted,
    encode_block,
    encode_header,
    encode_seal,
    longest_journal,
    root_of,
)
from ts_mesh.names import DAMAGED, JOURNAL, PART, part_name, renamed

if TYPE_CHECKING:
    from tailscale.mesh.hash_cache import HashCache

NAMES_TRIED = 1000
READ = 1 << 20
BEGIN_EVERY = 8 << 20  # bytes after which the disk is asked to begin: what is left to sync at the end is little
PERMISSIONS = 0o777  # no set-user-id, no sticky bit


class Unequal(Exception):
    """The file is whole, and it is not the one that was meant."""


class Missing(Exception):
    """These blocks are not there, or not what the journal says."""

    def __init__(self, blocks: Sequence[int]) -> None:
        self.blocks = tuple(blocks)
        super().__init__(f"{len(self.blocks)} blocks are missing")


class Sink:
    """`folder` is open, is where the file belongs, and is the sink's to close."""

    def __init__(
        self, folder: Folder, name: str, key: JournalKey, mode: int, exists: Exists, *, resume_only: bool = False
    ) -> None:
        self._folder = folder
        self.name = name
        self._key = key
        self._mode = mode & PERMISSIONS
        self._exists = exists
        self._part, self._journal_name = beside(name)
        self.size = key.size
        self.hashes: list[bytes | None] = [None] * count_blocks(self.size)
        self.bytes_hashed = 0
        self._unsure: set[int] = set()  # blocks only a killed writer's journal vouches for
        self._part_file = -1
        self._journal = -1
        self._hasher = hashlib.sha256()
        self._at = 0  # where the next byte of the run goes
        self._begun = 0  # up to where the disk was asked to begin
        try:
            if resume_only and (folder.look(self._part) is None or folder.look(self._journal_name) is None):
                raise FileNotFoundError
            self._open()
        except BaseException:
            self.close()
            raise

    # Opening what was left

    def _open(self) -> None:
        self._part_file, _ = open_part(self._folder, self._part)
        if self.size <= BLOCK:  # not worth a journal: at most one block is sent again
            os.ftruncate(self._part_file, 0)
            self._folder.remove(self._journal_name)
            return
        self._journal = self._folder.open_file(self._journal_name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        if not self._resume():
            os.ftruncate(self._part_file, 0)
            os.ftruncate(self._journal, 0)
            os.write(self._journal, encode_header(self._key))

    def _resume(self) -> bool:
        """Whether the part and its journal are of this file. A journal that makes no sense is put aside."""
        limit = longest_journal(self.size)
        text = os.pread(self._journal, limit + 1, 0)
        if b"\n" not in text:
            return False  # its writer was killed before it had written anything
        try:
            if len(text) > limit:
                raise BadPacket("a journal is longer than any")
            journal = decode_journal_untrusted(text)
        except BadPacket:
            self._folder.replace(self._journal_name, self._part[: -len(PART)] + DAMAGED)
            os.close(self._journal)
            self._journal = self._folder.open_file(self._journal_name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            return False
        if journal.key != self._key:
            return False
        if not text.endswith(b"\n"):
            os.ftruncate(self._journal, text.rfind(b"\n") + 1)
        status = os.fstat(self._part_file)
        whole = [block for block, digest in enumerate(journal.hashes) if digest is not None]
        for block in whole:
            if block * BLOCK + block_length(self.size, block) <= status.st_size:
                self.hashes[block] = journal.hashes[block]
        if journal.seal != Seal(status.st_ino, status.st_mtime_ns):
            self._unsure = {block for block, digest in enumerate(self.hashes) if digest is not None}
        return True

    # Growing

    def begin_run(self, at: int) -> None:
        """What is written next goes there: the start of a block."""
        assert at % BLOCK == 0
        self._at = self._begun = at
        self._hasher = hashlib.sha256()

    def write(self, pieces: Sequence[bytes]) -> None:
        """The next bytes of the run. A block that only a killed writer's journal vouches for is looked at meanwhile."""
        if self._unsure:
            self._look_at(self._unsure.pop())
        for piece in pieces:
            view = memoryview(piece)
            while view:
                room = BLOCK - self._at % BLOCK
                part = view[:room]
                self._write_all(part)
                self._hasher.update(part)
                self.bytes_hashed += len(part)
                view = view[len(part) :]
                if self._at % BLOCK == 0 or self._at == self.size:
                    self._end_block((self._at - 1) // BLOCK)
        if self._at - self._begun >= BEGIN_EVERY:
            begin_writing(self._part_file, self._begun, self._at - self._begun)
            self._begun = self._at

    def _write_all(self, data: memoryview) -> None:
        block = self._at // BLOCK
        if self.hashes[block] is not None:
            self._forget(block)  # what is known of it stops being true with the first byte
        while data:
            written = os.pwrite(self._part_file, data, self._at)
            self._at += written
            data = data[written:]

    def _end_block(self, block: int) -> None:
        self.hashes[block] = digest = self._hasher.digest()
        self._hasher = hashlib.sha256()
        if self._journal >= 0:
            os.write(self._journal, encode_block(block, digest))

    def _forget(self, block: int) -> None:
        self.hashes[block] = None
        self._unsure.discard(block)
        if self._journal >= 0:
            os.write(self._journal, encode_block(block, None))

    def sync(self) -> None:
        """What was written so far survives a power cut."""
        os.fsync(self._part_file)
        if self._journal >= 0:
            os.fsync(self._journal)

    # Ending

    def look_again(self) -> None:
        """Hash what only a killed writer's journal vouches for: what differs is forgotten."""
        while self._unsure:
            self._look_at(self._unsure.pop())

    def _look_at(self, block: int) -> None:
        self.bytes_hashed += block_length(self.size, block)
        if hash_block(self._part_file, self.size, block) != self.hashes[block]:
            self._forget(block)

    def compare(self, root: bytes | None) -> bytes:
        """The root of what is there. Raises Missing, or Unequal: what is there is then worth nothing."""
        self.look_again()
        hashes = complete(self.hashes, self.size)
        if hashes is None:
            raise Missing([block for block, digest in enumerate(self.hashes) if digest is None])
        found = root_of(hashes)
        if root is not None and root != found:
            self.discard()
            raise Unequal
        return found

    def take_place(self, cache: HashCache) -> str:
        """Put it on the disk, then give it its name, which is returned. Raises Occupied."""
        os.ftruncate(self._part_file, self.size)
        os.fchmod(self._part_file, self._mode)
        os.utime(self._part_file, ns=(self._key.mtime_ns, self._key.mtime_ns))
        os.fsync(self._part_file)
        try:
            name = take_name(self._folder, self._part, self.name, self._exists)
        except Occupied:
            os.fchmod(self._part_file, 0o600)  # to be opened again
            raise
        if self._journal >= 0:
            self._folder.remove(self._journal_name)
        self._folder.sync()
        cache.put(FileKey.of(os.fstat(self._part_file)), self.hashes)
        return name

    def discard(self) -> None:
        """Nothing of it is worth keeping."""
        self._folder.remove(self._journal_name)
        self._folder.remove(self._part)
        self.hashes = [None] * len(self.hashes)

    def close(self) -> None:
        """Let go of it. An unfinished one is sealed, so that what it has need not be looked at again."""
        if self._journal >= 0:
            if not self._unsure and self._part_file >= 0:
                status = os.fstat(self._part_file)
                with contextlib.suppress(OSError):  # a full disk: it is looked at again then
                    os.write(self._journal, encode_seal(Seal(status.st_ino, status.st_mtime_ns)))
            os.close(self._journal)
            self._journal = -1
        if self._part_file >= 0:
            os.close(self._part_file)
            self._part_file = -1
        self._folder.close()


def beside(name: str) -> tuple[str, str]:
    """The names under which a file grows: its part, and the journal of that."""
    part = part_name(name, hashlib.sha256(name.encode()).hexdigest()[:32])
    return part, part[: -len(PART)] + JOURNAL


def take_name(folder: Folder, part: str, name: str, exists: Exists) -> str:
    """The name that a part was given at last. Raises Occupied."""
    if exists == "replace":
        try:
            folder.replace(part, name)
        except IsADirectoryError:
            raise Occupied from None
        return name
    tries = 1 if exists == "refuse" else NAMES_TRIED
    for new in [name, *(renamed(name, attempt) for attempt in range(2, tries + 1))]:
        try:
            folder.rename_where_free(part, new)
        except FileExistsError:
            continue
        return new
    raise Occupied


def hash_block(descriptor: int, size: int, block: int) -> bytes:
    hasher = hashlib.sha256()
    start = block * BLOCK
    end = start + block_length(size, block)
    for at in range(start, end, READ):
        hasher.update(os.pread(descriptor, min(READ, end - at), at))
    return hasher.digest()


def hash_file(folder: Folder, name: str) -> list[bytes]:
    """All blocks of a file that is there."""
    descriptor = folder.open_file(name, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return [hash_block(descriptor, size, block) for block in range(count_blocks(size))]
    finally:
        os.close(descriptor)
