"""What the sockets of one Stack tell it: who has something to send, who changed, who is finished, what was dropped.

Owns no behaviour beyond counting; it is how connections stay ignorant of the stack that holds them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

from ts_base.budget import Budget

if TYPE_CHECKING:
    from ts_netstack.icmp import Ping
    from ts_netstack.tcp import TcpConnection
    from ts_netstack.tcp_listen import TcpListen
    from ts_netstack.udp import UdpPort

    Socket: TypeAlias = TcpConnection | TcpListen | UdpPort | Ping

CHALLENGES_PER_SECOND = 1000
GROWTH_LIMIT = 256 << 20  # bytes of receive window that all connections together may add to their initial ones


class Ledger:
    """Shared by a Stack and its sockets. Dicts stand for ordered sets, so that a replay is the same byte for byte."""

    __slots__ = ("challenges", "changed", "closed", "dirty", "drops", "finished", "growth_left", "strays", "verify")

    def __init__(self, verify: bool) -> None:
        self.verify = verify  # check inbound checksums: off when an AEAD vouches for every byte
        self.drops: Counter[str] = Counter()
        self.dirty: dict[TcpConnection, None] = {}
        self.changed: dict[Socket, None] = {}
        self.finished: dict[TcpConnection, None] = {}
        self.closed: list[TcpListen | UdpPort] = []  # whose ports are free again
        self.strays: list[bytes] = []  # packets a connection got by its ports that are not whole segments
        self.challenges = Budget(CHALLENGES_PER_SECOND, CHALLENGES_PER_SECOND)
        self.growth_left = GROWTH_LIMIT
