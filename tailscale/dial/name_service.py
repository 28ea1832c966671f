"""Where the device's resolver can be asked as a DNS server: at 100.100.100.100 inside, and on ports of this machine.

Owns the loops that carry queries and replies, over UDP and TCP. 100.100.100.100 stands inside the device's own stack:
packets of peers for it are refused by the filter, which knows only the addresses that control gave us. RFC 7766.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import trio

from tailscale.dns.forwarding import LENGTH
from tailscale.dns.local import SERVICE_ADDRESSES
from tailscale.sockets.tcp import TcpListener, TcpStream
from tailscale.sockets.udp import UdpSocket
from ts_base.ip import maybe_address

if TYPE_CHECKING:
    from types import TracebackType

    from tailscale.dns.responder import Responder
    from tailscale.sockets.socket_device import SocketDevice
    from ts_netstack.stack import Stack

PORT = 53
LARGEST_QUERY = 4096
STREAMS_LIMIT = 64  # TCP connections of one door; more are closed at once
PIPELINED = 16  # queries of one connection that are answered at the same time
IDLE = 45.0
STALL = 10.0  # for a client that does not read its answers
DATAGRAM = 65_535
FREE_PORT_TRIES = 16  # numbers free for UDP that TCP is asked for
GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)

Receive = Callable[[], Awaitable[tuple[bytes, Any]]]
Send = Callable[[bytes, Any], Awaitable[object]]


async def serve_datagrams(receive: Receive, send: Send, responder: Responder) -> None:
    """Until the socket is closed, or this is cancelled. How many are answered at once is the responder's to bound."""

    async def answer(query: bytes, source: Any) -> None:
        reply = await responder.answer(query, over_udp=True)
        if reply is not None:
            try:
                await send(reply, source)
            except GONE:
                return  # whoever asked is gone, or we are

    async with trio.open_nursery() as nursery:
        while True:
            try:
                query, source = await receive()
            except trio.ClosedResourceError:
                return
            except OSError:  # of a datagram before: its sender has closed its port
                continue
            nursery.start_soon(answer, query, source)


async def serve_stream(stream: trio.abc.Stream, responder: Responder) -> None:
    """One connection: queries as they come, replies as they are known, in any order."""
    writing, places = trio.Lock(), trio.Semaphore(PIPELINED)

    async def answer(query: bytes, scope: trio.CancelScope) -> None:
        try:
            reply = await responder.answer(query, over_udp=False)
            if reply is not None:
                async with writing:
                    with trio.fail_after(STALL):
                        await stream.send_all(LENGTH.pack(len(reply)) + reply)
        except (*GONE, trio.TooSlowError):
            scope.cancel()
        finally:
            places.release()

    received = bytearray()
    async with trio.open_nursery() as nursery:
        try:
            while True:
                while len(received) < LENGTH.size or len(received) < LENGTH.size + LENGTH.unpack_from(received)[0]:
                    if len(received) >= LENGTH.size and LENGTH.unpack_from(received)[0] > LARGEST_QUERY:
                        nursery.cancel_scope.cancel()
                    with trio.fail_after(IDLE):
                        data = await stream.receive_some(LARGEST_QUERY)
                    if not data:
                        return
                    received += data
                size = LENGTH.size + LENGTH.unpack_from(received)[0]
                await places.acquire()
                nursery.start_soon(answer, bytes(received[LENGTH.size : size]), nursery.cancel_scope)
                del received[:size]
        except (*GONE, trio.TooSlowError):
            nursery.cancel_scope.cancel()


class Door:
    """The connections of one TCP door."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._open = 0

    async def visit(self, stream: trio.abc.Stream) -> None:
        if self._open >= STREAMS_LIMIT:
            await trio.aclose_forcefully(stream)
            return
        self._open += 1
        try:
            async with stream:
                await serve_stream(stream, self._responder)
        except GONE:
            return
        finally:
            self._open -= 1


# -- inside ------------------------------------------------------------------------------------------------------------


@trio.lowlevel.enable_ki_protection
async def run_name_service(
    stack: Stack,
    device: SocketDevice,
    responder: Responder,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer at 100.100.100.100 port 53. Owns: its sockets. Hears and says: nothing on the bus."""
    listener = TcpListener([stack.listen(PORT, address) for address in SERVICE_ADDRESSES], device)
    async with listener, trio.open_nursery() as nursery:
        for address in SERVICE_ADDRESSES:
            nursery.start_soon(_serve_port, UdpSocket(stack.bind_udp(PORT, address), device), responder)
        door = Door(responder)
        task_status.started()
        while True:
            try:
                stream: TcpStream = await listener.accept()
            except trio.ClosedResourceError:
                return  # the device closes
            nursery.start_soon(door.visit, stream)


@trio.lowlevel.enable_ki_protection
async def _serve_port(port: UdpSocket, responder: Responder) -> None:
    async with port:
        await serve_datagrams(port.receive_from, port.send_to, responder)


# -- on this machine ---------------------------------------------------------------------------------------------------


class NameServer:
    """A DNS server on this machine, UDP and TCP on one port, for programs and containers that know no tailnet.

    ```python
    async with device.name_server() as server:
        print(f"nameserver {server.host}, port {server.port}")
    ```
    """

    def __init__(self, host: str, udp: trio.socket.SocketType, listener: trio.SocketListener) -> None:
        self.host = host
        self.port: int = udp.getsockname()[1]
        self._udp, self._listener = udp, listener
        self._scope = trio.CancelScope()

    async def run(self, responder: Responder) -> None:
        """Until it is closed."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_datagrams, partial(self._udp.recvfrom, DATAGRAM), self._udp.sendto, responder)
                await trio.serve_listeners(Door(responder).visit, [self._listener])

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """No more questions; those under way are dropped."""
        self.shut()
        await trio.lowlevel.checkpoint()

    def shut(self) -> None:
        """The same without being able to wait."""
        self._scope.cancel()
        self._udp.close()
        self._listener.socket.close()

    def __repr__(self) -> str:
        return f"<NameServer {self.host}:{self.port}>"


async def open_name_server(host: str, port: int, responder: Responder, spawn: Callable[..., object]) -> NameServer:
    """Listening already when it is returned. OSError where the port is taken."""
    address = maybe_address(host)
    if address is None:
        raise ValueError(f"a name server listens on an address of this machine such as 127.0.0.1, not on {host!r}")
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    for left in reversed(range(1 if port else FREE_PORT_TRIES)):
        try:
            udp, tcp = await _bound_alike(family, host, port)
            break
        except OSError as error:
            if not left or error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, f"cannot answer names on {host} port {port}: {error.strerror}") from None
    server = NameServer(host, udp, trio.SocketListener(tcp))
    spawn(server.run, responder)
    return server


async def _bound_alike(
    family: socket.AddressFamily, host: str, port: int
) -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """A UDP and a listening TCP socket of one number. The system chooses 0 for UDP only, so TCP may find it taken."""
    udp = trio.socket.socket(family, socket.SOCK_DGRAM)
    tcp = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two servers share the port
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await udp.bind((host, port))
        await tcp.bind((host, udp.getsockname()[1]))
        tcp.listen(STREAMS_LIMIT)
    except OSError:
        udp.close()
        tcp.close()
        raise
    return udp, tcp
