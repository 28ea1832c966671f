"""Fragments: putting inbound datagrams together within strict bounds, and cutting outbound ones.

Any overlap discards the whole datagram and remembers that it is spoilt (RFC 5722; the same for IPv4). Owns memory
bounds and lifetimes; knows no protocol above IP. RFC 791 section 3.2, RFC 8200 section 4.5, RFC 6946.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from ts_base.ip import IP6_FRAGMENT
from ts_base.ip_headers import HOP_LIMIT, IP4_HEADER, IP6, IP6_HEADER, MORE_FRAGMENTS, ip4_header
from ts_netstack.wire import FRAGMENT_HEADER, IP6_FRAGMENT_FIXED, Packet

HIGH_WATER = 4 << 20
LOW_WATER = 3 << 20
DATAGRAMS_LIMIT = 1024
FRAGMENTS_LIMIT = 64
MAXIMUM_PAYLOAD = 65535
SMALLEST_FRAGMENT = 8
LIFETIME4, LIFETIME6 = 30.0, 60.0
PIECE_OVERHEAD = 128  # what an empty piece costs us, so that tiny ones count


class Assembly:
    """One datagram on its way; `pieces` None once it is spoilt."""

    __slots__ = ("cost", "expires", "first", "pieces", "total")

    def __init__(self, expires: float) -> None:
        self.pieces: dict[int, bytes] | None = {}
        self.total = -1
        self.cost = PIECE_OVERHEAD
        self.first: Packet | None = None
        self.expires = expires


class Reassembly:
    """All unfinished datagrams of a stack, oldest first."""

    __slots__ = ("_assemblies", "_drops", "cost")

    def __init__(self, drops: Counter[str]) -> None:
        self._assemblies: OrderedDict[bytes, Assembly] = OrderedDict()
        self._drops = drops
        self.cost = 0

    def __len__(self) -> int:
        return len(self._assemblies)

    def add(self, packet: Packet, now: float) -> Packet | None:
        """Keep one fragment; returns the whole packet when it was the last one missing."""
        assert packet.fragment is not None
        identity, offset, more = packet.fragment
        size = len(packet.payload)
        problem = _problem(offset, size, more)
        if problem:
            self._drops[problem] += 1
            return None
        assembly = self._assemblies.get(identity)
        if assembly is None:
            assembly = self._begin(identity, now + (LIFETIME4 if len(packet.source) == 4 else LIFETIME6))
        if assembly.pieces is None:
            self._drops["fragment_of_spoilt"] += 1
            return None
        if assembly.pieces.get(offset) == packet.payload and (more or assembly.total == offset + size):
            self._drops["fragment_duplicate"] += 1  # an exact copy is what a path switch makes, not an attack
            return None
        if not self._fits(assembly, offset, size, more):
            self._drops["fragment_overlap"] += 1
            self._spoil(assembly)
            return None
        if len(assembly.pieces) >= FRAGMENTS_LIMIT:
            self._drops["fragment_count"] += 1
            self._spoil(assembly)
            return None
        assembly.pieces[offset] = packet.payload
        assembly.cost += size + PIECE_OVERHEAD
        self.cost += size + PIECE_OVERHEAD
        if offset == 0:
            assembly.first = packet
        if not more:
            assembly.total = offset + size
        return self._maybe_finish(identity, assembly)

    def _begin(self, identity: bytes, expires: float) -> Assembly:
        if self.cost > HIGH_WATER or len(self._assemblies) >= DATAGRAMS_LIMIT:
            while self._assemblies and (self.cost > LOW_WATER or len(self._assemblies) >= DATAGRAMS_LIMIT):
                self._forget(next(iter(self._assemblies)))
                self._drops["fragment_memory"] += 1
        assembly = self._assemblies[identity] = Assembly(expires)
        self.cost += assembly.cost
        return assembly

    def _fits(self, assembly: Assembly, offset: int, size: int, more: bool) -> bool:
        end = offset + size
        assert assembly.pieces is not None
        if assembly.total >= 0 and (end > assembly.total or not more):
            return False
        for start, piece in assembly.pieces.items():
            if start < end and offset < start + len(piece):
                return False
            if not more and start >= end:
                return False
        return True

    def _spoil(self, assembly: Assembly) -> None:
        self.cost -= assembly.cost - PIECE_OVERHEAD
        assembly.cost = PIECE_OVERHEAD
        assembly.pieces = assembly.first = None

    def _forget(self, identity: bytes) -> None:
        self.cost -= self._assemblies.pop(identity).cost

    def _maybe_finish(self, identity: bytes, assembly: Assembly) -> Packet | None:
        pieces, first = assembly.pieces, assembly.first
        assert pieces is not None
        if assembly.total < 0 or first is None or sum(map(len, pieces.values())) != assembly.total:
            return None
        self._forget(identity)
        payload = b"".join([pieces[offset] for offset in sorted(pieces)])
        return Packet(first.source, first.destination, first.protocol, payload, None)

    def expire(self, now: float) -> None:
        """Lifetimes differ by family, so the order of arrival is not quite the order of expiry; the table is small."""
        for identity in [identity for identity, one in self._assemblies.items() if one.expires <= now]:
            self._forget(identity)
            self._drops["fragment_expired"] += 1

    def next_expiry(self) -> float:
        return min((one.expires for one in self._assemblies.values()), default=float("inf"))


def _problem(offset: int, size: int, more: bool) -> str:
    if size == 0 or (more and size < SMALLEST_FRAGMENT):
        return "fragment_tiny"
    if more and size % 8:
        return "fragment_misaligned"
    if offset + size > MAXIMUM_PAYLOAD:
        return "fragment_oversized"
    return ""


def cut(source: bytes, destination: bytes, protocol: int, payload: bytes, mtu: int, ident: int) -> list[bytes]:
    """The IP packets that carry `payload`, none larger than `mtu`."""
    if len(source) == 4:
        unit = (mtu - IP4_HEADER) & ~7
    else:
        unit = (mtu - IP6_HEADER - FRAGMENT_HEADER) & ~7
    packets = []
    for offset in range(0, len(payload), unit):
        piece = payload[offset : offset + unit]
        more = offset + unit < len(payload)
        if len(source) == 4:
            field = offset // 8 | (MORE_FRAGMENTS if more else 0)
            header = ip4_header(source, destination, protocol, len(piece), ident & 0xFFFF, field)
        else:
            header = IP6.pack(
                0x60000000, FRAGMENT_HEADER + len(piece), IP6_FRAGMENT, HOP_LIMIT, source, destination
            ) + IP6_FRAGMENT_FIXED.pack(protocol, 0, offset | more, ident)
        packets.append(header + piece)
    return packets
