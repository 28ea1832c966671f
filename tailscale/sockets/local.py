"""A connected socket of this machine as a stream: loopback or Unix, the other end of which some program holds.

Owns the socket, its way to be reset, and the question whether that program still exists. Knows nothing of the tailnet.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import Bytes

CHUNK = 256 << 10
ORPHAN_CHECK = 30  # seconds between questions whether a program that finished sending still exists
LINGER_ZERO = Struct("ii").pack(1, 0)  # close with a reset


class LocalStream(trio.abc.HalfCloseableStream):
    """Reading what is there already and writing what fits are no checkpoints: the tailnet's stream is one each time."""

    def __init__(self, sock: socket.socket, before_close: Callable[[], object] | None = None) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._before_close = before_close
        self._waiting: trio.CancelScope | None = None
        self._is_finishing = False

    @classmethod
    def adopt(cls, accepted: trio.SocketStream, before_close: Callable[[], object] | None = None) -> LocalStream:
        """Take the socket out of one of trio's streams."""
        held = accepted.socket
        return cls(socket.socket(held.family, held.type, held.proto, fileno=held.detach()), before_close)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            try:
                return self._socket.recv(max_bytes or CHUNK)
            except BlockingIOError:
                if self._is_finishing:
                    return b""
                with trio.CancelScope() as self._waiting:
                    await trio.lowlevel.wait_readable(self._socket)

    async def send_all(self, data: Bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.wait_writable(self._socket)

    async def send_eof(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)
        await trio.lowlevel.checkpoint()

    def finish(self) -> None:
        """What the program has written already is still read; then its side counts as ended."""
        self._is_finishing = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def wait_gone(self) -> None:
        """Never returns; raises OSError once the program is gone.

        One that closed its socket looks like one that only finished sending, until it is asked.
        """
        is_tcp = self._socket.family in (socket.AF_INET, socket.AF_INET6)
        if is_tcp:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
                if hasattr(socket, name):
                    self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), ORPHAN_CHECK)
        while True:
            await trio.sleep(ORPHAN_CHECK)
            raise_error_of(self._socket)
            if not is_tcp:
                self._socket.send(b"")  # EPIPE once the other end of a Unix socket is closed

    @property
    def is_readable(self) -> bool:
        """Whether something has come that nobody has read, were it the end."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def abort(self) -> None:
        """Close it so that the program gets a ConnectionResetError, not the end of a stream."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self._close()

    async def aclose(self) -> None:
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            if self._before_close is not None:
                self._before_close()  # while its address is still its own
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def raise_error_of(sock: socket.socket) -> None:
    """What happened to it while nobody used it."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, "the program's end of the connection is gone")
