"""Where a daemon listens, and who is asking: a private Unix socket, or loopback with a token where there are none.

Owns what differs between the two. A Unix socket is 0600 in a folder of this user's, and the kernel says whose process
has connected. On loopback anybody may connect, so a secret in a private file stands where the socket would: who can
read that file is this user. Refuses to take a place from a program that is alive, and to remove what is not a socket
of ours.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import os
import secrets
import socket
import stat
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import trio

from tailscale._private_files import CAREFULLY, make_folder
from tailscale.errors import TailscaleError

BACKLOG = 128
LONGEST_PATH = 107 if sys.platform != "darwin" else 103  # bytes, of what the kernel keeps for the name of a socket
KNOCK_TIMEOUT = 1.0
TOKEN_BYTES = 32
UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED
XUCRED = struct.Struct("IIh")  # version, uid, groups: macOS's LOCAL_PEERCRED
LOCAL_HOSTS = frozenset((b"local-tailscaled.sock", b"localhost", b""))


class SocketPlaceTaken(TailscaleError):
    """The daemon's socket cannot be made where it was asked for."""


class Asker(NamedTuple):
    """Whoever sent a request."""

    uid: int | None
    """The user of the process; None where the system does not say, and a token speaks for it."""
    may_write: bool


NOBODY = Asker(None, False)


class Transport(Protocol):
    """Where a daemon is found."""

    path: str

    async def listen(self) -> trio.SocketListener:
        """Take the place. Raises SocketPlaceTaken."""

    def asker(self, stream: trio.SocketStream, headers: dict[bytes, bytes]) -> Asker | None:
        """Who is at the other end; None for one who may not ask at all."""

    def is_host(self, host: bytes) -> bool:
        """Whether a request may name this host: a browser that was led here names another."""

    def leave(self) -> None:
        """Free the place, if it is still ours."""


class UnixTransport:
    """A Unix socket that this user and root may write to, and others read from if the user opens its folder to them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: tuple[int, int, int] | None = None

    async def listen(self) -> trio.SocketListener:
        if len(os.fsencode(self.path)) > LONGEST_PATH:
            raise SocketPlaceTaken(
                f"{self.path} is too long for a socket ({LONGEST_PATH} bytes at most): --socket names another place"
            )
        try:
            make_folder(Path(self.path).parent)
            await remove_stale_socket(self.path)
            door = socket.socket(socket.AF_UNIX)
            try:
                door.bind(self.path)
                self._file = _file_at(self.path)
                os.chmod(self.path, 0o600)  # until `listen` nobody can connect
                door.listen(BACKLOG)
            except BaseException:
                door.close()
                raise
        except OSError as error:
            raise SocketPlaceTaken(
                f"no socket can be made at {self.path}: {error.strerror}. --socket names another place"
            ) from error
        door.setblocking(False)
        return trio.SocketListener(trio.socket.from_stdlib_socket(door))

    def asker(self, stream: trio.SocketStream, headers: dict[bytes, bytes]) -> Asker | None:
        uid = _peer_uid(stream.socket)
        return Asker(uid, uid in (0, os.geteuid()))

    def is_host(self, host: bytes) -> bool:
        return host in LOCAL_HOSTS

    def leave(self) -> None:
        with suppress(OSError):
            if self._file is not None and _file_at(self.path) == self._file:
                os.unlink(self.path)


class LoopbackTransport:
    """A port of 127.0.0.1; port and token are in a private file at `path`. For systems without Unix sockets.

    The token is shown as `Authorization: Bearer TOKEN`, or as upstream's clients do: as the password of basic
    authentication, with `Sec-Tailscale: localapi` beside it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._token = secrets.token_urlsafe(TOKEN_BYTES)
        self._port = 0

    async def listen(self) -> trio.SocketListener:
        door = trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.1", 0), backlog=BACKLOG))
        self._port = door.getsockname()[1]
        try:
            make_folder(Path(self.path).parent)
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.lstat(self.path).st_mode):
                    raise SocketPlaceTaken(f"{self.path} is there and is no file: --socket names another place")
                os.unlink(self.path)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CAREFULLY, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as note:
                json.dump({"port": self._port, "token": self._token}, note)
        except OSError as error:
            door.close()
            raise SocketPlaceTaken(
                f"{self.path} cannot be written: {error.strerror}. --socket names another place"
            ) from error
        except BaseException:
            door.close()
            raise
        return trio.SocketListener(door)

    def asker(self, stream: trio.SocketStream, headers: dict[bytes, bytes]) -> Asker | None:
        scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
        shown = b""
        if scheme.lower() == b"bearer":
            shown = value.strip()
        elif scheme.lower() == b"basic" and headers.get(b"sec-tailscale") == b"localapi":
            with suppress(binascii.Error, ValueError):
                shown = base64.b64decode(value.strip(), validate=True).removeprefix(b":")
        return Asker(None, True) if secrets.compare_digest(shown, self._token.encode()) else None

    def is_host(self, host: bytes) -> bool:
        return host in LOCAL_HOSTS or host in (f"127.0.0.1:{self._port}".encode(), f"localhost:{self._port}".encode())

    def leave(self) -> None:
        with suppress(OSError, ValueError):
            if json.loads(Path(self.path).read_text(encoding="utf-8"))["token"] == self._token:
                os.unlink(self.path)


def transport_for(path: str) -> Transport:
    """What this system has."""
    return UnixTransport(path) if hasattr(socket, "AF_UNIX") and sys.platform != "win32" else LoopbackTransport(path)


async def remove_stale_socket(path: str) -> None:
    """What a killed process left. A socket that somebody listens at, and any other file, stays."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        await trio.lowlevel.checkpoint()
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketPlaceTaken(f"{path} is there and is no socket: name another place")
    if status.st_uid != os.geteuid():
        raise SocketPlaceTaken(f"{path} belongs to user {status.st_uid}: name another place")
    if await _answers(path):
        raise SocketPlaceTaken(f"another program listens at {path}: name another place")
    os.unlink(path)


async def _answers(path: str) -> bool:
    """Whether somebody listens at a Unix socket."""
    with trio.move_on_after(KNOCK_TIMEOUT):
        try:
            await (await trio.open_unix_socket(path)).aclose()
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True  # connected, or its backlog is full


def _file_at(path: str) -> tuple[int, int, int]:
    """Which file that is, told apart from another that took its place and even its number."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _peer_uid(connection: trio.socket.SocketType) -> int | None:
    """Whose process is at the other end of a Unix socket, as the kernel says."""
    if hasattr(socket, "SO_PEERCRED"):
        uid: int = UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))[1]
        return uid
    if sys.platform == "darwin":
        local_peercred = 1
        return int(XUCRED.unpack_from(connection.getsockopt(0, local_peercred, 76))[1])
    return None
