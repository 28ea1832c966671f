"""The daemon's log: a file that is turned over before it grows large, and whoever follows along.

Owns the handler of the logger "tailscale". A full disk costs lines, which are counted, and nothing else. A reader that
is too slow misses lines and is told how many.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import trio

from tailscale._private_files import CAREFULLY

LOG_SIZE = 2 << 20
LOG_FILES = 3  # beside the present one
KEPT_LINES = 500
QUEUE_LIMIT = 512
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class LogStatistics(NamedTuple):
    """What could not be written or read."""

    lost: int
    lagged: int


class LogReader:
    """One follower's lines, from the moment it was opened; bounded."""

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self.lagged = 0
        self._waiting: deque[dict[str, Any]] = deque()
        self._missed = 0
        self._lot = trio.lowlevel.ParkingLot()

    def put(self, line: dict[str, Any]) -> None:
        if len(self._waiting) >= QUEUE_LIMIT:
            self._waiting.popleft()
            self._missed += 1
            self.lagged += 1
        self._waiting.append(line)
        self._lot.unpark_all()

    async def next(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            await self._lot.park()
        if self._missed:
            missed, self._missed = self._missed, 0
            return {"event": "Lagged", "missed": missed}
        return self._waiting.popleft()


class DaemonLog(logging.Handler):
    """Install it with `running()`; in a daemon every line of the project comes through here."""

    def __init__(
        self, path: str | None, level: int = logging.INFO, size: int = LOG_SIZE, files: int = LOG_FILES
    ) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(FORMAT))
        self._path, self._size, self._files = path, size, files
        self._file_level = level
        self._descriptor = -1
        self._written = 0
        self._lost = self._lagged = 0
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT_LINES)
        self._readers: list[LogReader] = []

    def statistics(self) -> LogStatistics:
        return LogStatistics(self._lost, self._lagged + sum(reader.lagged for reader in self._readers))

    @contextmanager
    def running(self) -> Iterator[DaemonLog]:
        logger = logging.getLogger("tailscale")
        before = logger.level
        logger.addHandler(self)
        logger.setLevel(self._file_level)
        try:
            yield self
        finally:
            logger.removeHandler(self)
            logger.setLevel(before)
            self.close()

    @contextmanager
    def follow(self, level: int, backlog: int) -> Iterator[LogReader]:
        """Lines of a level and above; while anybody wants finer ones than the file, they are made."""
        reader = LogReader(level)
        for line in list(self._kept)[len(self._kept) - min(backlog, len(self._kept)) :]:
            if LEVELS.get(line["level"], logging.CRITICAL) >= level:
                reader.put(line)
        self._readers.append(reader)
        self._set_level()
        try:
            yield reader
        finally:
            self._readers.remove(reader)
            self._lagged += reader.lagged
            self._set_level()

    def _set_level(self) -> None:
        wanted = min([self._file_level, *(reader.floor for reader in self._readers)])
        logging.getLogger("tailscale").setLevel(wanted)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            line = {
                "event": "Line",
                "at": record.created,
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage() + (f"\n{record.exc_text}" if record.exc_text else ""),
            }
            for reader in self._readers:
                if record.levelno >= reader.floor:
                    reader.put(line)
            if record.levelno >= self._file_level:
                self._kept.append(line)
                self._write(f"{text}\n".encode(errors="backslashreplace"))
        except OSError:
            self._lost += 1

    def _write(self, data: bytes) -> None:
        if self._path is None:
            return
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | CAREFULLY, 0o600)
            self._written = os.fstat(self._descriptor).st_size
        if self._written + len(data) > self._size and self._written:
            self._turn_over(self._path)
        self._written += os.write(self._descriptor, data)

    def _turn_over(self, path: str) -> None:
        """`x.log` becomes `x.log.1`, that `x.log.2`, and the oldest goes."""
        with suppress(OSError):  # then the present one goes on growing: a longer log is better than none
            for number in range(self._files, 0, -1):
                older, newer = f"{path}.{number}", f"{path}.{number - 1}" if number > 1 else path
                with suppress(FileNotFoundError):
                    os.replace(newer, older)
            os.close(self._descriptor)
            self._descriptor = -1
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | CAREFULLY, 0o600)
            self._written = 0

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()
