"""How a device's resolver reaches its servers: over the tailnet where it has a route, else over the host's network."""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING

import trio

from tailscale.dial import dialing
from tailscale.sockets.udp import UdpSocket
from ts_base.ip import format_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailscale.dns.messages import Answer
    from tailscale.runtime.home import Home
    from ts_control.netmap import NetMap

RANDOM_ID = Struct(">H").unpack


class ResolverAccess:
    """What `resolvers.ResolverHome` asks for."""

    def __init__(self, home: Home) -> None:
        self._home = home

    @property
    def netmap(self) -> NetMap | None:
        return self._home.netmap

    def now(self) -> float:
        return self._home.now()

    def random_id(self) -> int:
        return int(RANDOM_ID(self._home.network.entropy(2))[0])

    def routes_to(self, address: bytes) -> bool:
        return self._home.routes_to(address)

    async def exchange_datagram(
        self, address: bytes, port: int, question: bytes, read: Callable[[bytes], Answer | None]
    ) -> Answer:
        """One question, and the first datagram from there that `read` takes for its answer."""
        if self.routes_to(address):
            async with UdpSocket(self._home.stack.bind_udp(0, None), self._home) as tailnet:
                await tailnet.connect((format_address(address), port))
                await tailnet.send(question)
                while (answer := read(await tailnet.receive())) is None:
                    pass
                return answer
        udp = await self._home.network.open_udp(0)
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
            return await dialing.tcp_connect(self._home, host, port)
        return await self._home.network.open_tcp(host, port)
