"""How large a packet each destination's path carries: the MTU, less where ICMP said so, more where a way carries it.

Owns what was learnt of paths and for how long it is believed (RFC 1191, 8201). Refuses to know connections: whoever
holds them asks again when something was learnt or forgotten.
"""

from __future__ import annotations

import math
from typing import Protocol

from ts_base.ip_headers import IP4_HEADER, IP6_HEADER
from ts_base.who import Hop
from ts_netstack.wire import TCP_HEADER, Sizes

LEARNT_LIMIT = 1024
LEARNT_LIFETIME = 600.0


class Routes(Protocol):
    """What the stack asks of whoever knows the ways; answers are IP packet sizes, 0 where the MTU is all there is."""

    def offered_to(self, hop: Hop) -> int:
        """What we may say we take, by a way that carries it."""

    def carried_to(self, hop: Hop) -> int:
        """What the way of this moment carries."""


class PathSizes:
    """Segment sizes are what remains of a packet without its IP and TCP headers, options included."""

    __slots__ = ("_learnt", "_mtu", "routes")

    def __init__(self, mtu: int) -> None:
        self._mtu = mtu
        self._learnt: dict[bytes, tuple[int, float]] = {}  # MTU and when it is forgotten, the oldest first
        self.routes: Routes | None = None

    def mtu_to(self, destination: bytes) -> int:
        known = self._learnt.get(destination)
        return self._mtu if known is None else min(self._mtu, known[0])

    def segment_size(self, destination: bytes) -> int:
        return self.mtu_to(destination) - overhead(destination)

    def large_segment_size(self, destination: bytes) -> int:
        """What the way of this moment carries beyond that, or 0."""
        if self.routes is None or destination in self._learnt:
            return 0
        carried = self.routes.carried_to((destination, 0))
        return carried and carried - overhead(destination)

    def sizes_for(self, destination: bytes) -> Sizes:
        """What a SYN to `destination` says."""
        large = 0 if self.routes is None else self.routes.offered_to((destination, 0))
        return Sizes(self.segment_size(destination), large and large - overhead(destination))

    def learn(self, destination: bytes, mtu: int, now: float) -> bool:
        """Believe a report that `destination` takes at most `mtu`; False when that is no news."""
        if mtu >= self.mtu_to(destination):
            return False
        if len(self._learnt) >= LEARNT_LIMIT:
            self._learnt.pop(next(iter(self._learnt)))
        self._learnt.pop(destination, None)
        self._learnt[destination] = (mtu, now + LEARNT_LIFETIME)
        return True

    def forget(self, destination: bytes) -> None:
        self._learnt.pop(destination, None)

    def expired(self, now: float) -> list[bytes]:
        """The destinations whose reports are too old to believe; they are forgotten."""
        old = [destination for destination, (_, expires) in self._learnt.items() if expires <= now]
        for destination in old:
            del self._learnt[destination]
        return old

    def next_expiry(self) -> float:
        return next(iter(self._learnt.values()))[1] if self._learnt else math.inf


def overhead(address: bytes) -> int:
    """Bytes of header before what a segment carries to `address`."""
    return (IP4_HEADER if len(address) == 4 else IP6_HEADER) + TCP_HEADER
