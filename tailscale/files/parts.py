"""A file that is not whole yet: opened by one writer at a time, through no link, and written out early.

Owns how such a file is opened. Refuses to know what is in it and what its name will be. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Literal

from tailscale._private_files import try_lock
from tailscale.files.folders import Folder

Exists = Literal["refuse", "replace", "rename"]
"""What becomes of a new file whose name is taken."""


class Busy(Exception):
    """Somebody else is writing this file."""


class Occupied(Exception):
    """There is something of this name, and it must stay."""


def open_part(folder: Folder, part: str) -> tuple[int, os.stat_result]:
    """The part, ours alone: a link, or what somebody linked elsewhere, is removed and made anew."""
    while True:
        try:
            descriptor = folder.create(part)
        except FileExistsError:
            found = _open_left(folder, part)
            if found is None:
                continue
            descriptor = found
        try:
            if not try_lock(descriptor):
                raise Busy
            status, beside = os.fstat(descriptor), folder.look(part)
            if beside is not None and os.path.samestat(beside, status):
                return descriptor, status
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it got its name, or was removed, between our look and the lock


def _open_left(folder: Folder, part: str) -> int | None:
    """What is there already under the name of a part; None where it was removed instead, being none."""
    status = folder.look(part)
    if status is None:
        return None
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        try:
            return folder.open_file(part, os.O_RDWR)
        except FileNotFoundError:
            return None
        except PermissionError:
            pass  # it had its final mode already when its writer was killed
    folder.remove(part)
    return None


def begin_writing(descriptor: int, start: int = 0, length: int = 0) -> None:
    """Have the system write bytes out, without waiting, where it can be asked to: `fsync` then finds them done."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # it is only asked
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
