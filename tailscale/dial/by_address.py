"""Sockets towards addresses: the half of dialling that needs no names, so that the resolver can stand on it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from tailscale.dial import failures
from tailscale.dns.local import SERVICE_ADDRESSES
from tailscale.dns.names import literal_address
from tailscale.errors import ConnectionRefused, ConnectionReset, TailscaleError
from tailscale.sockets.tcp import PROBLEMS, TcpStream
from tailscale.sockets.udp import UdpSocket
from ts_base.ip import format_address
from ts_netstack.tcp import ConnectionProblem

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.runtime.awaited_answers import AwaitedAnswers
    from tailscale.runtime.directory import Directory
    from tailscale.runtime.reach import Reach
    from tailscale.status import PathInfo
    from ts_base.who import PeerId
    from ts_netstack.stack import Stack


class AddressDialer:
    """Opens sockets, and is the device as they see it."""

    def __init__(
        self, directory: Directory, reach: Reach, answers: AwaitedAnswers, stack: Stack, kick: Callable[[], None]
    ) -> None:
        self.directory = directory
        self.reach = reach
        self.kick = kick
        self._answers = answers
        self._stack = stack

    # What the sockets ask

    def now(self) -> float:
        return trio.current_time()

    def identify(self, address: bytes) -> Node | None:
        return self.directory.identify(address)

    def describe_path(self, address: bytes, via: PeerId = 0) -> PathInfo:
        return self.reach.path_of(via) if via else self.reach.path_to(address)

    def exit_node(self, via: PeerId) -> Node | None:
        return self.directory.node(via) if via else None

    async def destinations(self, host: str, via: PeerId = 0) -> list[bytes]:
        """The addresses of a host that we may try, or the error that says why none."""
        literal = literal_address(host)
        if literal is None:
            raise ValueError(f"{host!r} is not an IP address")
        return self.usable([literal], host, via)

    def usable(self, addresses: list[bytes], host: str, via: PeerId = 0) -> list[bytes]:
        """Those of a host's addresses that are ours or routed; the error that says why there are none."""
        inside = (*self.directory.own_addresses, *SERVICE_ADDRESSES)
        found = [a for a in addresses if a in inside or self.reach.routes_to(a, via)]
        if not found:
            raise self.no_way_to(addresses[0], host, via)
        return found

    def no_way_to(self, address: bytes, host: str, via: PeerId) -> TailscaleError:
        """Nobody takes packets to `address`, or `via` does not: why."""
        directory = self.directory
        if not via:
            owner, offer = directory.identify(address), None
            if owner is None and (offered := directory.offer_of(address)) is not None:
                offer = failures.Offer(*offered)
            return failures.no_way_to(owner, host, address, self.ourselves(), offer)
        owner = directory.identify(address)
        is_node = owner is not None and format_address(address) in owner.addresses
        return failures.no_way_via(directory.node(via), host, address, is_exit=self.reach.is_exit(via), is_node=is_node)

    async def resolve_address(self, host: str, family_of: bytes | None = None, via: PeerId = 0) -> bytes:
        """The first address of `host` that has a route, in the family of one of our own addresses if asked."""
        fitting = [a for a in await self.destinations(host, via) if family_of is None or len(a) == len(family_of)]
        if not fitting:
            family = "IPv4" if family_of is not None and len(family_of) == 4 else "IPv6"
            raise OSError(
                errno.EAFNOSUPPORT, f"{host} has no {family} address, and this socket is bound to one of ours"
            )
        return fitting[0]

    # What opens them

    @trio.lowlevel.enable_ki_protection
    async def connect(self, address: bytes, host: str, port: int, *, local_port: int = 0, via: PeerId = 0) -> TcpStream:
        """An open stream, or the error that says what became of it. `host` is what the user called the address."""
        connection = self._stack.connect((address, port), self.now(), local_port=local_port, via=via)
        stream = TcpStream(connection, self)
        try:
            with self._answers.rejections(connection) as rejection:
                self.kick()
                await stream.wait_connected()
                if rejection:
                    raise failures.refusal(host, port, rejection[0])
        except BaseException:
            stream.abort()
            raise
        match connection.error:
            case None:
                return stream
            case ConnectionProblem.TIMED_OUT:
                raise self.silence(address, host, port, via=via)
            case ConnectionProblem.NO_ROUTE:
                raise self.no_way_to(address, host, via)
            case ConnectionProblem.UNREACHABLE:
                raise failures.unreachable_behind(host, port)
            case ConnectionProblem.REFUSED:
                raise failures.refusal(host, port)
            case ConnectionProblem.RESET:
                raise ConnectionReset(f"{host} port {port} accepted the connection and reset it at once")
            case problem:
                raise ConnectionRefused(f"cannot connect to {host} port {port}: {PROBLEMS[problem]}")

    def silence(
        self, address: bytes | None, host: str, port: int, timeout: float | None = None, via: PeerId = 0
    ) -> TailscaleError:
        """Nobody at `address`, if one was found, answered in time: the likeliest reason."""
        after = f" within {timeout:g} s" if timeout is not None else ""
        directory = self.directory
        node = directory.node(via) if via else directory.identify(address) if address is not None else None
        has_session = node is not None and self.reach.has_session(node.id)
        us, now = self.ourselves(), directory.wall_clock()
        return failures.silence(host, port, after, node, is_exit=bool(via), us=us, has_session=has_session, now=now)

    def ourselves(self) -> failures.Ourselves:
        """What of our own may be behind a dial that failed."""
        directory = self.directory
        missing = directory.preferences.exit_node or "" if self.reach.exit_is_missing else ""
        return failures.Ourselves(directory.standing, directory.clock_behind, directory.has_relay, missing)

    def bind_udp(self, port: int, address: bytes | None = None, via: PeerId = 0) -> UdpSocket:
        return UdpSocket(self._stack.bind_udp(port, address, via), self)
