"""Connections that an SSH client opens through us: to this machine, and from it back.

Owns who may: where the policy says so, and where this server gives a shell anyway, which could do the same. Unix
sockets only in places of the user's own.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
