"""Making connections: from a host and a port to an open stream, or to an error. Its words are in `failures.py`."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import trio

from tailscale._spelling import PING_KINDS
from tailscale.dial import failures
from tailscale.dial.by_address import AddressDialer
from tailscale.dial.peerapi import ping_peerapi
from tailscale.dns.names import literal_address
from tailscale.errors import ConnectionRefused, NameNotFound, TailscaleError
from tailscale.nodes import Node
from tailscale.sockets.tcp import TcpListener, TcpStream
from tailscale.sockets.udp import UdpSocket
from tailscale.status import PingResult

if TYPE_CHECKING:
    from tailscale.dial.pinging import Pinger
    from tailscale.dns.resolvers import NameResolver
    from tailscale.runtime.awaited_answers import AwaitedAnswers
    from tailscale.runtime.directory import Directory
    from tailscale.runtime.reach import Reach
    from ts_base.who import PeerId
    from ts_netstack.stack import Stack

Via = str | Node | None  # a peer as users name it; None: as the routes say
Dns = Literal["exit", "tailnet"]  # who is asked for names that are dialled through an exit
Announce = Callable[[int], Callable[[], None]]

DIAL_TIMEOUT = 30.0
DENIED_PATIENCE = 1.5  # for another address of a peer whose policy has refused one
STAGGER = 0.3  # between the addresses of one name, as RFC 8305 does it


def host_and_port(host: str | tuple[str, int], port: int | None) -> tuple[str, int]:
    """Both spellings: `("db", 80)` and `"db", 80`."""
    if port is None:
        if not isinstance(host, tuple):
            name, colon, number = host.rpartition(":") if isinstance(host, str) else ("", "", "")
            if colon and number.isdigit():
                raise TypeError(f"host and port are two things: {name!r}, {number}, not {host!r}")
            raise TypeError("a connection needs a port too: 'db', 5432")
        host, port = host
    if isinstance(port, str) and port.isdigit():
        raise TypeError(f"host is text and port is a number: {port}, not {port!r}")
    if not isinstance(host, str) or not isinstance(port, int):
        raise TypeError("host is text and port is a number")
    if not 0 < port < 65536:
        raise OSError(errno.EINVAL, f"port {port} is not between 1 and 65535")
    return host, port


class Dialer(AddressDialer):
    """Opens sockets towards names, listens, pings. One per device."""

    def __init__(
        self,
        directory: Directory,
        reach: Reach,
        answers: AwaitedAnswers,
        stack: Stack,
        kick: Callable[[], None],
        *,
        resolver: NameResolver,
        pinger: Pinger,
    ) -> None:
        super().__init__(directory, reach, answers, stack, kick)
        self.resolver = resolver
        self._pinger = pinger

    def peer_named(self, via: Via) -> PeerId:
        """The peer that `via=` means, 0 for nobody; the error that says why it will not do."""
        if via is None:
            return 0
        if isinstance(via, Node):
            return via.id  # one that has left meanwhile takes no packets, and is said to have left
        peer = self.directory.peer_named(via)
        if peer is None:
            raise NameNotFound(via, self.resolver.names.close_to(via), "via= names a peer")
        return peer

    async def destinations(self, host: str, via: PeerId = 0, asked: PeerId | None = None) -> list[bytes]:
        """The addresses of a host that we may try, or the error that says why none.

        The exit `via` is asked for a name, unless `asked` says whom; 0 for the tailnet's resolvers.
        """
        literal = literal_address(host)
        try:
            addresses = (
                [literal] if literal else await self.resolver.address_bytes(host, via if asked is None else asked)
            )
        except NameNotFound as problem:
            raise failures.unknown_name(problem, self.ourselves()) from None
        return self.usable(addresses, host, via)

    # Streams

    async def tcp_connect(
        self,
        host: str,
        port: int,
        *,
        timeout: float | None = None,
        local_port: int = 0,
        via: Via = None,
        dns: Dns = "exit",
    ) -> TcpStream:
        """Try the addresses of `host`: those of one peer in turn, those of several as a race."""
        if dns not in ("exit", "tailnet"):
            raise ValueError(f"dns={dns!r} is neither 'exit' nor 'tailnet'")
        timeout = DIAL_TIMEOUT if timeout is None else timeout
        peer = self.peer_named(via)
        addresses: list[bytes] = []
        with trio.move_on_after(timeout):
            addresses = await self.destinations(host, peer, None if dns == "exit" else 0)
            # What lies behind an exit is far from it in two families: only a peer's own addresses share every path.
            is_shared = not peer and len({self.reach.peer_for(address) for address in addresses}) == 1
            if local_port or is_shared or len(addresses) == 1:
                return await self._dial_in_turn(addresses, host, port, local_port, peer)
            return await self._race(addresses, host, port, peer)
        raise self.silence(addresses[0] if addresses else literal_address(host), host, port, timeout, peer)

    async def _dial_in_turn(
        self, addresses: list[bytes], host: str, port: int, local_port: int, via: PeerId
    ) -> TcpStream:
        """One peer's addresses share every path: the second is worth trying only where the first was refused.

        A policy may name one family and not the other. Stock nodes say what their policy refuses over IPv4 only, so
        that a second address which is refused too says nothing: it is given less time.
        """
        failures: list[TailscaleError] = []
        for address in addresses:
            is_denied = bool(failures) and failures[0].fault == "policy-there"
            try:
                with trio.move_on_after(DENIED_PATIENCE if is_denied else math.inf):
                    return await self.connect(address, host, port, local_port=local_port, via=via)
            except ConnectionRefused as failure:
                failures.append(failure)
        raise failures[0]

    async def _race(self, addresses: list[bytes], host: str, port: int, via: PeerId) -> TcpStream:
        winner: list[TcpStream] = []
        failures: list[TailscaleError] = []
        failed_one = [trio.Event() for _ in addresses]

        async def attempt(index: int, address: bytes, nursery: trio.Nursery) -> None:
            try:
                stream = await self.connect(address, host, port, via=via)
            except TailscaleError as error:
                failures.append(error)
                failed_one[index].set()
                return
            if winner:
                stream.abort()
                return
            winner.append(stream)
            nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                for index, address in enumerate(addresses):
                    nursery.start_soon(attempt, index, address, nursery)
                    with trio.move_on_after(STAGGER):
                        await failed_one[index].wait()
        except BaseException:
            for stream in winner:  # cancelled in the very moment of success
                stream.abort()
            raise
        if winner:
            return winner[0]
        raise failures[0]

    async def listen(self, port: int, host: str | None, backlog: int, announce: Announce | None = None) -> TcpListener:
        """A listener on one of our addresses, or on all. `announce` tells others of its port, and returns the end."""
        await trio.lowlevel.checkpoint()
        _check_port(port)
        listens = self._stack.listen(port, self._own_address(host), backlog)
        if announce is None:
            return TcpListener([listens], self)
        return TcpListener([listens], self, on_end=announce(listens.port))

    def listen_at(self, port: int, address: bytes) -> TcpListener:
        """A listener on an address of a service."""
        return TcpListener([self._stack.listen(port, address)], self)

    async def udp(self, port: int, host: str | None, via: Via = None) -> UdpSocket:
        """A UDP socket on one of our addresses, or on all; one that goes `via` an exit node speaks with nobody else."""
        await trio.lowlevel.checkpoint()
        _check_port(port)
        peer = self.peer_named(via)
        if peer and not self.reach.is_exit(peer):
            raise failures.no_exit(self.directory.node(peer))
        return self.bind_udp(port, self._own_address(host), peer)

    def _own_address(self, host: str | None) -> bytes | None:
        """One of our addresses in raw form; None for all of them."""
        if host is None or host in ("", "0.0.0.0", "::"):
            return None
        address = literal_address(host)
        if address is None or not self.directory.is_ours(address):
            raise OSError(errno.EADDRNOTAVAIL, f"{host} is not an address of this device: leave host out for all")
        return address

    # Pings

    async def ping(self, host: str, kind: str, size: int, timeout: float) -> PingResult:
        """One answered ping, and the way it travelled."""
        if kind not in PING_KINDS:
            raise ValueError(f"ping kind {kind!r} is not one of {', '.join(PING_KINDS)}")
        with trio.move_on_after(timeout):
            address = (await self.destinations(host))[0]
            if kind == "peerapi":
                latency, _ = await ping_peerapi(self, address, host)
                return PingResult(latency, self.reach.path_to(address), kind, self.identify(address))
            latency, path = await self._pinger.ping(address, kind, size)
            return PingResult(latency, path, kind, self.identify(address))
        raise failures.ping_silence(host, kind, timeout, self.ourselves())


def _check_port(port: int) -> None:
    if not isinstance(port, int) or not 0 <= port < 65536:
        raise OSError(errno.EINVAL, f"port {port!r} is not between 0 and 65535")
