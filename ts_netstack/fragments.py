"""Fragments: putting inbound datagrams together within strict bounds, and cutting outbound ones.

Any overlap discards the whole datagram and remembers that it is spoilt (RFC 5722; the same for IPv4). Owns memory
bounds and lifetimes; knows no protocol above IP. RFC 791 section 3.2, RFC 8200 section 4.5, RFC 6946.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from typing import NamedTuple

from ts_base.ip import IP6_FRAGMENT
from ts_base.ip_headers import HOP_LIMIT, IP4_HEADER, IP6, IP6_HEADER, MORE_FRAGMENTS, ip4_header
from ts_base.who import PeerId
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


class FragmentStatistics(NamedTuple):
    """Unfinished datagrams and the bytes they cost."""

    assemblies: int
    cost: int


Key = tuple[bytes, PeerId]  # a datagram's identity, and the peer that sends it: nobody adds to another's
_Family = OrderedDict[Key, Assembly]


class Reassembly:
    """All unfinished datagrams of a stack. Within a family all live equally long, so the oldest expires first."""

    __slots__ = ("_drops", "_four", "_six", "cost")

    def __init__(self, drops: Counter[str]) -> None:
        self._four: _Family = OrderedDict()
        self._six: _Family = OrderedDict()
        self._drops = drops
        self.cost = 0

    def __len__(self) -> int:
        return len(self._four) + len(self._six)

    def statistics(self) -> FragmentStatistics:
        return FragmentStatistics(len(self), self.cost)

    def holds(self, packet: Packet, peer: PeerId) -> bool:
        """Whether other pieces of the same datagram wait here."""
        assert packet.fragment is not None
        family = self._four if len(packet.source) == 4 else self._six
        return (packet.fragment.identity, peer) in family

    def add(self, packet: Packet, now: float, peer: PeerId = 0) -> Packet | None:
        """Keep one fragment that `peer` sent; returns the whole packet when it was the last one missing."""
        assert packet.fragment is not None
        identity, offset, more = packet.fragment
        family, lifetime = (self._four, LIFETIME4) if len(packet.source) == 4 else (self._six, LIFETIME6)
        key = (identity, peer)
        size = len(packet.payload)
        problem = _problem(offset, size, more)
        if problem:
            self._drops[problem] += 1
            return None
        assembly = family.get(key)
        if assembly is None:
            self._make_room()
            assembly = family[key] = Assembly(now + lifetime)
            self.cost += assembly.cost
        if assembly.pieces is None:
            self._drops["ip.fragment_of_spoilt"] += 1
            return None
        if assembly.pieces.get(offset) == packet.payload and (more or assembly.total == offset + size):
            self._drops["ip.fragment_duplicate"] += 1  # an exact copy is what a path switch makes, not an attack
            return None
        if not self._fits(assembly, offset, size, more):
            self._drops["ip.fragment_overlap"] += 1
            self._spoil(assembly)
            return None
        if len(assembly.pieces) >= FRAGMENTS_LIMIT:
            self._drops["ip.fragment_count"] += 1
            self._spoil(assembly)
            return None
        assembly.pieces[offset] = packet.payload
        assembly.cost += size + PIECE_OVERHEAD
        self.cost += size + PIECE_OVERHEAD
        if offset == 0:
            assembly.first = packet
        if not more:
            assembly.total = offset + size
        return self._maybe_finish(family, key, assembly)

    def _make_room(self) -> None:
        if self.cost > HIGH_WATER or len(self) >= DATAGRAMS_LIMIT:
            while len(self) and (self.cost > LOW_WATER or len(self) >= DATAGRAMS_LIMIT):
                self._forget_next()
                self._drops["ip.fragment_memory"] += 1

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

    def _next_family(self) -> _Family:
        """Whose first expires before the other's."""
        return self._four if _first_expiry(self._four) <= _first_expiry(self._six) else self._six

    def _forget_next(self) -> None:
        _, assembly = self._next_family().popitem(last=False)
        self.cost -= assembly.cost

    def _maybe_finish(self, family: _Family, key: Key, assembly: Assembly) -> Packet | None:
        pieces, first = assembly.pieces, assembly.first
        assert pieces is not None
        if assembly.total < 0 or first is None or sum(map(len, pieces.values())) != assembly.total:
            return None
        del family[key]
        self.cost -= assembly.cost
        payload = b"".join([pieces[offset] for offset in sorted(pieces)])
        return Packet(first.source, first.destination, first.protocol, payload, None)

    def expire(self, now: float) -> None:
        while self.next_expiry() <= now:
            self._forget_next()
            self._drops["ip.fragment_expired"] += 1

    def next_expiry(self) -> float:
        return _first_expiry(self._next_family())


def _first_expiry(family: _Family) -> float:
    return next(iter(family.values())).expires if family else math.inf


def _problem(offset: int, size: int, more: bool) -> str:
    if size == 0 or (more and size < SMALLEST_FRAGMENT):
        return "ip.fragment_tiny"
    if more and size % 8:
        return "ip.fragment_misaligned"
    if offset + size > MAXIMUM_PAYLOAD:
        return "ip.fragment_oversized"
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
