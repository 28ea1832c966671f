"""Real sockets for libraries that insist on one: each is an end of a loopback connection whose other end we pump.

A pump carries bytes both ways between such an end and a stream of the tailnet: half-closes travel, a reset arrives as a
reset. Bounded by the kernel's buffers on one side and the connection's on the other.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from tailscale.sockets.home import Address
    from tailscale.sockets.tcp import TcpStream

CHUNK = 256 << 10
LOOPBACK = "127.0.0.1"
ORPHAN_CHECK = 30  # seconds between questions whether a program that finished sending still exists
PORT_ATTEMPTS = 8
STRANGERS = 16  # local connections we tolerate while waiting for our own
LINGER_ZERO = Struct("ii").pack(1, 0)  # close with a reset


class TailnetSocket(socket.socket):
    """An ordinary socket, except that it gives the tailnet's addresses as its own and its peer's."""

    def __init__(self, sock: socket.socket, local: Address, remote: Address) -> None:
        timeout = sock.gettimeout()
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.settimeout(timeout)
        self._addresses = local, remote

    def getsockname(self) -> Address:
        return self._addresses[0]

    def getpeername(self) -> Address:
        return self._addresses[1]


class TailnetListener(socket.socket):
    """A listening socket fed from the tailnet: `accept()` gives sockets and tailnet addresses.

    It is a real one on loopback, for selectors and event loops; what other programs of this machine connect to it is
    hung up on.
    """

    def __init__(self, port: int, host: str, backlog: int, on_close: Callable[[], object]) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.bind((LOOPBACK, 0))
        self.listen(backlog)
        self.port = port
        self.door: Address = super().getsockname()
        self.expected: dict[Address, tuple[Address, Address]] = {}
        self._host = host
        self._on_close = on_close
        self._waiting = 0
        self._is_over = False

    def accept(self) -> tuple[socket.socket, Address]:
        while True:
            sock, source = self._accept_any()
            addresses = self.expected.pop(source, None)
            if addresses is not None:
                return TailnetSocket(sock, *addresses), addresses[1]
            sock.close()

    def _accept_any(self) -> tuple[socket.socket, Address]:
        if self._is_over:
            raise OSError(errno.EINVAL, "nothing arrives here any more: the listener or its device was closed")
        self._waiting += 1
        try:
            return super().accept()
        finally:
            self._waiting -= 1

    def __iter__(self) -> Iterator[tuple[socket.socket, Address]]:
        """Connections, until the listener or the device is closed."""
        while self.fileno() >= 0:
            try:
                yield self.accept()
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EBADF):
                    return
                raise

    def getsockname(self) -> Address:
        return self._host, self.port

    def end(self) -> None:
        """Whoever waits in `accept` gets an OSError; a selector just hears nothing any more."""
        self._is_over = True
        if self._waiting:
            with contextlib.suppress(OSError):
                self.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self.fileno() >= 0:
            self.end()
            super().close()
            self._on_close()


def loopback_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, nobody in between. TCP, so that resets and options mean what they say."""
    with socket.socket() as door:
        door.bind((LOOPBACK, 0))
        door.listen(1)
        ours = socket.create_connection(door.getsockname(), timeout=5)
        for _ in range(STRANGERS):
            theirs, source = door.accept()
            if source == ours.getsockname():
                break
            theirs.close()
        else:
            ours.close()
            raise ConnectionError("other programs keep connecting to our loopback ports")
    ours.setblocking(False)
    for sock in (ours, theirs):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


async def connect_back(listener: TailnetListener, stream: TcpStream) -> socket.socket:
    """Our end of a connection that `listener.accept` will return for `stream`."""
    for attempt in range(PORT_ATTEMPTS):
        try:
            return await _connect_back(listener, stream, reuse=attempt > 0)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
    raise OSError(errno.EADDRNOTAVAIL, "this machine has no loopback ports left")


async def _connect_back(listener: TailnetListener, stream: TcpStream, *, reuse: bool) -> socket.socket:
    """With `reuse` also from ports that are still cooling down: only when fresh ones have run out."""
    ours = socket.socket()
    source: Address | None = None
    try:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours.bind((LOOPBACK, 0))
        if ours.getsockname() in listener.expected:
            raise OSError(errno.EADDRINUSE, "that port is ours already")
        source = ours.getsockname()
        listener.expected[source] = stream.local_address, stream.remote_address
        try:
            ours.connect(listener.door)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(ours)
            _raise_error_of(ours)
    except BaseException:
        if source is not None:
            listener.expected.pop(source, None)
        ours.close()
        raise
    return ours


def _raise_error_of(sock: socket.socket) -> None:
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, "the program's end of the connection is gone")


def reset(sock: socket.socket) -> None:
    """Close it so that the other end gets a ConnectionResetError, not the end of a stream."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    sock.close()


class Pump:
    """One connection's two directions."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, sock: socket.socket) -> None:
        self._stream: Any = stream
        self._socket = sock
        self._waiting: trio.CancelScope | None = None
        self._receiving = trio.CancelScope()
        self._is_finishing = False
        self._open_directions = 2

    def finish(self) -> None:
        """The device is closing: take what the program has already written, then end."""
        self._is_finishing = True
        self._receiving.cancel()
        if self._waiting is not None:
            self._waiting.cancel()

    async def run(self) -> None:
        """Until both sides have finished, or one broke. Then both are closed, or both reset."""
        is_clean = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry_out, nursery.cancel_scope)
                nursery.start_soon(self._carry_in, nursery.cancel_scope)
            is_clean = self._open_directions == 0
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # told to both sides below
        finally:
            if not is_clean:
                self._stream.abort()
            if is_clean and not self._is_finishing:
                self._socket.close()
            else:
                reset(self._socket)
            with trio.CancelScope(shield=True):
                await self._stream.aclose()

    def _end_direction(self, both: trio.CancelScope) -> None:
        self._open_directions -= 1
        if not self._open_directions:
            both.cancel()

    async def _carry_out(self, both: trio.CancelScope) -> None:
        """What the program writes goes to the peer."""
        while data := await self._next_chunk():
            await self._stream.send_all(data)
        await self._stream.send_eof()
        self._end_direction(both)
        await self._until_program_is_gone()

    async def _next_chunk(self) -> bytes:
        while True:
            try:
                return self._socket.recv(CHUNK)
            except BlockingIOError:
                if self._is_finishing:
                    return b""
                with trio.CancelScope() as self._waiting:
                    await trio.lowlevel.wait_readable(self._socket)

    async def _until_program_is_gone(self) -> None:
        """A program that closed its socket looks like one that only finished sending, until it is asked."""
        is_tcp = self._socket.family == socket.AF_INET
        if is_tcp:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
                if hasattr(socket, name):
                    self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), ORPHAN_CHECK)
        while True:
            await trio.sleep(ORPHAN_CHECK)
            _raise_error_of(self._socket)
            if not is_tcp:
                self._socket.send(b"")  # EPIPE once the other end of a Unix socket is closed

    async def _carry_in(self, both: trio.CancelScope) -> None:
        """What the peer sends goes to the program."""
        with self._receiving:
            while data := await self._stream.receive_some(CHUNK):
                view = memoryview(data)
                while view:
                    try:
                        view = view[self._socket.send(view) :]
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(self._socket)
            self._socket.shutdown(socket.SHUT_WR)
        self._end_direction(both)
