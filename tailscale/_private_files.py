"""Files that nobody else may read, swap or hold up: folders, locks and flags, on every system that has them.

Owns what differs between systems. Refuses to know what the files are for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

LOCK_OFFSET = 1 << 30  # Windows locks bytes against reading too; the pid at the start must stay readable

# Not through a link, and not waiting for the other end of what turns out to be a FIFO.
CAREFULLY: int = 0
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    CAREFULLY |= getattr(os, _flag, 0)


def open_mounted(path: Path) -> int:
    """Open to read, through no link, unless what it leads to is on a read-only mount.

    Kubernetes mounts secrets as links, and nobody here can swap them.
    """
    try:
        return os.open(path, os.O_RDONLY | CAREFULLY)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        descriptor = os.open(path, os.O_RDONLY | (CAREFULLY & ~os.O_NOFOLLOW))
        if not is_on_read_only_mount(descriptor):
            os.close(descriptor)
            raise
        return descriptor


def is_on_read_only_mount(descriptor: int) -> bool:
    return sys.platform != "win32" and bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)


def make_folder(folder: Path) -> None:
    """Every folder that is made on the way is ours alone: who may rename one of them may swap what is inside."""
    for missing in [step for step in (*reversed(folder.parents), folder) if not step.exists()]:
        with contextlib.suppress(FileExistsError):
            missing.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def replace_file(path: Path, data: bytes) -> None:
    """Write a new file beside the old one, for nobody else to read, then put it in its place: all or nothing."""
    draft = path.with_name(f"{path.name}.new")
    make_folder(path.parent)
    draft.unlink(missing_ok=True)  # left by a crash; O_EXCL then proves that the file is ours from its birth
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CAREFULLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


class Draft:
    """A file, for nobody else to read unless its `mode` says so, that gets its name once it is whole: what had that
    name is there until then.

    Raises ValueError where something is that is no file, OSError where none can be made.
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        import tempfile  # few write one, and a light command would pay for it

        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.stat().st_mode):
                raise ValueError(f"{path} is no regular file: open it yourself, and pass the open file")
        self.path = path
        descriptor, self._made = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        if mode != 0o600 and sys.platform != "win32":
            os.fchmod(descriptor, mode)

    @property
    def left(self) -> str:
        """What is there if it is abandoned, and what to do about it."""
        return f"{self.path} is as it was before: write to a disk with room"

    @classmethod
    def put(cls, path: Path, data: bytes, mode: int = 0o600) -> None:
        """All of it, or what was there before."""
        draft = cls(path, mode)
        try:
            draft.write(data)
            draft.finish()
        except BaseException:
            draft.abandon()
            raise

    def write(self, data: bytes | memoryview, /) -> int | None:
        return self._file.write(data)

    def finish(self) -> None:
        self._file.close()
        os.replace(self._made, self.path)

    def abandon(self) -> None:
        """What was written is not wanted, or not whole."""
        self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._made)


def try_lock(descriptor: int) -> bool:
    """An exclusive lock that dies with the process. False when somebody holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, LOCK_OFFSET, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


_locked: set[int] = set()


def keep_lock(descriptor: int) -> None:
    """It is locked as long as this process has it open, or gives it back. A fork does not inherit it."""
    _locked.add(descriptor)


def give_lock_back(descriptor: int) -> None:
    if descriptor in _locked:
        _locked.remove(descriptor)
        os.close(descriptor)


def _drop_locks_of_parent() -> None:
    """A child that outlives its parent would lock the state for as long as it lives."""
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks_of_parent)


def read_pid(descriptor: int) -> int | None:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        return int(os.read(descriptor, 20))
    except (OSError, ValueError):
        return None


def sync_directory(directory: Path) -> None:
    """Make the rename itself survive a power cut, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
