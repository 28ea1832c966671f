"""Block hashes of files that were read before: nobody reads a file again to learn what it hashed already.

Owns one SQLite file, or memory. A file is known by device, inode, size and mtime: one that was changed is another one.
A cache that cannot be read or written is only a slower one, never an error. Blocks: call it in a worker thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from tailscale._private_files import make_folder
from ts_mesh.blocks import HASH, Hashes

T = TypeVar("T")
ROWS_LIMIT = 1 << 18
VERSION = 1
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
    """`path` None keeps it in memory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._is_closed = False

    def get(self, key: FileKey) -> list[bytes | None]:
        """What is known of a file; short or empty when little or nothing is."""

        def read(database: sqlite3.Connection) -> list[tuple[bytes]]:
            return database.execute(
                "SELECT hashes FROM hashed WHERE device = ? AND inode = ? AND size = ? AND mtime_ns = ?", _bound(key)
            ).fetchall()

        rows = self._ask(read)
        return _unpacked(rows[0][0]) if rows else []

    def put(self, files: Iterable[tuple[FileKey, Hashes]]) -> None:
        """Remember; what was known of the same file in another state is forgotten."""
        rows = [(*_bound(key), _packed(hashes)) for key, hashes in files]

        def write(database: sqlite3.Connection) -> None:
            with database:
                database.executemany("INSERT OR REPLACE INTO hashed VALUES (?, ?, ?, ?, ?)", rows)
                excess = database.execute("SELECT count(*) FROM hashed").fetchone()[0] - ROWS_LIMIT
                if excess > 0:  # those longest untouched
                    oldest = "SELECT rowid FROM hashed ORDER BY rowid LIMIT ?"
                    database.execute(f"DELETE FROM hashed WHERE rowid IN ({oldest})", (excess,))  # noqa: S608

        if rows:
            self._ask(write)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._database is not None:
                self._database.close()
                self._database = None

    def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """One thread at a time. A damaged file is put aside; what else is wrong with the disk is no concern of ours."""
        with self._lock:
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
        if self._is_closed or self._path is None:
            database = sqlite3.connect(":memory:", check_same_thread=False)
        else:
            make_folder(self._path.parent)
            database = sqlite3.connect(self._path, check_same_thread=False, timeout=1.0)
            # Lost in a power cut it costs one more look at a file; until then it must cost little.
            database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;")
        database.executescript(SCHEMA)
        return database


def _bound(key: FileKey) -> tuple[int, ...]:
    return tuple((number + SIGNED) % (2 * SIGNED) - SIGNED for number in key)


def _packed(hashes: Hashes) -> bytes:
    return b"".join(each or UNKNOWN for each in hashes)


def _unpacked(blob: bytes) -> list[bytes | None]:
    pieces: Sequence[bytes] = [blob[at : at + HASH] for at in range(0, len(blob), HASH)]
    return [piece if piece != UNKNOWN and len(piece) == HASH else None for piece in pieces]
