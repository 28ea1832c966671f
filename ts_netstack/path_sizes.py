"""How large a packet the way of each hop carries: the MTU, less where ICMP said so, more where whoever knows says so.

Owns what was learnt of paths and for how long it is believed (RFC 1191, 8201). Refuses to know connections: whoever
holds them asks again when something was learnt or forgotten.
"""

from __future__ import annotations

import math
from typing import Protocol

from ts_base.ip_headers import IP4_HEADER, IP6_HEADER
from ts_base.who import Hop
from ts_netstack.wire import TCP_HEADER

LEARNT_LIMIT = 1024
LEARNT_LIFETIME = 600.0


class SegmentLimits(Protocol):
    """Who knows the ways, asked during transmit; answers are IP packet sizes, 0 where the MTU is all there is."""

    def offered_to(self, hop: Hop) -> int:
        """What we may say we take, by a way that carries it."""

    def carried_to(self, hop: Hop) -> int:
        """What the way of this moment carries."""


class PathSizes:
    """Segment sizes are what remains of a packet without its IP and TCP headers, options included."""

    __slots__ = ("_learnt", "_mtu")

    def __init__(self, mtu: int) -> None:
        self._mtu = mtu
        self._learnt: dict[Hop, tuple[int, float]] = {}  # MTU and when it is forgotten, the oldest first

    def mtu_to(self, hop: Hop) -> int:
        known = self._learnt.get(hop)
        return self._mtu if known is None else min(self._mtu, known[0])

    def segment_size(self, hop: Hop) -> int:
        """What a SYN says to everybody."""
        return self.mtu_to(hop) - overhead(hop[0])

    def large_segment_size(self, hop: Hop, limits: SegmentLimits) -> int:
        """What the way of this moment carries beyond that, or 0."""
        if hop in self._learnt:
            return 0
        carried = limits.carried_to(hop)
        return carried and carried - overhead(hop[0])

    def learn(self, hop: Hop, mtu: int, now: float) -> bool:
        """Believe a report that the way takes at most `mtu`; False when that is no news."""
        if mtu >= self.mtu_to(hop):
            return False
        if len(self._learnt) >= LEARNT_LIMIT:
            self._learnt.pop(next(iter(self._learnt)))
        self._learnt.pop(hop, None)
        self._learnt[hop] = (mtu, now + LEARNT_LIFETIME)
        return True

    def forget(self, destination: bytes) -> None:
        """By whatever peer."""
        for hop in [hop for hop in self._learnt if hop[0] == destination]:
            del self._learnt[hop]

    def expired(self, now: float) -> list[Hop]:
        """The hops whose reports are too old to believe; they are forgotten."""
        old = [hop for hop, (_, expires) in self._learnt.items() if expires <= now]
        for hop in old:
            del self._learnt[hop]
        return old

    def next_expiry(self) -> float:
        return next(iter(self._learnt.values()))[1] if self._learnt else math.inf


def offered_segment_size(hop: Hop, limits: SegmentLimits) -> int:
    """What our SYN offers to take beside the MSS, or 0."""
    offered = limits.offered_to(hop)
    return offered and offered - overhead(hop[0])


def overhead(address: bytes) -> int:
    """Bytes of header before what a segment carries to `address`."""
    return (IP4_HEADER if len(address) == 4 else IP6_HEADER) + TCP_HEADER
