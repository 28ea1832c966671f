"""Sockets of an association: towards the client, and towards whatever way a destination is reached by.

Three ways lead out, as for streams: the tailnet's, an exit's, this machine's. Each is opened when it is first needed.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from tailscale.errors import NameNotFound, NoRoute
from tailscale.sockets.tcp import TcpStream
from ts_base.ip import MAXIMUM_DATAGRAM, maybe_address

if TYPE_CHECKING:
    from tailscale.proxy.gate import Gate
    from tailscale.proxy.requests import Request
    from tailscale.proxy.service import Client

Address = tuple[str, int]


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
    """The ways out of one association."""

    def __init__(self, gate: Gate, request: Request) -> None:
        self._gate = gate
        self._request = request

    async def route_to(self, host: str, port: int) -> Route:
        """The error that says why there is none."""
        device, exits = self._gate.device, self._gate.exits
        if exits.kind == "policy":
            is_tailnet, found, via = await device.way_by(host, "any")
            if is_tailnet and via is not None:
                address = await exits.resolve(found, session=self._gate.session_of(self._request))
                return Route("exit", (address, port))
        else:
            is_tailnet, found = await device.way_to(host)
        if is_tailnet:
            return Route("tailnet", (await device.resolve(found), port))
        if exits.kind == "direct":
            address = await _resolved(found)
            self._gate.check_outside(address)  # a name may lead to this machine too
            return Route("host6" if ":" in address else "host", (address, port))
        raise NoRoute(f"{host} is not in the tailnet, and no exit is to be used")

    async def open(self, way: str) -> Datagrams:
        """A socket for one of the ways."""
        if way == "tailnet":
            return await self._gate.device.udp()
        if way == "exit":
            return await self._gate.exits.udp(session=self._gate.session_of(self._request))
        return HostDatagrams("::" if way == "host6" else "0.0.0.0")


async def _resolved(host: str) -> str:
    """The first address that this machine's resolver gives."""
    if maybe_address(host) is not None:
        return host
    found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    if not found:
        raise NameNotFound(host)
    return str(found[0][4][0])
