"""IP packets as the filter sees them: what kind, between whom, which ports. Read at offsets, never copied apart.

Owns the classes of the dataplane notes E.2 (too short, cut, tiny and later fragments, transport headers that must be
whole) and address rewriting with incremental checksums (RFC 1624). Knows no rules and no peers.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from ts_base import ip_headers
from ts_base.ip import (
    ICMP,
    ICMP6,
    IP4_LENGTH,
    IP6_FRAGMENT,
    IP6_LENGTH,
    SCTP,
    TCP,
    TSMP,
    UDP,
    is_link_local,
    is_multicast,
)  # fmt: skip
from ts_base.ip_headers import ACK as ACK
from ts_base.ip_headers import FRAGMENT_OFFSET, IP4_HEADER, IP6_HEADER, MORE_FRAGMENTS
from ts_base.ip_headers import SYN as SYN
from ts_base.ip_headers import SYN_ACK as SYN_ACK

SYN_OR_FIN = ip_headers.SYN | ip_headers.FIN
UNKNOWN, FRAGMENT = 0, 0xFF  # pseudo-protocols: not to be understood / a later fragment
IGMP = 2

#   0      1     2              4       6              8     9         10        12       16       20    22    33
#   0x45 | tos | total length | ident | flags+offset | ttl | protocol | checksum | source | destin | sp | dp | ...flags
PEEK4 = Struct(">2xH2xHxB2x12s9xB").unpack_from  # total length, flags+offset, protocol, flow bytes, TCP flags
#   0           4                6             7           8        24            40    42    53
#   6, labels | payload length | next header | hop limit | source | destination | sp | dp | ...flags
PEEK6 = Struct(">4xHBx36s9xB").unpack_from  # payload length, protocol, flow bytes, TCP flags

NOT_WHOLE = MORE_FRAGMENTS | FRAGMENT_OFFSET
# A later fragment may not reach back into the largest IPv4 header plus TCP header: 80 bytes, in blocks of 8.
_FIRST_SAFE_BLOCK = 10
# What the first piece of a packet must hold of its transport header, or a filter cannot judge it (RFC 1858).
_WHOLE_HEADER = {ICMP: 4, ICMP6: 4, IGMP: 8, TCP: 20, UDP: 8, SCTP: 12, TSMP: 7}
_PORTED = frozenset({TCP, UDP, SCTP})
_CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP6: 2}
_METADATA = bytes([169, 254, 169, 254])

_peek_u16 = Struct(">H").unpack_from
_peek_ports = Struct(">HH").unpack_from


class Parsed(NamedTuple):
    """What a verdict may depend on. `transport` is where the bytes behind the IP headers start."""

    protocol: int
    source: bytes
    destination: bytes
    source_port: int = 0
    destination_port: int = 0
    flags: int = 0
    transport: int = 0

    @property
    def is_opening(self) -> bool:
        """A TCP SYN without ACK: the one segment that needs a rule."""
        return self.protocol == TCP and self.flags & SYN_ACK == SYN

    @property
    def flow(self) -> bytes:
        """Addresses and ports in the order they have on the wire."""
        ports = self.source_port << 16 | self.destination_port
        return self.source + self.destination + ports.to_bytes(4, "big")


NOTHING = Parsed(UNKNOWN, b"", b"")


def without_padding(packet: bytes) -> bytes:
    """`packet` cut to the length its header declares; empty if it is no whole IP packet."""
    size = len(packet)
    if size >= IP4_HEADER and packet[0] >> 4 == 4:
        total: int = IP4_LENGTH(packet)[0]
        header = (packet[0] & 15) << 2
        return packet[:total] if IP4_HEADER <= header <= total <= size else b""
    if size >= IP6_HEADER and packet[0] >> 4 == 6:
        total = IP6_HEADER + IP6_LENGTH(packet)[0]
        return packet[:total] if total <= size else b""
    return b""


def parse(packet: bytes) -> Parsed:
    """Classify one packet that `without_padding` has passed. Never raises: what makes no sense is UNKNOWN."""
    if packet[:1] and packet[0] >> 4 == 4:
        return _parse4(packet)
    return _parse6(packet) if packet else NOTHING


def _parse4(packet: bytes) -> Parsed:
    source, destination, protocol = packet[12:16], packet[16:20], packet[9]
    transport = (packet[0] & 15) << 2
    fragment = _peek_u16(packet, 6)[0]
    offset = fragment & FRAGMENT_OFFSET
    if offset:
        kind = FRAGMENT if offset >= _FIRST_SAFE_BLOCK else UNKNOWN
        return Parsed(kind, source, destination, transport=transport)
    if protocol == TSMP and fragment & MORE_FRAGMENTS:
        return Parsed(UNKNOWN, source, destination, transport=transport)
    # ICMPv6 inside IPv4 is no ICMP at all, so nothing of it is required; and the reverse below.
    required = 0 if protocol == ICMP6 else _WHOLE_HEADER.get(protocol, 0)
    return _with_transport(packet, protocol, source, destination, transport, required)


def _parse6(packet: bytes) -> Parsed:
    source, destination, protocol, transport = packet[8:24], packet[24:40], packet[6], 40
    if protocol == IP6_FRAGMENT:  # the one extension header that is read; others keep their number and meet no rule
        if len(packet) < 48:
            return Parsed(UNKNOWN, source, destination, transport=transport)
        protocol, transport = packet[40], 48
        offset = _peek_u16(packet, 42)[0] >> 3
        if offset:
            kind = FRAGMENT if offset >= _FIRST_SAFE_BLOCK else UNKNOWN
            return Parsed(kind, source, destination, transport=transport)
    required = 0 if protocol in (ICMP, IGMP) else _WHOLE_HEADER.get(protocol, 0)
    return _with_transport(packet, protocol, source, destination, transport, required)


def _with_transport(
    packet: bytes, protocol: int, source: bytes, destination: bytes, transport: int, required: int
) -> Parsed:
    if protocol == FRAGMENT or len(packet) - transport < required:
        return Parsed(UNKNOWN, source, destination, transport=transport)
    if protocol not in _PORTED:
        return Parsed(protocol, source, destination, transport=transport)
    source_port, destination_port = _peek_ports(packet, transport)
    flags = packet[transport + 13] if protocol == TCP else 0
    return Parsed(protocol, source, destination, source_port, destination_port, flags, transport)


def is_icmp_answer(packet: bytes, parsed: Parsed) -> bool:
    """An echo reply or an error: it answers something we sent, so it needs no rule (E.3 row 8)."""
    if len(packet) < parsed.transport + 8:
        return False
    kind, code = packet[parsed.transport], packet[parsed.transport + 1]
    if len(parsed.source) == 4:
        # 18 where 12 (parameter problem) was meant: upstream's number, kept so that verdicts agree.
        return kind in (3, 11, 18) or (kind == 0 and code == 0)
    return kind in (1, 2, 3, 4) or (kind == 129 and code == 0)


def is_source_routed(packet: bytes) -> bool:
    """An IPv4 packet that asks to be steered, or whose options do not parse."""
    return packet[0] >> 4 == 4 and ip_headers.is_source_routed(packet[IP4_HEADER : (packet[0] & 15) << 2])


def stays_on_link(address: bytes) -> bool:
    """Link-local unicast, except the cloud metadata address, which upstream lets through both ways."""
    return is_link_local(address) and address != _METADATA


def reply_flow(packet: bytes) -> tuple[int, bytes] | None:
    """Protocol and flow bytes an answer to this outbound UDP or SCTP packet will carry, or None for other packets."""
    parsed = parse(packet)
    if parsed.protocol not in (UDP, SCTP) or is_multicast(parsed.destination) or stays_on_link(parsed.destination):
        return None
    ports = parsed.destination_port << 16 | parsed.source_port
    return parsed.protocol, parsed.destination + parsed.source + ports.to_bytes(4, "big")


def asks_for_answer(packets: list[bytes]) -> bool:
    """Whether the system of whoever gets these answers by itself: TCP that carries something, opens or ends."""
    for packet in packets:
        if packet[0] >> 4 == 4:
            is_tcp, at = packet[9] == TCP, (packet[0] & 15) << 2
        else:
            is_tcp, at = packet[6] == TCP, IP6_HEADER
        if is_tcp and len(packet) >= at + 20:
            if len(packet) > at + (packet[at + 12] >> 4 << 2) or packet[at + 13] & SYN_OR_FIN:
                return True
    return False


def with_source(packet: bytes, old: bytes, new: bytes) -> bytes:
    """`packet` with source `old` replaced by `new`, checksums kept right; anything else unchanged."""
    at = 12 if len(old) == 4 else 8
    return _readdressed(packet, at, old, new) if packet[at : at + len(old)] == old else packet


def with_destination(packet: bytes, old: bytes, new: bytes) -> bytes:
    """`packet` with destination `old` replaced by `new`, checksums kept right; anything else unchanged."""
    at = 16 if len(old) == 4 else 24
    return _readdressed(packet, at, old, new) if packet[at : at + len(old)] == old else packet


def _readdressed(packet: bytes, at: int, old: bytes, new: bytes) -> bytes:
    if packet[0] >> 4 != (4 if len(old) == 4 else 6) or not without_padding(packet):
        return packet
    parsed = parse(packet)
    changed = bytearray(packet)
    changed[at : at + len(new)] = new
    # RFC 1624: the sum moves by the difference of the words that changed.
    difference = int.from_bytes(new, "big") - int.from_bytes(old, "big")
    if len(old) == 4:
        _move_checksum(changed, 10, difference)
        if parsed.protocol == ICMP6:
            return bytes(changed)
    place = _CHECKSUM_AT.get(parsed.protocol)
    # A UDP sum of zero over IPv4 says "none" and must keep saying so.
    if place is not None and not (parsed.protocol == UDP and changed[parsed.transport + 6 :][:2] == b"\0\0"):
        if len(changed) >= parsed.transport + place + 2:
            _move_checksum(changed, parsed.transport + place, difference)
    return bytes(changed)


def _move_checksum(packet: bytearray, at: int, difference: int) -> None:
    # All ones, not all zeros: both verify, but a UDP sum of zero would mean "none".
    total = (_peek_u16(packet, at)[0] - difference) % 0xFFFF or 0xFFFF
    packet[at : at + 2] = total.to_bytes(2, "big")
