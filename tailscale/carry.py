"""Two streams joined: the one piece that carries bytes between the tailnet and anything else.

Owns both streams from the moment it is given them: an end on one side is passed on while the other way lives on, a
reset arrives as a reset, and afterwards both are closed. Holds one piece of bytes per direction; all other buffering is
the streams' own. Knows neither devices nor listeners.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import trio

from tailscale.sockets.local import CHUNK, LINGER_ZERO, LocalStream
from tailscale.sockets.tcp import TcpStream
from tailscale.sockets.udp import UdpSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tailscale.forwarding import FlowHandler, ForwardLimits
    from tailscale.sockets.socket_device import SocketDevice
    from ts_netstack.forwarder import ForwardedFlow
    from ts_netstack.tcp import TcpConnection

LOST = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
CLOSE_PATIENCE = 1.0  # for streams that say goodbye when they are closed, as TLS does

Stream = trio.abc.HalfCloseableStream


@runtime_checkable
class Abortable(Protocol):
    """A stream that can be reset."""

    def abort(self) -> None: ...


class TlsEnd(trio.abc.HalfCloseableStream):
    """TLS cannot end one direction only: the end of one is the end of both."""

    def __init__(self, stream: trio.SSLStream[Any]) -> None:
        self._stream = stream

    @property
    def is_readable(self) -> bool:
        """Whether something has come that nobody has read."""
        return bool(getattr(self._stream.transport_stream, "is_readable", False))

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.aclose()

    def abort(self) -> None:
        """Reset the connection below, without a goodbye."""
        self._stream.transport_stream.abort()

    async def aclose(self) -> None:
        await self._stream.aclose()


@runtime_checkable
class OfDevice(Protocol):
    """A stream that a device's end must not make look whole."""

    def reset_with_device(self) -> None: ...


@dataclass(slots=True)
class Carried:
    """Bytes, counted while they pass. Several splices may share one."""

    sent: int = 0
    received: int = 0


async def splice(a: Stream, b: Stream) -> None:
    """Carry bytes both ways until both sides have finished sending, then close both.

    When one side breaks, the other is reset and the error is raised. Cancelled, it resets both.

    ```python
    async with await device.listen(8080) as listener:
        caller = await listener.accept()
        await tailscale.splice(caller, await device.tcp_connect("db", 5432))
    ```
    """
    await Splice(a, b).run()


class Splice:
    """`near` and `far`, joined. `finish` ends it before they do, with what `near` has written already."""

    def __init__(self, near: Stream, far: Stream, carried: Carried | None = None) -> None:
        self._near = near
        self._far = far
        self._carried = carried if carried is not None else Carried()
        self._receiving = trio.CancelScope()
        self._is_finishing = False
        self._open_directions = 2
        self._problem: BaseException | None = None
        for stream in (near, far):
            if isinstance(stream, OfDevice):
                stream.reset_with_device()

    def finish(self) -> None:
        """Take what is there of `near`, hear nothing more of `far`, then end."""
        self._is_finishing = True
        self._receiving.cancel()
        if isinstance(self._near, LocalStream):
            self._near.finish()

    async def run(self) -> None:
        """Until both sides have finished, or one broke. Then both are closed, or both reset."""
        is_whole = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry_out, nursery.cancel_scope)
                await self._carry_in(nursery.cancel_scope)
            is_whole = self._problem is None
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_PATIENCE):
                await (self._far.aclose() if is_whole else reset(self._far))
                await (self._near.aclose() if is_whole and not self._is_finishing else reset(self._near))
        if self._problem is not None:
            raise self._problem

    async def _carry_out(self, both: trio.CancelScope) -> None:
        try:
            while data := await self._near.receive_some(CHUNK):
                await self._far.send_all(data)
                self._carried.sent += len(data)
            await self._far.send_eof()
            self._end_direction(both)
            if isinstance(self._near, LocalStream):
                await self._near.wait_gone()
        except LOST as problem:
            self._break(problem, both)

    async def _carry_in(self, both: trio.CancelScope) -> None:
        try:
            with self._receiving:
                while data := await self._far.receive_some(CHUNK):
                    await self._near.send_all(data)
                    self._carried.received += len(data)
                await self._near.send_eof()
            self._end_direction(both)
        except LOST as problem:
            self._break(problem, both)

    def _end_direction(self, both: trio.CancelScope) -> None:
        self._open_directions -= 1
        if not self._open_directions:
            both.cancel()

    def _break(self, problem: BaseException, both: trio.CancelScope) -> None:
        """The first error is the cause; what the other way meets afterwards is its echo."""
        if self._problem is None:
            self._problem = problem
        both.cancel()


class ForwardCarrier:
    """Carries what somebody in the tailnet opened to an address we forward for. One per device."""

    def __init__(self, device: SocketDevice, limits: ForwardLimits) -> None:
        self._device, self._limits = device, limits
        self.carried = Carried()

    def _stream(self, connection: TcpConnection) -> TcpStream:
        """The caller's end. One that is gone without a word must not keep ours open for ever."""
        caller, limits = TcpStream(connection, self._device), self._limits
        caller.set_keepalive(limits.keepalive_idle, limits.keepalive_interval, limits.keepalive_count)
        return caller

    async def join(self, connection: TcpConnection, outward: Stream) -> None:
        """With a stream that we opened to its destination."""
        near = LocalStream.adopt(outward) if isinstance(outward, trio.SocketStream) else outward
        caller = self._stream(connection)
        async with trio.open_nursery() as nursery:
            # A destination that reads no more would let nobody notice that the caller is gone.
            nursery.start_soon(_cancel_after, caller.wait_broken, nursery.cancel_scope)
            with contextlib.suppress(*LOST):  # the other side has heard of it
                await Splice(near, caller, self.carried).run()
            nursery.cancel_scope.cancel()

    async def hand_connection(self, connection: TcpConnection, handler: FlowHandler) -> None:
        """With a function of the program's."""
        caller = self._stream(connection)
        caller.reset_with_device()
        try:
            await handler(caller)
        except LOST:
            caller.abort()  # the caller is gone, which is no mistake of the program's
        except BaseException:
            caller.abort()
            raise
        else:
            await caller.aclose()

    async def hand_flow(self, flow: ForwardedFlow, handler: FlowHandler) -> None:
        """Datagrams, with a function of the program's; its end is the flow's, and the other way round."""
        socket = UdpSocket(flow, self._device)
        socket.join()
        problem: Exception | None = None
        async with socket, trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, socket.wait_ended, nursery.cancel_scope)
            try:
                await handler(socket)
            except LOST:
                pass  # the flow has ended, which is no mistake of the program's
            except Exception as error:
                problem = error
            nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem


async def _cancel_after(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


async def reset(stream: trio.abc.AsyncResource) -> None:
    """Close so that the other end gets an error, not the end of a stream, whatever wraps the connection."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if isinstance(stream, Abortable):
        stream.abort()
        return
    if isinstance(stream, trio.SocketStream):
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, LINGER_ZERO)
    await trio.aclose_forcefully(stream)
