"""How a device's resolver reaches its servers: over the tailnet where it has a route, else over the host's network.

An exit node is asked over the tailnet and in no other way: by the DNS of its peer API (RFC 8484 over plain HTTP, for
the tunnel encrypts already), or where control names resolvers behind it, through the tunnel there.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING, TypeVar

import trio

from tailscale.dial.peerapi import host_header, port_of
from tailscale.dns import wire
from tailscale.dns.forwarding import ask_over_stream
from tailscale.dns.resolvers import NoAnswer, server_address
from tailscale.runtime.health import show_exit_names
from ts_base.ip import format_address, parse_address
from ts_control.http1 import Http1Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailscale.dial.by_address import AddressDialer
    from tailscale.runtime.health import Health
    from tailscale.runtime.network import Network
    from tailscale.sockets.udp import UdpSocket
    from ts_base.who import PeerId
    from ts_control.netmap import NetMap
    from ts_control.wire import Node

RANDOM_ID = Struct(">H").unpack
T = TypeVar("T")
DNS_PATH, DNS_MESSAGE = "/dns-query", "application/dns-message"
REFUSAL = (
    "does not look names up for us (HTTP 403): it must belong to the same user, or the policy must let us reach "
    "autogroup:internet"
)
NO_DNS = "looks no names up: it has no peer API, and the control server names no resolver behind it"
READ_SIZE = 64 << 10


class ResolverAccess:
    """What `resolvers.ResolverDevice` asks for."""

    def __init__(self, dialer: AddressDialer, network: Network, health: Health) -> None:
        self._dialer = dialer
        self._network = network
        self._health = health

    @property
    def netmap(self) -> NetMap | None:
        return self._dialer.directory.netmap

    def now(self) -> float:
        return self._dialer.now()

    def random_id(self) -> int:
        return int(RANDOM_ID(self._network.entropy(2))[0])

    def routes_to(self, address: bytes) -> bool:
        return self._dialer.reach.routes_to(address)

    async def exchange_datagram(
        self, address: bytes, port: int, question: bytes, read: Callable[[bytes], T | None]
    ) -> T:
        """One question, and the first datagram from there that `read` takes for its answer."""
        if self.routes_to(address):
            async with self._dialer.bind_udp(0) as tailnet:
                return await _asked(tailnet, address, port, question, read)
        self._check_host_may_be_used(address)
        udp = await self._network.open_udp(0)
        try:
            path = format_address(address), port
            is_v6 = len(address) == 16
            if is_v6 and not udp.has_ipv6:
                raise OSError(errno.EAFNOSUPPORT, "this machine has no IPv6")
            udp.send_many([(path, [question])])
            receive = udp.readers()[is_v6]
            while True:
                for source, datagrams in await receive():
                    for datagram in datagrams if source == path else ():
                        answer = read(datagram)
                        if answer is not None:
                            return answer
        finally:
            udp.close()

    async def open_stream(self, address: bytes, port: int) -> trio.abc.Stream:
        host = format_address(address)
        if self.routes_to(address):
            return await self._dialer.connect(address, host, port)
        self._check_host_may_be_used(address)
        return await self._network.open_tcp(host, port)

    def _check_host_may_be_used(self, address: bytes) -> None:
        """While everything is to go by an exit that is not there, questions are held back as all else is."""
        if self.must_use_exit:
            raise OSError(
                errno.ENETUNREACH, f"{format_address(address)} is asked through the exit node, which is not there"
            )

    # Exit nodes

    @property
    def must_use_exit(self) -> bool:
        return bool(self._dialer.directory.preferences.exit_node)

    @property
    def chosen_exit(self) -> PeerId:
        wanted = self._dialer.directory.preferences.exit_node
        if not wanted or self._dialer.reach.exit_is_missing:
            return 0
        return self._dialer.directory.peer_named(wanted) or 0

    def tell_exit_names(self, problem: str) -> None:
        show_exit_names(self._health, problem)

    def exit_name(self, exit_node: PeerId) -> str:
        peer = self._peer(exit_node)
        return peer.name.partition(".")[0] if peer is not None else "that has left the tailnet"

    async def ask_exit(self, exit_node: PeerId, question: bytes, read: Callable[[bytes], T | None]) -> T:
        """One question to an exit node, or through it. NoAnswer says why it is of no use."""
        peer = self._peer(exit_node)
        if peer is None:
            raise NoAnswer("can be asked nothing any more")
        place = self._peer_api_of(peer)
        if place is not None:
            answer = read(await self._ask_peer_api(*place, question))
            assert answer is not None  # what answers something else was refused
            return answer
        for resolver in peer.exit_node_dns_resolvers:
            if not resolver.addr.startswith("http"):
                return await self._ask_behind(exit_node, *server_address(resolver.addr), question, read)
        raise NoAnswer(NO_DNS)

    def _peer(self, exit_node: PeerId) -> Node | None:
        netmap = self.netmap
        return netmap.peers.get(exit_node) if netmap is not None else None

    def _peer_api_of(self, peer: Node) -> tuple[bytes, int] | None:
        """Address and port of a peer's own little HTTP server; read anew each time, for the port changes."""
        for text in peer.addresses:
            address = parse_address(text.partition("/")[0])
            port = port_of(peer, address)
            if port and self.routes_to(address):
                return address, port
        return None

    async def _ask_peer_api(self, address: bytes, port: int, question: bytes) -> bytes:
        host = format_address(address)
        http = Http1Client()
        headers = [
            ("Host", host_header(address, port)),
            ("Content-Type", DNS_MESSAGE),
            ("Accept", DNS_MESSAGE),
            ("Content-Length", str(len(question))),
            ("Connection", "close"),
        ]
        stream = await self._dialer.connect(address, host, port)
        try:
            await stream.send_all(http.request("POST", DNS_PATH, headers, question))
            while (reply := http.receive_untrusted(bytes(await stream.receive_some(READ_SIZE)))) is None:
                pass
        finally:
            stream.abort()  # nobody waits for anything more of it
        if reply.status != 200:
            raise NoAnswer(REFUSAL if reply.status == 403 else f"answered HTTP {reply.status}")
        return reply.body

    async def _ask_behind(
        self, exit_node: PeerId, address: bytes, port: int, question: bytes, read: Callable[[bytes], T | None]
    ) -> T:
        heard = b""

        def read_whole(reply: bytes) -> T | None:
            nonlocal heard
            heard = reply
            return read(reply)

        async with self._dialer.bind_udp(0, via=exit_node) as tunnel:
            answer = await _asked(tunnel, address, port, question, read_whole)
        if not wire.is_cut(heard):
            return answer
        stream = await self._dialer.connect(address, format_address(address), port, via=exit_node)
        whole = read(await ask_over_stream(stream, question))
        return whole if whole is not None else answer


async def _asked(socket: UdpSocket, address: bytes, port: int, question: bytes, read: Callable[[bytes], T | None]) -> T:
    """The first datagram from there that `read` takes for the answer."""
    await socket.connect((format_address(address), port))
    await socket.send(question)
    while (answer := read(await socket.receive())) is None:
        pass
    return answer
