"""Blocking sockets over connections of the tailnet that have no descriptor until somebody asks for one.

Owns how a thread waits for bytes, room and connections, with the socket's own timeout; and how a real socket takes the
place of one as soon as a selector, `ssl` or a number is wanted: the bytes that are on their way stay in order. How
bytes cross between the threads is `crossing.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any, TypeVar

from tailscale.carry import Splice
from tailscale.errors import ConnectionReset, DeviceClosed
from tailscale.local_callers import CALLERS, Caller
from tailscale.sockets.early import EarlyStream
from tailscale.sockets.local import LINGER_ZERO, LocalStream
from tailscale.threads.loopback import FarEnd, TailnetSocket, loopback_pair
from tailscale.threads.socket_options import SocketOptions

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import Address
    from tailscale.threads.crossing import Crossing
    from tailscale.threads.loop_thread import LoopThread

MOST_LEAVING = 1 << 20  # bytes that wait to be sent until a writer does
T = TypeVar("T")


class Waiting:
    """How threads of the program wait for what the device's thread tells, each for as long as its socket says."""

    def __init__(self) -> None:
        self.news = Condition()

    def tell(self) -> None:
        """Something has changed. Inside."""
        with self.news:
            self.news.notify_all()

    def until(self, look: Callable[[], T | None], timeout: float | None, is_told: Callable[[], object]) -> T:
        """What `look` returns as soon as it is not None. The caller holds `news`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            is_told()  # from now on somebody listens: what comes after the look is told
            found = look()
            if found is not None:
                return found
            if deadline is None:
                self.news.wait()
                continue
            left = deadline - time.monotonic()
            if timeout == 0:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            if left <= 0:
                raise TimeoutError("timed out")
            self.news.wait(left)


def _real_verb(name: str) -> Any:
    """One that needs a descriptor."""

    def call(self: DirectSocket, *arguments: Any) -> Any:
        return getattr(self.with_descriptor(), name)(*arguments)

    return call


class DirectSocket(TailnetSocket):
    """A connected socket of the tailnet: a blocking call reaches the device's connection itself.

    It becomes a socket with a descriptor when one is asked for (`fileno`, `detach`, `select`, `ssl`), and stays one.
    """

    def __init__(self, crossing: Crossing, thread: LoopThread) -> None:
        # The socket below is made by `_become_real`: until then it has no descriptor, and none of its calls is used.
        self._io_refs = 0
        self._closed = False
        self._thread = thread
        self._crossing: Crossing | None = crossing
        self._options = SocketOptions(crossing)
        self._timeout: float | None = None
        self._waiting = Waiting()
        self._turning = Lock()
        self._ended_reading = self._ended_writing = False
        self._far = FarEnd(crossing.local, crossing.remote, self._options.keep_alive)
        crossing.begin(self._waiting.tell)

    def _listen(self) -> None:
        if self._crossing is not None:
            self._crossing.is_told = False

    # Reading

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if self._crossing is None or flags:
            return bytes(self.with_descriptor().recv(bufsize, flags))
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        with self._waiting.news:
            data = self._next() if bufsize else b""
            if self._crossing is not None:
                if len(data) > bufsize:
                    self._crossing.put_back(data[bufsize:])
                    data = data[:bufsize]
                self._crossing.ask_for_more()
                return data
        return bytes(self.with_descriptor().recv(bufsize))

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        if self._crossing is None or flags:
            return int(self.with_descriptor().recv_into(buffer, nbytes, flags))
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view))
        view[: len(data)] = data
        return len(data)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        return self.recv(bufsize, flags), None

    def _next(self) -> bytes:
        """The next piece, b"" at the end, or because this has become real."""
        crossing = self._crossing
        if crossing is not None and crossing.arrived:
            return crossing.take_arrived()
        return self._waiting.until(self._look_in, self._timeout, self._listen)

    def _look_in(self) -> bytes | None:
        crossing = self._crossing
        if crossing is None or self._ended_reading:
            return b""
        if crossing.arrived:
            return crossing.take_arrived()
        if crossing.has_ended:
            return b""
        self._check(crossing)
        return None

    # Writing

    def send(self, data: Any, flags: int = 0, /) -> int:
        if self._crossing is None or flags:
            return int(self.with_descriptor().send(data, flags))
        with self._waiting.news:
            room = self._waiting.until(self._look_out, self._timeout, self._listen)
            if self._crossing is not None:
                piece = bytes(memoryview(data).cast("B")[:room])
                if piece:
                    self._crossing.write(piece)
                return len(piece)
        return int(self.with_descriptor().send(data))

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        if self._crossing is None or flags:
            self.with_descriptor().sendall(data, flags)
            return
        whole = data if type(data) is bytes else bytes(memoryview(data))
        with self._waiting.news:
            self._waiting.until(self._look_out, self._timeout, self._listen)
            if self._crossing is not None:
                if whole:
                    self._crossing.write(whole)
                if self._crossing.unwritten > MOST_LEAVING:
                    self._waiting.until(self._look_out, self._timeout, self._listen)
                return
        self.with_descriptor().sendall(whole)

    def sendmsg(self, buffers: Iterable[Any], ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        if self._crossing is None or ancdata or flags or address is not None:
            return int(self.with_descriptor().sendmsg(buffers, ancdata, flags))
        return self.send(b"".join(buffers))

    recvfrom_into, recvmsg, recvmsg_into = map(_real_verb, ("recvfrom_into", "recvmsg", "recvmsg_into"))
    sendto, bind, listen = map(_real_verb, ("sendto", "bind", "listen"))

    def _look_out(self) -> int | None:
        """How much may be written; 1 where this has become real."""
        crossing = self._crossing
        if crossing is None:
            return 1
        self._check(crossing)
        if self._ended_writing:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        crossing.wants_room = MOST_LEAVING
        room = MOST_LEAVING - crossing.unwritten
        if room <= 0:
            return None
        crossing.wants_room = 0
        return room

    def _check(self, crossing: Crossing) -> None:
        if self._closed and self._io_refs <= 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if crossing.problem is not None:
            raise ConnectionReset(str(crossing.problem))
        self._thread.check_process()

    # Its end

    def shutdown(self, how: int, /) -> None:
        with self._waiting.news:
            crossing = self._crossing
            if crossing is not None:
                if crossing.problem is not None:
                    raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
                if how != socket.SHUT_WR:
                    self._ended_reading = True
                if how != socket.SHUT_RD and not self._ended_writing:
                    self._ended_writing = True
                    crossing.write_eof()
                self._waiting.news.notify_all()
                return
        self.with_descriptor().shutdown(how)

    def _real_close(self) -> None:
        with self._waiting.news:
            crossing = self._crossing
            if crossing is not None:
                (crossing.abort if self._options.is_reset_by_closing else crossing.close)()
                self._waiting.news.notify_all()
                return
        super()._real_close()  # type: ignore[misc]

    def __del__(self) -> None:
        crossing = getattr(self, "_crossing", None)
        if crossing is None or self._closed:
            super().__del__()  # type: ignore[misc]
            return
        message = f"unclosed {self!r}"
        crossing.close()  # first: a warning may be an error
        warnings.warn(message, ResourceWarning, stacklevel=1, source=self)

    # What it tells of itself

    @property
    def type(self) -> socket.SocketKind:
        """A stream."""
        return socket.SOCK_STREAM

    @property
    def proto(self) -> int:
        """TCP."""
        return socket.IPPROTO_TCP

    @property
    def timeout(self) -> float | None:
        """As `gettimeout`."""
        return self._timeout

    def gettimeout(self) -> float | None:
        return self._timeout

    def settimeout(self, value: float | None, /) -> None:
        if value is not None and value < 0:
            raise ValueError("Timeout value out of range")
        self._timeout = None if value is None else float(value)
        if self._crossing is None:
            super().settimeout(value)

    def setblocking(self, flag: bool, /) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self._timeout != 0

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        if self._crossing is not None and len(value) == 1:
            self._options.set(level, option, value[0])
        else:
            self.with_descriptor().setsockopt(level, option, *value)

    def getsockopt(self, level: int, option: int, *size: int) -> Any:
        if self._crossing is not None:
            return self._options.get(level, option, *size)
        return self.with_descriptor().getsockopt(level, option, *size)

    def __repr__(self) -> str:
        if self._crossing is None:
            return super().__repr__()
        host, port = self._far.remote
        return f"<TailnetSocket to {host} port {port}{' closed' if self._closed else ''}>"

    # Becoming real

    def fileno(self) -> int:
        """A descriptor, made now if there was none. -1 once it is closed."""
        if self._crossing is not None and self._closed:
            return -1
        return int(self.with_descriptor().fileno())

    def detach(self) -> int:
        """The descriptor, which is the caller's from now on."""
        self._become_real()
        return super().detach()

    def with_descriptor(self) -> Any:
        """Its calls as those of a socket with a descriptor."""
        self._become_real()
        return super()

    def _become_real(self) -> None:
        with self._turning:
            with self._waiting.news:
                crossing = self._crossing
                if crossing is None or self._closed:
                    return
                self._crossing = None  # whoever waits comes back as soon as this is done
                self._waiting.news.notify_all()
            made = real_socket(self._thread, crossing)
            references = self._io_refs
            socket.socket.__init__(self, socket.AF_INET, socket.SOCK_STREAM, made.proto, made.detach())
            self._io_refs = references
            super().setblocking(True)
            if rest := b"".join(crossing.leaving):
                super().sendall(rest)
            if self._ended_writing:
                super().shutdown(socket.SHUT_WR)
            for (level, option), value in self._options.all_set():
                with contextlib.suppress(OSError):
                    socket.socket.setsockopt(self, level, option, value)
            super().settimeout(self._timeout)


def real_socket(thread: LoopThread, crossing: Crossing) -> socket.socket:
    """A real one for what crosses, broken where the device is closed. What was to leave is the caller's to send."""
    ours, theirs = loopback_pair()

    async def join() -> None:
        stream, early, caller = crossing.give_back()
        before_close = None if caller is None else _standing(caller, ours.getsockname(), theirs.getsockname())
        far = EarlyStream(stream, early) if early else stream
        thread.join_streams(Splice(LocalStream(ours, before_close), far))

    try:
        thread.submit(join).wait()
    except DeviceClosed:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        ours.close()
    except BaseException:
        ours.close()
        theirs.close()
        raise
    return theirs


def _standing(caller: Caller, source: Address, door: Address) -> Callable[[], object]:
    """A server's socket shows `source` as well from now on, until what is returned is called."""
    standing = [caller]
    with contextlib.suppress(OSError):  # it stood for somebody else not long ago
        standing.append(CALLERS.begin(caller.owner, source, door, caller.remote))

    def end() -> None:
        for one in standing:
            CALLERS.end(one)

    return end
