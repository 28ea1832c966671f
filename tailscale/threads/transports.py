"""asyncio's transports over connections of the tailnet: no socket, no task, and one call between the loops per burst.

Owns asyncio's contract: pausing, write limits, half-closes, one `connection_lost`, buffered protocols, `start_tls` and
`sendfile`. Works in any event loop of asyncio's kind. How bytes cross between the threads is `crossing.py`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl as ssl_module
from asyncio import sslproto
from asyncio.transports import _FlowControlMixin  # asyncio's loops send files by nobody else
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tailscale.threads.socket_options import SocketOptions, Value

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import Address
    from tailscale.threads.crossing import Crossing

HIGH_WATER = 1 << 20  # bytes on their way to the other thread: a block there and a block here, as in a socket's buffer
Factory = Callable[[], Any]


class TailnetEnd:
    """What `get_extra_info("socket")` gives: addresses and options. There is no descriptor, so `fileno()` is -1."""

    type, proto = socket.SOCK_STREAM, socket.IPPROTO_TCP

    def __init__(self, local: Address, remote: Address | None = None, options: SocketOptions | None = None) -> None:
        self._local, self._remote, self._options = local, remote, options

    @property
    def family(self) -> socket.AddressFamily:
        """Of its addresses."""
        return socket.AF_INET6 if ":" in self._local[0] else socket.AF_INET

    def getsockname(self) -> Address:
        return self._local

    def getpeername(self) -> Address:
        if self._remote is None:
            raise OSError("a listener has no peer")
        return self._remote

    def fileno(self) -> int:
        return -1

    def setsockopt(self, level: int, option: int, value: Value) -> None:
        """Nagle, keep-alive and SO_LINGER are the connection's; others are remembered."""
        if self._options is not None:
            self._options.set(level, option, value)

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int | bytes:
        return self._options.get(level, option, buflen) if self._options is not None else 0

    def gettimeout(self) -> float:
        """It never blocks."""
        return 0.0

    def __repr__(self) -> str:
        return f"<TailnetEnd {self._local} to {self._remote}>"


class TailnetTransport(_FlowControlMixin, asyncio.Transport):
    """A connection of the tailnet. Made in the loop that uses it, and used there only."""

    _start_tls_compatible = _sendfile_compatible = True  # what asyncio's loops ask; files are read and written then
    if TYPE_CHECKING:

        def _maybe_resume_protocol(self) -> None: ...

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        crossing: Crossing,
        protocol: asyncio.BaseProtocol,
        on_lost: Callable[[TailnetTransport], object] | None = None,
    ) -> None:
        self._options = SocketOptions(crossing)
        end = TailnetEnd(crossing.local, crossing.remote, self._options)
        super().__init__({"peername": crossing.remote, "sockname": crossing.local, "socket": end}, loop)
        self._loop: asyncio.AbstractEventLoop = loop
        self._protocol_paused = False
        self._low_water, self._high_water = HIGH_WATER // 4, HIGH_WATER
        self._crossing = crossing
        self._on_lost = on_lost
        self._reason: BaseException | None = None  # that it was forced to close for
        self._is_paused = self._is_closing = self._is_lost = self._has_eof = self._wrote_eof = False
        self.set_protocol(protocol)

    def begin(self) -> None:
        """`connection_made`, then what has arrived."""
        self.greet()
        self._crossing.begin(self._ring)
        self._hear()

    def greet(self) -> None:
        """Tell the protocol what it is connected by."""
        self._protocol.connection_made(self)

    # From the other thread

    def _ring(self) -> None:
        self._loop.call_soon_threadsafe(self._hear)

    def _hear(self) -> None:
        crossing = self._crossing
        crossing.is_told = False
        if self._is_lost:
            return
        if self._protocol_paused:
            self._maybe_resume_protocol()
        if not self._is_paused and not self._is_closing:
            self._deliver()
        if self._is_closing:
            if not crossing.unwritten or crossing.problem is not None:
                self._lose(self._reason or (crossing.problem if crossing.unwritten else None))
        elif crossing.problem is not None and self._knows_problem():
            self._lose(crossing.problem)

    def _knows_problem(self) -> bool:
        """What arrived before an error is read first, but who writes hears of it at once."""
        if self._is_paused:
            return bool(self._crossing.unwritten)
        return not self._crossing.arrived and not self._crossing.is_stalled

    # Reading

    def _deliver(self) -> None:
        crossing = self._crossing
        try:
            while crossing.arrived and not self._is_paused and not self._is_closing:
                data = crossing.take_arrived()
                if self._is_buffered:
                    self._fill(data)
                else:
                    self._protocol.data_received(data)
            crossing.ask_for_more()
            if crossing.has_ended and not crossing.arrived and not self._has_eof and self._is_reading:
                self._has_eof = True
                if not self._protocol.eof_received():
                    self.close()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fail(error, "Fatal error: a protocol could not take what it received.")

    def _fill(self, data: bytes) -> None:
        while data:
            buffer = memoryview(self._protocol.get_buffer(len(data)))
            size = min(len(buffer), len(data))
            if not size:
                raise RuntimeError("get_buffer() returned an empty buffer")
            buffer[:size] = data[:size]
            self._protocol.buffer_updated(size)
            data = data[size:]
            if data and (self._is_paused or self._is_closing or not self._is_buffered):
                self._crossing.put_back(data)
                return

    @property
    def _is_reading(self) -> bool:
        return not self._is_paused and not self._is_closing

    def is_reading(self) -> bool:
        return self._is_reading and not self._has_eof

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._loop.call_soon(self._hear)

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, bytes):
            if not isinstance(data, bytearray | memoryview):
                raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
            data = bytes(data)
        if self._wrote_eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self._is_closing:
            return
        crossing = self._crossing
        crossing.write(data)
        if crossing.problem is not None:
            self._loop.call_soon(self._hear)
        elif crossing.unwritten > self._high_water:
            self._maybe_pause_protocol()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def _maybe_pause_protocol(self) -> None:
        super()._maybe_pause_protocol()  # type: ignore[misc]
        if self._protocol_paused:
            self._crossing.wants_room = self._low_water + 1
            self._maybe_resume_protocol()  # the room may have been made meanwhile

    def get_write_buffer_size(self) -> int:
        return self._crossing.unwritten

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._is_closing and not self._wrote_eof:
            self._wrote_eof = True
            self._crossing.write_eof()

    # The end

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        """Sends what was written, then calls `connection_lost`."""
        if self._is_closing:
            return
        if self._options.is_reset_by_closing:
            self.abort()
            return
        self._is_closing = True
        self._crossing.close()
        if not self._crossing.unwritten:
            self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        """Resets the connection."""
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:
        self._is_closing, self._reason = True, error
        self._crossing.abort()
        self._loop.call_soon(self._lose, error)

    def _fail(self, error: BaseException, message: str) -> None:
        context = {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        self._loop.call_exception_handler(context)
        self._force_close(error)

    def _lose(self, error: BaseException | None) -> None:
        if self._is_lost:
            return
        self._is_lost = self._is_closing = True
        if error is not None:
            self._crossing.abort()
        try:
            self._protocol.connection_lost(error)
        finally:
            if self._on_lost is not None:
                self._on_lost(self)

    # Whom it serves

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol: Any = protocol
        self._is_buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def __repr__(self) -> str:
        state = " closed" if self._is_lost else " closing" if self._is_closing else ""
        return f"<TailnetTransport {self._crossing.local} to {self._crossing.remote}{state}>"


# TLS, and whole connections

Ssl = ssl_module.SSLContext | bool | None


def tls_below(
    loop: asyncio.AbstractEventLoop,
    protocol: asyncio.BaseProtocol,
    context: Ssl,
    waiter: asyncio.Future[None] | None = None,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
    **options: Any,
) -> asyncio.BaseProtocol:
    """What speaks TLS between one of our transports and `protocol`, in any event loop."""
    given: Any = None if isinstance(context, bool) else context
    waits: Any = waiter
    return sslproto.SSLProtocol(loop, protocol, given, waits, server_side, server_hostname, **options)


class _Greeted(asyncio.Protocol):
    """Stands above TLS until the handshake is done, and takes its transport for `protocol`."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.set_protocol(self._protocol)


async def _secured(
    below: TailnetTransport, protocol: asyncio.BaseProtocol, context: Ssl, begin: Callable[[], object], **of_tls: Any
) -> asyncio.Transport:
    """The transport above a handshake with what is at the other end of `below`, made for `protocol`."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    greeted = _Greeted(protocol)
    below.set_protocol(tls_below(loop, greeted, context, waiter, **of_tls))
    try:
        begin()
        await waiter
    except BaseException:
        below.abort()
        raise
    made: asyncio.Transport = greeted.transport
    return made


async def connected(crossing: Crossing, protocol: Any, ssl: Ssl = None, **of_tls: Any) -> asyncio.Transport:
    """The transport of a connection that was dialled; `protocol` has been told of it."""
    transport: asyncio.Transport
    transport = below = TailnetTransport(asyncio.get_running_loop(), crossing, protocol)
    try:
        if ssl:
            transport = await _secured(below, protocol, ssl, below.begin, **of_tls)
            protocol.connection_made(transport)
        else:
            below.begin()
    except BaseException:
        below.abort()
        raise
    return transport


async def streams_of(
    crossing: Crossing, limit: int, ssl: Ssl = None, **of_tls: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """asyncio's pair over a connection that was dialled."""
    loop = loop_for_streams()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = await connected(crossing, protocol, ssl, **of_tls)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def loop_for_streams() -> asyncio.AbstractEventLoop:
    """What asyncio's streams are given as their loop, so that `start_tls` takes our transports."""
    loop: Any = asyncio.get_running_loop()
    return loop if isinstance(loop, asyncio.BaseEventLoop) else _LoopThatTakesOurs(loop)  # type: ignore[return-value]


class _LoopThatTakesOurs:
    """An event loop that is not asyncio's own, as uvloop: its `start_tls` takes its own transports only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def start_tls(
        self, transport: Any, protocol: asyncio.BaseProtocol, sslcontext: ssl_module.SSLContext, **options: Any
    ) -> Any:
        if not isinstance(transport, TailnetTransport):
            return await self._loop.start_tls(transport, protocol, sslcontext, **options)
        return await _secured(transport, protocol, sslcontext, transport.greet, **options)
