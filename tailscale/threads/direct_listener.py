"""A listening socket of the tailnet for threads, without a descriptor until somebody asks for one.

Owns how a thread waits in `accept`, and how a real listener on loopback takes its place. `direct.py` has the sockets.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from tailscale.errors import TailscaleError
from tailscale.sockets.early import EarlyStream
from tailscale.threads import bridges
from tailscale.threads.crossing import Crossing
from tailscale.threads.direct import DirectSocket, Waiting
from tailscale.threads.loopback import TailnetListener

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import Address
    from tailscale.threads.accepting import Accepting
    from tailscale.threads.loop_thread import LoopThread


class _Arrived(Waiting):
    """What nobody has accepted yet. The device knows this, not the listener, which may be lost."""

    def __init__(self) -> None:
        super().__init__()
        self.crossings: deque[Crossing] = deque()
        self.is_over = False

    def hand(self, crossing: Crossing) -> None:
        """One more. Inside."""
        self.crossings.append(crossing)
        self.tell()

    def end(self) -> None:
        """No more. Inside."""
        self.is_over = True
        self.tell()


class DirectListener(TailnetListener):
    """`accept()` gives sockets and tailnet addresses. It listens on loopback as well once a descriptor is asked for."""

    def __init__(self, thread: LoopThread, accepting: Accepting, where: Address, backlog: int) -> None:
        self._io_refs = 0
        self._closed = False
        self._host, self.port = where
        self._thread = thread
        self._backlog = backlog
        self._accepting: Accepting | None = accepting
        self._arrived = _Arrived()
        self._timeout: float | None = None
        self._turning = Lock()
        accepting.begin(self._arrived.hand, self._arrived.end)

    def accept(self) -> tuple[socket.socket, Address]:
        with self._arrived.news:
            crossing = self._arrived.until(self._look, self._timeout, _nothing)
        if isinstance(crossing, Crossing):
            if self._accepting is not None:
                self._accepting.take()
            return DirectSocket(crossing, self._thread), crossing.remote
        self._become_real()
        return super().accept()

    def _look(self) -> Crossing | bool | None:
        """A connection, or True where this has become real."""
        if self._accepting is None:
            return True
        if self._closed or self._arrived.is_over:
            raise OSError(errno.EINVAL, "nothing arrives here any more: the listener or its device was closed")
        return self._arrived.crossings.popleft() if self._arrived.crossings else None

    def __iter__(self) -> Iterator[tuple[socket.socket, Address]]:
        """Connections, until the listener or the device is closed."""
        while not self._closed:
            try:
                yield self.accept()
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EBADF):
                    return
                raise

    def close(self) -> None:
        with self._arrived.news:
            accepting = self._accepting
            if accepting is not None:
                if not self._closed:
                    self._closed = True
                    accepting.end()
                    for crossing in self._arrived.crossings:
                        crossing.abort()
                self._arrived.news.notify_all()
                return
        super().close()

    @property
    def timeout(self) -> float | None:
        """As `gettimeout`."""
        return self._timeout

    def gettimeout(self) -> float | None:
        return self._timeout

    def settimeout(self, value: float | None, /) -> None:
        self._timeout = value
        if self._accepting is None:
            super().settimeout(value)

    def setblocking(self, flag: bool, /) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self._timeout != 0

    @property
    def family(self) -> socket.AddressFamily:
        """Of the loopback address behind it."""
        return socket.AF_INET

    @property
    def type(self) -> socket.SocketKind:
        """A stream."""
        return socket.SOCK_STREAM

    @property
    def proto(self) -> int:
        """TCP."""
        return socket.IPPROTO_TCP

    def __repr__(self) -> str:
        if self._accepting is None:
            return super().__repr__()
        return f"<TailnetListener on port {self.port}{' closed' if self._closed else ''}>"

    def __del__(self) -> None:
        accepting = getattr(self, "_accepting", None)
        if accepting is None or self._closed:
            super().__del__()  # type: ignore[misc]
        else:
            accepting.end()  # first: a warning may be an error
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)

    # Becoming real

    @property
    def door(self) -> Address:
        """Where it listens on this machine."""
        self._become_real()
        return super().door

    def fileno(self) -> int:
        """A descriptor, made now if there was none. -1 once it is closed."""
        self._become_real()
        return -1 if self._accepting is not None else super().fileno()

    def detach(self) -> int:
        """The descriptor, which is the caller's from now on."""
        self._become_real()
        return super().detach()

    def listen(self, *backlog: int) -> None:
        """It does; whoever says so is about to select."""
        if self._accepting is not None:
            self._become_real()
        super().listen(*backlog)

    def setsockopt(self, *option: Any) -> None:
        if self._accepting is not None:
            self._become_real()
        super().setsockopt(*option)

    def getsockopt(self, *option: Any) -> Any:
        self._become_real()
        return super().getsockopt(*option)

    def _become_real(self) -> None:
        with self._turning:
            with self._arrived.news:
                accepting = self._accepting
                if accepting is None or self._closed:
                    return
                self._accepting = None  # first: what makes the other one asks no more
                super().__init__(self.port, self._host, self._backlog, _nothing)
                super().settimeout(self._timeout)
                self._arrived.news.notify_all()
            feed = partial(_feed, self._thread, accepting, self._arrived, weakref.ref(self))
            stop = partial(_stop, self._thread, self._thread.submit(feed).wait())
            self.on_close = stop
            weakref.finalize(self, stop).atexit = False


async def _feed(thread: LoopThread, accepting: Accepting, arrived: _Arrived, door: weakref.ref[TailnetListener]) -> Any:
    """Bring connections to a real listener from now on, those first that had arrived. What to cancel is returned."""
    listener = accepting.give_away()
    streams = []
    for crossing in arrived.crossings:
        stream, early, _ = crossing.give_back()
        streams.append(EarlyStream(stream, early) if early else stream)
    return thread.spawn(bridges.feed, thread, listener, door, streams)


def _stop(thread: LoopThread, feeding: Any) -> None:
    with contextlib.suppress(TailscaleError):  # the loop has ended: so has the feeding
        thread.call_soon(feeding.cancel)


def _nothing() -> None:
    """Whoever hands one out tells it in any case."""
