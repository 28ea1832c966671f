"""What a user holds of UDP: a trio socket over a port of the userspace stack.

A thin face: all waiting happens here; all protocol happens there. Every call is a checkpoint, survives cancellation at
it, and never holds a datagram across one.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import trio

from tailscale.errors import ConnectionRefused, NoRoute
from tailscale.sockets.closing import Closable, SocketOwner
from tailscale.sockets.socket_device import readable_address
from ts_base.ip import MAXIMUM_DATAGRAM, format_address

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.sockets.socket_device import Address, Bytes, SocketDevice
    from ts_netstack.udp import UdpPort


class _PortOwner(SocketOwner):
    """The stack's end of a socket."""

    __slots__ = ("_port",)

    def __init__(self, port: UdpPort, device: SocketDevice) -> None:
        super().__init__(device)
        self._port = port

    def _end(self) -> None:
        self._port.close()


class UdpSocket(Closable[_PortOwner]):
    """Whole datagrams to and from the tailnet. What nobody reads in time is dropped and counted.

    ```python
    async with await device.udp() as socket:
        await socket.connect(("db", 7))
        await socket.send(b"hello")
        print(await socket.receive())
    ```
    """

    def __init__(self, port: UdpPort, device: SocketDevice) -> None:
        owner = port.owner = _PortOwner(port, device)
        super().__init__(owner)
        self._port = port
        self._device = device
        self._connected: tuple[bytes, int] | None = None

    async def connect(self, address: Address) -> None:
        """Fix the other end: `send` goes there and `receive` hears only from there."""
        self._check_open()
        self._connected = await self._destination(address)
        self._port.connect(self._connected)

    def join(self) -> None:
        """Be connected to whom the port itself is connected to, as one that somebody's flow came with."""
        self._connected = self._port.remote

    async def wait_ended(self) -> None:
        """Return once the flow that it came with has ended."""
        await trio.lowlevel.checkpoint()
        while not self._port.is_closed:
            await self._owner.waiters.park()

    async def send_to(self, data: Bytes, address: Address) -> None:
        """Send one datagram to a name or address."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        self._send(data, await self._destination(address))

    async def send(self, data: Bytes) -> None:
        """Send one datagram to where `connect` said."""
        self._check_open()
        if self._connected is None:
            raise OSError(
                errno.ENOTCONN, "this UDP socket is not connected: use send_to(data, (host, port)) or connect() first"
            )
        await trio.lowlevel.checkpoint()
        self._raise_pending()
        self._send(data, self._connected)

    async def _destination(self, address: Address) -> tuple[bytes, int]:
        """Where a datagram for `address` goes, or the error a kernel would raise."""
        host, port = address
        if not 0 < port < 65536:
            raise OSError(errno.EINVAL, f"port {port} is not between 1 and 65535")
        return await self._device.resolve_address(host, self._port.host, self._port.via), port

    @trio.lowlevel.enable_ki_protection
    def _send(self, data: Bytes, destination: tuple[bytes, int]) -> None:
        self._check_open()
        if len(data) > MAXIMUM_DATAGRAM:
            raise OSError(errno.EMSGSIZE, f"a datagram holds at most {MAXIMUM_DATAGRAM} bytes, not {len(data)}")
        self._port.send(bytes(data), destination, self._device.now())
        self._device.kick()

    def give_up(self) -> None:
        """Break it as if its exit node had left: whoever receives gets NoRoute once what has come is read."""
        self._port.lose()
        self._device.kick()
        self._owner.unpark_all()

    @trio.lowlevel.enable_ki_protection
    async def receive_from(self) -> tuple[bytes, Address]:
        """The next datagram and who sent it."""
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            item = self._port.receive()
            if item is not None:
                return item[0], readable_address(item[1])
            self._raise_pending()
            if self._port.is_closed:
                raise trio.ClosedResourceError("the flow of this UDP socket has ended")
            await self._owner.waiters.park()

    async def receive(self) -> bytes:
        """The next datagram."""
        return (await self.receive_from())[0]

    def _raise_pending(self) -> None:
        if self._port.is_lost:
            raise NoRoute("the exit node of this UDP socket left the tailnet, or is none any more: open another socket")
        problem = self._port.take_error()
        if problem is not None and self._connected is not None:
            host, port = readable_address(self._connected)
            raise ConnectionRefused(f"no UDP port {port} is open at {host}: it answered {problem}")

    def _check_open(self) -> None:
        if self._owner.is_closed:
            raise trio.ClosedResourceError("this UDP socket was closed")

    @property
    def local_address(self) -> Address:
        """Our `(ip, port)`; the ip is "" when it is all of our addresses."""
        host = self._port.host
        return (format_address(host) if host else "", self._port.port)

    @property
    def exit(self) -> Node | None:
        """The node named by `via=` when it was opened; None without, and once that has left the tailnet."""
        return self._device.exit_node(self._port.via)

    @property
    def dropped(self) -> int:
        """Datagrams that arrived while nobody read."""
        return self._port.dropped

    def __repr__(self) -> str:
        return f"<UdpSocket on port {self.local_address[1]}{' closed' if self._owner.is_closed else ''}>"
