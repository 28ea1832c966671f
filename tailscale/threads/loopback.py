"""Real sockets for libraries that insist on one: each is an end of a loopback connection whose other end is ours.

Owns how such a pair of ends is made, and what addresses it shows. What passes between them is carried by `carry.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import trio

from tailscale.errors import TailscaleError
from tailscale.local_callers import CALLERS
from tailscale.local_ports import LOOPBACK
from tailscale.sockets.local import LocalStream, raise_error_of

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import Address

LOOPBACK6, MAPPED = "::1", "::ffff:"  # the second: IPv4 as IPv6 sockets write it (RFC 4291 section 2.5.5.2)
DOOR_PATIENCE = 5.0  # for a connection that the kernel has made already
PORT_ATTEMPTS = 8
STRANGERS = 16  # local connections we tolerate while waiting for our own
# Idle time, interval, count: the option where the system has one (macOS has its own for the first), else what is usual.
KEEPALIVE_TIMES: tuple[tuple[int | None, int], ...] = (
    (getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None)), 7200),
    (getattr(socket, "TCP_KEEPINTVL", None), 75),
    (getattr(socket, "TCP_KEEPCNT", None), 9),
)
KEEPALIVE_OPTIONS = {(socket.SOL_SOCKET, socket.SO_KEEPALIVE)} | {
    (socket.IPPROTO_TCP, option) for option, _ in KEEPALIVE_TIMES if option is not None
}


class FarEnd(NamedTuple):
    """What a socket of ours stands for: a connection of the tailnet."""

    local: Address
    remote: Address
    keep_alive: Callable[[float | None, float, int], object]
    """How to probe a silent peer: seconds of silence (None: never), seconds between probes, probes."""


def keepalive_of(sock: socket.socket) -> tuple[float | None, float, int]:
    """As the kernel keeps it for a socket: seconds of silence (None: never), seconds between probes, probes."""
    idle, interval, count = (
        sock.getsockopt(socket.IPPROTO_TCP, option) if option is not None else usual
        for option, usual in KEEPALIVE_TIMES
    )
    is_on = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return (float(idle) if is_on else None), float(interval), count


class TailnetSocket(socket.socket):
    """An ordinary socket, except that it gives the tailnet's addresses as its own and its peer's.

    `SO_KEEPALIVE` and its times probe the peer across the tailnet: a node that is killed says no goodbye.
    """

    def __init__(self, sock: socket.socket, far: FarEnd) -> None:
        timeout = sock.gettimeout()
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.settimeout(timeout)
        self._far = far

    def dup(self) -> TailnetSocket:
        """Another descriptor of this connection, which lives until both are closed."""
        made = TailnetSocket(socket.socket(fileno=os.dup(self.fileno())), self._far)
        made.settimeout(self.gettimeout())
        return made

    def getsockname(self) -> Address:
        return self._far.local

    def getpeername(self) -> Address:
        return self._far.remote

    @property
    def family(self) -> socket.AddressFamily:
        """Of the addresses it gives."""
        return socket.AF_INET6 if ":" in self._far.remote[0] else socket.AF_INET

    def connect(self, address: Any) -> None:
        """It is connected; to there, that is no mistake: there are libraries that connect whatever they are given."""
        if tuple(address[:2]) != self._far.remote:
            raise OSError(
                errno.EISCONN, "this socket of the tailnet is connected to {} port {}".format(*self._far.remote)
            )

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        super().setsockopt(level, option, *value)
        if (level, option) in KEEPALIVE_OPTIONS:
            with contextlib.suppress(TailscaleError):  # the device is closed, and the connection with it
                self._far.keep_alive(*keepalive_of(self))


class TailnetListener(socket.socket):
    """A listening socket fed from the tailnet: `accept()` gives sockets and tailnet addresses.

    It is a real one on loopback, for selectors and event loops; what other programs of this machine connect to it is
    hung up on.
    """

    def __init__(self, port: int, host: str, backlog: int, on_close: Callable[[], object]) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets options by the protocol
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited: a tailnet's own streams have it too
        self.bind((LOOPBACK, 0))
        self.listen(backlog)
        self.port = port
        self._door: Address = super().getsockname()
        self.expected: dict[Address, FarEnd] = {}
        self._host = host
        self.on_close = on_close
        self._waiting = 0
        self._is_over = False

    @property
    def door(self) -> Address:
        """Where it listens on this machine."""
        return self._door

    def accept(self) -> tuple[socket.socket, Address]:
        while True:
            sock, source = self._accept_any()
            far = self.expected.pop(source, None)
            if far is not None:
                return TailnetSocket(sock, far), far.remote
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
            self.on_close()


class Door:
    """A loopback listener for one connection, whose source is known: what others of this machine dial is hung up on."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        self._listener, host = _on_loopback(family)
        self._listener.listen(1)
        self._listener.settimeout(DOOR_PATIENCE)
        self.address = (host, self._listener.getsockname()[1])

    def admit(self, source: tuple[Any, ...]) -> socket.socket:
        """Our end of the connection that came from `source`; it is there already."""
        for _ in range(STRANGERS):
            accepted, address = self._listener.accept()
            if address[1] == source[1] and address[0] == source[0].removeprefix(MAPPED):
                accepted.setblocking(False)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return accepted
            accepted.close()
        raise ConnectionError("other programs keep connecting to our loopback ports")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def _on_loopback(family: int) -> tuple[socket.socket, str]:
    """A socket bound there, and the address by which sockets of `family` reach it."""
    if family == socket.AF_INET6:
        with contextlib.suppress(OSError):  # a machine without IPv6 has sockets of it nevertheless
            return _bound(socket.socket(family), LOOPBACK6), LOOPBACK6
        return _bound(socket.socket(), LOOPBACK), MAPPED + LOOPBACK
    return _bound(socket.socket(), LOOPBACK), LOOPBACK


def _bound(sock: socket.socket, host: str) -> socket.socket:
    try:
        sock.bind((host, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def loopback_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, nobody in between. TCP, so that resets and options mean what they say."""
    with Door() as door:
        theirs = socket.create_connection(door.address, timeout=DOOR_PATIENCE)
        try:
            ours = door.admit(theirs.getsockname())
        except BaseException:
            theirs.close()
            raise
    theirs.setblocking(True)
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


async def connect_back(listener: TailnetListener, far: FarEnd, owner: object | None) -> LocalStream:
    """Our end of a connection that `listener.accept` will return for `far`, a caller of the device `owner`.

    Without an owner it is nobody of a tailnet.
    """
    for attempt in range(PORT_ATTEMPTS):
        try:
            return await _connect_back(listener, far, owner, reuse=attempt > 0)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
    raise OSError(errno.EADDRNOTAVAIL, "this machine has no loopback ports left")


async def _connect_back(listener: TailnetListener, far: FarEnd, owner: object | None, *, reuse: bool) -> LocalStream:
    """With `reuse` also from ports that are still cooling down: only when fresh ones have run out."""
    ours = socket.socket()
    leaving = contextlib.ExitStack()
    try:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours.bind((LOOPBACK, 0))
        source: Address = ours.getsockname()
        if owner is not None:
            # What a server sees: these addresses where it rebuilt the socket from its number, else the tailnet's.
            leaving.callback(CALLERS.end, CALLERS.begin(owner, source, listener.door, far.remote))
            leaving.callback(CALLERS.end, CALLERS.begin(owner, far.remote, far.local, far.remote))
        listener.expected[source] = far
        leaving.callback(listener.expected.pop, source, None)
        try:
            ours.connect(listener.door)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(ours)
            raise_error_of(ours)
    except BaseException:
        leaving.close()
        ours.close()
        raise
    return LocalStream(ours, leaving.close)
