"""Sockets of an association: towards the client, and towards whatever way a destination is reached by.

Three ways lead out, as for streams: the tailnet's, an exit's, this machine's. Each is opened when it is first needed.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from tailscale.errors import NameNotFound, NoRoute
from tailscale.sockets.tcp import TcpStream
from tailscale.sockets.udp import UdpSocket
from ts_base.ip import MAXIMUM_DATAGRAM, maybe_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailscale.proxy.gate import Gate
    from tailscale.proxy.service import Client

Address = tuple[str, int]
TAILNET, EXIT, HERE, HERE6 = "the tailnet", "an exit", "IPv4 of this machine", "IPv6 of this machine"


class Datagrams(Protocol):
    """`tailscale.UdpSocket` is one."""

    @property
    def local_address(self) -> Address: ...
    async def receive_from(self) -> tuple[bytes, Address]: ...
    async def send_to(self, data: bytes, address: Address) -> None: ...
    async def aclose(self) -> None: ...


class HostDatagrams:
    """A UDP socket of this machine."""

    def __init__(self, host: str, port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_DGRAM)
        try:
            plain.bind((host, port))
        except BaseException:
            plain.close()
            raise
        self._socket = trio.socket.from_stdlib_socket(plain)

    @property
    def local_address(self) -> Address:
        host, port = self._socket.getsockname()[:2]
        return host, port

    async def receive_from(self) -> tuple[bytes, Address]:
        data, source = await self._socket.recvfrom(MAXIMUM_DATAGRAM + 1)
        return data, (str(source[0]).partition("%")[0], source[1])

    async def send_to(self, data: bytes, address: Address) -> None:
        await self._socket.sendto(data, address)

    async def aclose(self) -> None:
        self._socket.close()
        await trio.lowlevel.checkpoint()


async def open_near(gate: Gate, client: Client) -> Datagrams:
    """Where the client's datagrams are taken: at the address that its connection came to."""
    if isinstance(client.stream, TcpStream):
        return await gate.device.udp(host=client.door[0])
    await trio.lowlevel.checkpoint()
    return HostDatagrams(client.door[0])


class Route(NamedTuple):
    """By which socket a destination is reached, and at which address."""

    way: str
    address: Address


class FarSockets:
    """The ways out of one association. `opened` hears of each new socket, by the word for its way."""

    def __init__(self, gate: Gate, session: str, opened: Callable[[str, Datagrams], None]) -> None:
        self._gate = gate
        self._session = session
        self._opened = opened
        self._sockets: dict[str, Datagrams] = {}

    async def route_to(self, host: str, port: int) -> Route:
        """How a destination is reached; the error that says why it is not."""
        gate = self._gate
        device, kind = gate.device, gate.exits.kind
        if gate.is_tailnets(host):
            return Route(TAILNET, (await device.resolve(host), port))
        if kind == "policy":
            is_tailnet, found, via = await device.way_by(host, "any")
            if is_tailnet and via is not None:
                return Route(EXIT, (await self._resolved_at_exit(found), port))
        else:
            is_tailnet, found = await device.way_to(host)
        if is_tailnet:
            return Route(TAILNET, (await device.resolve(found), port))
        if kind == "direct":
            address = await _resolved_here(found)
            gate.check_outside(address)  # a name may lead to this machine too
            return Route(HERE6 if ":" in address else HERE, (address, port))
        raise NoRoute(f"{host} is not in the tailnet, and no exit is to be used")

    async def _resolved_at_exit(self, host: str) -> str:
        if maybe_address(host) is not None:
            return host
        way_out = await self.socket_for(EXIT)
        assert isinstance(way_out, UdpSocket)
        if way_out.exit is None:  # nobody else is asked in its place
            raise NoRoute(f"{host} cannot be looked up: the exit node has left the tailnet")
        return await self._gate.device.resolve(host, via=way_out.exit)

    async def socket_for(self, way: str) -> Datagrams:
        """The socket of one way, opened when it is first needed."""
        known = self._sockets.get(way)
        if known is not None:
            return known
        made = await self._open(way)
        if way in self._sockets:  # another datagram was quicker
            await made.aclose()
            return self._sockets[way]
        self._sockets[way] = made
        self._opened(way, made)
        return made

    async def _open(self, way: str) -> Datagrams:
        if way == TAILNET:
            return await self._gate.device.udp()
        if way == EXIT:
            return await self._gate.exits.udp(session=self._session)
        return HostDatagrams("::" if way == HERE6 else "0.0.0.0")

    async def lose(self, way: str, lost: Datagrams) -> None:
        """It leads nowhere any more; what comes next for its destinations opens another."""
        if self._sockets.get(way) is lost:
            del self._sockets[way]
        await lost.aclose()

    async def aclose(self) -> None:
        for one in self._sockets.values():
            await one.aclose()


async def _resolved_here(host: str) -> str:
    """The first address that this machine's resolver gives."""
    if maybe_address(host) is not None:
        return host
    found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    if not found:
        raise NameNotFound(host)
    return str(found[0][4][0])
