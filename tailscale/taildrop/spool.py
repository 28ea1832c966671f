"""Files that wait to be fetched: an inbox for whoever asks later, as `tailscale file get` does.

Owns the folder they wait in, and how they leave it. The names given to it are single components, and come from outside.
Everything but `until` blocks: call it in a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import trio

from tailscale.files.folders import Folder
from tailscale.files.parts import open_part
from tailscale.taildrop.names import objection_to_name, partial_name, renamed
from tailscale.taildrop.partial import NAMES_TRIED, waiting_files

Conflict = Literal["skip", "overwrite", "rename"]
FETCHED = "fetched"  # in place of a sender's key, for what is copied out


class WaitingFile(NamedTuple):
    """A whole file that nobody has fetched."""

    name: str
    size: int


class Fetched(NamedTuple):
    """What became of one of them: where it is now, or why it still waits."""

    name: str
    size: int
    path: Path | None
    problem: str = ""


class SpoolStatistics(NamedTuple):
    """`waiting`: whole files, when the folder was last looked at."""

    waiting: int


class Spool:
    """One folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting = 0
        self.news = trio.Event()
        """Set when there is one more, or one less."""

    def move(self, folder: Path) -> None:
        """From now on they wait elsewhere."""
        self.folder = folder
        self.tell()

    def tell(self) -> None:
        """There is one more, or one less."""
        self.news.set()
        self.news = trio.Event()

    def statistics(self) -> SpoolStatistics:
        """Counts so far."""
        return SpoolStatistics(self._waiting)

    def waiting(self) -> list[WaitingFile]:
        try:
            found = [WaitingFile(*each) for each in waiting_files(self.folder)]
        except FileNotFoundError:
            found = []
        self._waiting = len(found)
        return found

    async def until(self, timeout: float) -> list[WaitingFile]:
        """Those that wait, as soon as there is any; none after `timeout` seconds."""
        found: list[WaitingFile] = []
        with trio.move_on_after(timeout):
            while True:
                news = self.news
                found = await trio.to_thread.run_sync(self.waiting)
                if found:
                    return found
                await news.wait()
        return found

    def open(self, name: str) -> tuple[int, int]:
        """A descriptor and the size of one of them. FileNotFoundError for what is none."""
        self._check(name)
        with Folder.open(self.folder) as folder:
            descriptor = folder.open_file(name, os.O_RDONLY)
            return descriptor, os.fstat(descriptor).st_size

    def remove(self, name: str) -> None:
        self._check(name)
        with Folder.open(self.folder) as folder:
            if folder.look(name) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
            folder.remove(name)
        self.waiting()

    def _check(self, name: str) -> None:
        if objection_to_name(name):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def fetch(self, name: str, into: Path, conflict: Conflict) -> Fetched:
        """Move one into another folder: under its name, all of it or nothing."""
        descriptor, size = self.open(name)
        try:
            with Folder.open(into) as folder:
                given = self._place(descriptor, name, folder, conflict)
                folder.sync()
        except FileExistsError:
            return Fetched(name, size, None, f"{into / name} is there already")
        except OSError as error:
            return Fetched(name, size, None, f"{into / name} cannot be written: {error.strerror}")
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            self.remove(name)
        return Fetched(name, size, into / given)

    def _place(self, descriptor: int, name: str, folder: Folder, conflict: Conflict) -> str:
        part = partial_name(name, FETCHED)
        target, _ = open_part(folder, part)
        try:
            os.ftruncate(target, 0)
            with open(descriptor, "rb", closefd=False) as source, open(target, "wb", closefd=False) as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            os.fsync(target)
            if conflict == "overwrite":
                folder.replace(part, name)
                return name
            tries = NAMES_TRIED if conflict == "rename" else 0
            for new in [name, *(renamed(name, attempt) for attempt in range(1, tries + 1))]:
                with contextlib.suppress(FileExistsError):
                    folder.rename_where_free(part, new)
                    return new
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        except BaseException:
            folder.remove(part)
            raise
        finally:
            os.close(target)
