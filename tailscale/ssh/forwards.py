"""Connections that an SSH client opens through us: to this machine, and from it back.

Owns who may: where the policy says so, and where this server gives a shell anyway, which could do the same. Unix
sockets only in places of the user's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import asyncssh

DIAL_PATIENCE = 30.0


class Outward(asyncio.Protocol):
    """The half of a forwarded connection that is on this machine."""

    def __init__(self, inward: Inward) -> None:
        self._inward = inward

    def data_received(self, data: bytes) -> None:
        self._inward.channel.write(data)

    def eof_received(self) -> bool:
        self._inward.channel.write_eof()
        self._inward.end_direction()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._inward.channel.close()

    def pause_writing(self) -> None:
        self._inward.channel.pause_reading()

    def resume_writing(self) -> None:
        self._inward.channel.resume_reading()


class Inward(asyncssh.SSHTCPSession[bytes]):
    """The half that is a channel; `on_end` is called once it is over."""

    def __init__(self, on_end: Callable[[], object]) -> None:
        self._on_end = on_end
        self._outward: Any = None
        self.channel: Any = None
        self._directions = 2

    async def dial(self, connect: Callable[..., Any], *where: Any) -> Inward:
        """Raises ChannelOpenError where nothing answers."""
        try:
            async with asyncio.timeout(DIAL_PATIENCE):
                self._outward, _ = await connect(lambda: Outward(self), *where)
        except (OSError, TimeoutError, ValueError) as problem:
            self._on_end()
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, str(problem)) from None
        except BaseException:
            self._on_end()
            raise
        self._outward.pause_reading()
        return self

    def connection_made(self, chan: Any) -> None:
        self.channel = chan

    def session_started(self) -> None:
        self._outward.resume_reading()

    def data_received(self, data: bytes, datatype: object) -> None:
        self._outward.write(data)

    def eof_received(self) -> bool:
        if self._outward.can_write_eof():
            self._outward.write_eof()
        self.end_direction()
        return True

    def end_direction(self) -> None:
        """One side has finished sending; when both have, it is over. Neither transport ends by that alone."""
        self._directions -= 1
        if not self._directions:
            self._outward.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end()
        self._outward.close()

    def pause_writing(self) -> None:
        self._outward.pause_reading()

    def resume_writing(self) -> None:
        self._outward.resume_reading()


class Listening(asyncssh.SSHListener):
    """A port or a Unix socket of this machine at which a client listens; `on_end` is called once it does no more."""

    def __init__(self, inner: asyncssh.SSHListener, on_end: Callable[[], object], path: str) -> None:
        super().__init__()
        self._inner, self._on_end = inner, on_end
        self._path, self._file = path, _file_at(path)
        self._is_closed = False

    @classmethod
    async def begun(
        cls, listen: Callable[[], Awaitable[asyncssh.SSHListener]], on_end: Callable[[], object], path: str
    ) -> Self:
        """Raises OSError where nobody can listen."""
        try:
            return cls(await listen(), on_end, path)
        except BaseException:
            on_end()
            raise

    def get_port(self) -> int:
        return self._inner.get_port()

    def close(self) -> None:
        """A socket leaves its place with it, unless another has taken that meanwhile."""
        if self._is_closed:
            return
        self._is_closed = True
        self._inner.close()
        if self._file is not None and self._file == _file_at(self._path):
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._on_end()

    async def wait_closed(self) -> None:
        await self._inner.wait_closed()


def _file_at(path: str) -> tuple[int, int] | None:
    """Which file that is, if it is a socket."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode):
            return found.st_dev, found.st_ino
    return None


def is_own_place(path: str) -> bool:
    """Where a user may have Unix sockets forwarded: at home, among temporary files, and in the runtime folder."""
    places = [Path.home(), Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 - named by the policy of upstream, not used here
    if hasattr(os, "getuid"):
        places.append(Path(f"/run/user/{os.getuid()}"))
    try:
        real = Path(path).resolve()
        return os.path.isabs(path) and any(real.is_relative_to(place.resolve()) for place in places)
    except (OSError, ValueError, RuntimeError):
        return False
