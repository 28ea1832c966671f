"""A folder below which nothing is reached through a link: one component at a time, each opened where the last one is.

Owns descriptors of folders. Refuses to know what the files are for. Everything here blocks: call it in a worker thread.
Needs a system with `openat` and its kin: every one but Windows.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from tailscale._private_files import CAREFULLY

HAS_OPENAT = os.open in os.supports_dir_fd and os.rename in os.supports_dir_fd and os.listdir in os.supports_fd
# What says that a file system has no hard links.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Folder:
    """One open folder; the names given to its methods are single components."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> Folder:
        """The folder at the top, named by our own user: links on the way to it are his wish."""
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enter(self, name: str, *, make: bool = False) -> Folder:
        """The folder inside. Raises NotADirectoryError for a link, whatever it leads to."""
        flags = os.O_RDONLY | os.O_DIRECTORY | CAREFULLY
        try:
            return Folder(os.open(name, flags, dir_fd=self._descriptor))
        except FileNotFoundError:
            if not make:
                raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=self._descriptor)
        return Folder(os.open(name, flags, dir_fd=self._descriptor))

    def open_file(self, name: str, flags: int, mode: int = 0o600) -> int:
        """A descriptor of a regular file; never through a link, never waiting for the other end of a FIFO."""
        descriptor = os.open(name, flags | CAREFULLY, mode, dir_fd=self._descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise OSError(errno.ELOOP, "it is not a regular file", name)

    def create(self, name: str) -> int:
        """A descriptor of a new file. Raises FileExistsError where there is anything of that name."""
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | CAREFULLY, 0o600, dir_fd=self._descriptor)

    def look(self, name: str) -> os.stat_result | None:
        """What is there under this name, not what a link leads to."""
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        return sorted(os.listdir(self._descriptor))

    def replace(self, old: str, new: str) -> None:
        """Rename, over whatever file is there."""
        os.replace(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def rename_where_free(self, old: str, new: str) -> None:
        """Rename, or FileExistsError: a name that is taken is left as it is, also when it is taken meanwhile."""
        here = self._descriptor
        try:
            os.link(old, new, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False)
        except OSError as problem:
            if problem.errno not in NO_LINKS:
                raise
            # Look, then rename: the best there is. Who takes the name between the two loses it.
            if self.look(new) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
            self.replace(old, new)
        else:
            self.remove(old)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def set_attributes(self, mode: int, mtime_ns: int) -> None:
        """Of the folder itself."""
        os.fchmod(self._descriptor, mode)
        os.utime(self._descriptor, ns=(mtime_ns, mtime_ns))

    def set_mode(self, name: str, mode: int) -> None:
        """Of a file inside."""
        descriptor = self.open_file(name, os.O_RDONLY)
        try:
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Make what was renamed in here survive a power cut."""
        os.fsync(self._descriptor)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._descriptor).free


class Walks:
    """Folders that were walked to and stay open: who has many files of one folder walks there once.

    Not for longer than a batch of files takes: each has a descriptor.
    """

    def __init__(self, *, make: bool = False) -> None:
        self._make = make
        self._open: dict[tuple[Path, tuple[str, ...]], Folder] = {}

    def to(self, top: Path, parts: Sequence[str]) -> Folder:
        """The folder `parts` below `top`; it is closed with the others."""
        key = top, tuple(parts)
        folder = self._open.get(key)
        if folder is None:
            folder = self._open[key] = walk(top, parts, make=self._make)
        return folder

    def close(self) -> None:
        for folder in self._open.values():
            folder.close()
        self._open.clear()


def walk(top: Path, parts: Sequence[str], *, make: bool = False) -> Folder:
    """The folder `parts` below `top`, for the caller to close."""
    folder = Folder.open(top)
    for part in parts:
        with folder:
            folder = folder.enter(part, make=make)
    return folder
