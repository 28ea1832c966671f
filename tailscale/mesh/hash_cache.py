"""Block hashes of files that were read before: nobody reads a file again to learn what it hashed already.

Owns one SQLite file, or memory. A file is known by device, inode, size and mtime: one that was changed is another one.
A cache that cannot be read or written is only a slower one, never an error. Blocks: call it in a worker thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from tailscale._private_files import make_folder
from ts_mesh.blocks import HASH, Hashes

T = TypeVar("T")
ROWS_LIMIT = 1 << 18
WAITING_LIMIT = 512
UNKNOWN = bytes(HASH)
SIGNED = 1 << 63  # SQLite's integers have a sign; device and inode numbers have not
SCHEMA = """
CREATE TABLE IF NOT EXISTS hashed (
    device INTEGER, inode INTEGER, size INTEGER, mtime_ns INTEGER, hashes BLOB, PRIMARY KEY (device, inode));
"""


class FileKey(NamedTuple):
    """Which file, and which state of it."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileKey:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class HashCache:
    """`path` None keeps it in memory. Small files are written down many at a time."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._is_closed = False
        self._lock = threading.RLock()
        self._database: sqlite3.Connection | None = None
        self._rows = 0
        self._waiting: dict[FileKey, Hashes] = {}
        self.bytes_hashed = 0  # by whoever uses it: what it could not spare

    def get(self, key: FileKey) -> list[bytes | None]:
        """What is known of a file; short or empty when little or nothing is."""

        def read(database: sqlite3.Connection) -> list[tuple[bytes]]:
            return database.execute(
                "SELECT hashes FROM hashed WHERE device = ? AND inode = ? AND size = ? AND mtime_ns = ?", _bound(key)
            ).fetchall()

        with self._lock:
            waiting = self._waiting.get(key)
            if waiting is not None:
                return list(waiting)
            rows = self._ask(read) if self._rows or self._database is None else None
        return _unpacked(rows[0][0]) if rows else []

    def put(self, key: FileKey, hashes: Hashes) -> None:
        """Remember; what was known of the same file in another state is forgotten."""
        with self._lock:
            self._waiting[key] = list(hashes)
            # What took long to hash is kept even if we are killed right now.
            if len(hashes) > 1 or len(self._waiting) >= WAITING_LIMIT:
                self.flush()

    def put_many(self, known: Sequence[tuple[FileKey, Hashes]]) -> None:
        """Of many small files at once."""
        with self._lock:
            self._waiting.update(known)
            if len(self._waiting) >= WAITING_LIMIT:
                self.flush()

    def flush(self) -> None:
        """Write down what waits."""
        with self._lock:
            rows = [(*_bound(key), _packed(hashes)) for key, hashes in self._waiting.items()]
            self._waiting.clear()
            if rows:
                self._ask(lambda database: self._write(database, rows))

    def _write(self, database: sqlite3.Connection, rows: list[tuple[object, ...]]) -> None:
        with database:
            database.executemany("INSERT OR REPLACE INTO hashed VALUES (?, ?, ?, ?, ?)", rows)
            self._rows += len(rows)
            if self._rows > ROWS_LIMIT:  # those longest untouched go
                oldest = "SELECT rowid FROM hashed ORDER BY rowid LIMIT ?"
                database.execute(f"DELETE FROM hashed WHERE rowid IN ({oldest})", (ROWS_LIMIT // 8,))  # noqa: S608
                self._rows = _count(database)

    def close(self) -> None:
        """Nothing is read or written from here on: a thread that still asks must not open it again."""
        with self._lock:
            self.flush()
            self._is_closed = True
            if self._database is not None:
                self._database.close()
                self._database = None

    def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """One thread at a time. A damaged file is put aside; what else is wrong with the disk is no concern of ours."""
        with self._lock:
            if self._is_closed:
                return None
            try:
                if self._database is None:
                    self._database = self._open()
                return work(self._database)
            except (sqlite3.Error, OSError) as problem:
                if self._database is not None:
                    self._database.close()
                self._database = None
                is_damaged = isinstance(problem, sqlite3.DatabaseError)
                if self._path is not None and is_damaged and not isinstance(problem, sqlite3.OperationalError):
                    with contextlib.suppress(OSError):
                        os.replace(self._path, f"{self._path}.bad")
                return None

    def _open(self) -> sqlite3.Connection:
        if self._path is None:
            database = sqlite3.connect(":memory:", check_same_thread=False)
        else:
            make_folder(self._path.parent)
            database = sqlite3.connect(self._path, check_same_thread=False, timeout=1.0)
        try:
            # Lost in a power cut it costs one more look at a file; until then it must cost little.
            database.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; {SCHEMA}")
            self._rows = _count(database)
        except sqlite3.Error:  # damaged, most likely
            database.close()
            raise
        return database


def _count(database: sqlite3.Connection) -> int:
    count: int = database.execute("SELECT count(*) FROM hashed").fetchone()[0]
    return count


def _bound(key: FileKey) -> tuple[int, ...]:
    return tuple((number + SIGNED) % (2 * SIGNED) - SIGNED for number in key)


def _packed(hashes: Hashes) -> bytes:
    return b"".join(each or UNKNOWN for each in hashes)


def _unpacked(blob: bytes) -> list[bytes | None]:
    pieces: Sequence[bytes] = [blob[at : at + HASH] for at in range(0, len(blob), HASH)]
    return [piece if piece != UNKNOWN and len(piece) == HASH else None for piece in pieces]
