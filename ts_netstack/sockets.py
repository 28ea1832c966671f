"""What a program may open on a stack, and what a stack tells of itself.

Refuses to know how. An overlay that only carries packets, such as a TUN device, has none of this.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ts_base.who import PeerId
from ts_netstack.forwarder import ForwarderStatistics
from ts_netstack.fragments import FragmentStatistics
from ts_netstack.icmp_demux import IcmpStatistics, Ping
from ts_netstack.tcp import TcpConnection
from ts_netstack.tcp_demux import TcpTables
from ts_netstack.tcp_listen import DEFAULT_BACKLOG, TcpListen
from ts_netstack.udp import UdpPort
from ts_netstack.udp_demux import UdpStatistics
from ts_netstack.wire import Address

PING_TIMEOUT = 10.0


class Sockets(Protocol):
    """`via` is the peer that what is opened goes through, 0 for whoever routes the other end."""

    def connect(self, remote: Address, now: float, *, local_port: int = 0, via: PeerId = 0) -> TcpConnection: ...
    def listen(self, port: int, host: bytes | None = None, backlog: int = DEFAULT_BACKLOG) -> TcpListen: ...
    def bind_udp(self, port: int = 0, host: bytes | None = None, via: PeerId = 0) -> UdpPort: ...
    def ping(
        self, destination: bytes, now: float, size: int = 0, timeout: float = PING_TIMEOUT, via: PeerId = 0
    ) -> Ping: ...


class StackStatistics(NamedTuple):
    """How full every table is; `drops` counts by reason what was not taken."""

    tcp: TcpTables
    udp: UdpStatistics
    icmp: IcmpStatistics
    fragments: FragmentStatistics
    forwarder: ForwarderStatistics
    drops: dict[str, int]
