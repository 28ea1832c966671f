"""How a device's resolver reaches its servers: over the tailnet where it has a route, else over the host's network."""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING

import trio

from ts_base.ip import format_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailscale.dial.by_address import AddressDialer
    from tailscale.dns.messages import Answer
    from tailscale.runtime.network import Network
    from ts_control.netmap import NetMap

RANDOM_ID = Struct(">H").unpack


class ResolverAccess:
    """What `resolvers.ResolverDevice` asks for."""

    def __init__(self, dialer: AddressDialer, network: Network) -> None:
        self._dialer = dialer
        self._network = network

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
        self, address: bytes, port: int, question: bytes, read: Callable[[bytes], Answer | None]
    ) -> Answer:
        """One question, and the first datagram from there that `read` takes for its answer."""
        if self.routes_to(address):
            async with self._dialer.bind_udp(0) as tailnet:
                await tailnet.connect((format_address(address), port))
                await tailnet.send(question)
                while (answer := read(await tailnet.receive())) is None:
                    pass
                return answer
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
        return await self._network.open_tcp(host, port)
