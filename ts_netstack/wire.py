"""Header layouts of TCP and UDP, and IP as the stack sees it: parsing of hostile packets and building of ours.

Owns offsets, options and the canonical form every inbound packet is brought to (no IP options, no padding, no
extension headers). Refuses to know connections. RFC 791, 8200, 9293 section 3.1, 7323, 2018, 768.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.ip import IP6_FRAGMENT, TCP, UDP, checksum, ones_complement_sum, pseudo_header_sum
from ts_base.ip_headers import (
    ACK,
    FIN,
    FRAGMENT_OFFSET,
    IP4,
    IP4_HEADER,
    IP6,
    IP6_HEADER,
    MORE_FRAGMENTS,
    RST,
    SYN,
    ip_packet,
    is_source_routed,
)

Address = tuple[bytes, int]

MASK32 = 0xFFFFFFFF
TCP_HEADER, UDP_HEADER, FRAGMENT_HEADER = 20, 8, 8

# The timestamps option as everybody sends it: two NOPs, kind 8, length 10 (RFC 7323 appendix A).
TIMESTAMP_PREFIX = b"\x01\x01\x08\x0a"
TIMESTAMP_LENGTH = 12
STAMPS = Struct(">II").pack

# What we take beside the MSS where only a relay lies between: kind 253, length 8, our identifier (RFC 6994), a size.
# Everybody else skips it, and is told the MSS of every path.
LARGE_PREFIX = b"\xfd\x08tsLS"

# source port, destination port, sequence, acknowledgement, offset, flags, window, checksum, urgent
TCP_FIXED = Struct(">HHIIBBHHH")
# source port, destination port, length, checksum
UDP_FIXED = Struct(">HHHH")
# next header, reserved, offset/flags, id
IP6_FRAGMENT_FIXED = Struct(">BBHI")

HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, NO_NEXT_HEADER = 0, 43, 60, 59
EXTENSION_LIMIT = 8  # headers walked before a packet is called hostile


def unwrap(wire: int, reference: int) -> int:
    """The 64-bit sequence number nearest `reference` whose low 32 bits are `wire`."""
    return reference + ((wire - reference + 0x80000000 & MASK32) - 0x80000000)


class Unroutable(BadPacket):
    """A packet dropped by its IP header; `reason` is the name of the drop counter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Fragment(NamedTuple):
    """Where a piece belongs: `identity` is equal for all pieces of one datagram."""

    identity: bytes
    offset: int
    more: bool


class Packet(NamedTuple):
    """A canonical view of one IP packet. `fragment` is None for a whole one."""

    source: bytes
    destination: bytes
    protocol: int
    payload: bytes
    fragment: Fragment | None


def parse_packet_untrusted(data: bytes, verify_checksums: bool = False) -> Packet:
    """Any IP packet to its canonical view; raises Unroutable with the name of what is wrong."""
    if len(data) < IP4_HEADER:
        raise Unroutable("runt")
    version = data[0] >> 4
    if version == 4:
        return _parse_ip4(data, verify_checksums)
    if version == 6:
        return _parse_ip6(data)
    raise Unroutable("ip_version")


def _parse_ip4(data: bytes, verify_checksums: bool) -> Packet:
    first, _, total, ident, fragment_field, _, protocol, _, source, destination = IP4.unpack_from(data)
    header = (first & 15) * 4
    if header < IP4_HEADER or header > total:
        raise Unroutable("ip_header_length")
    if total > len(data):
        raise Unroutable("ip_truncated")
    if verify_checksums and ones_complement_sum(data[:header]):
        raise Unroutable("ip_checksum")
    if header > IP4_HEADER and is_source_routed(data[IP4_HEADER:header]):
        raise Unroutable("source_routed")
    payload = data[header:total]
    fragment = None
    if fragment_field & (MORE_FRAGMENTS | FRAGMENT_OFFSET):
        identity = source + destination + bytes([protocol]) + ident.to_bytes(2, "big")
        fragment = Fragment(identity, (fragment_field & FRAGMENT_OFFSET) * 8, bool(fragment_field & MORE_FRAGMENTS))
    return Packet(source, destination, protocol, payload, fragment)


def _parse_ip6(data: bytes) -> Packet:
    if len(data) < IP6_HEADER:
        raise Unroutable("runt")
    _, length, kind, _, source, destination = IP6.unpack_from(data)
    end = IP6_HEADER + length
    if end > len(data):
        raise Unroutable("ip_truncated")
    at = IP6_HEADER
    fragment = None
    for _ in range(EXTENSION_LIMIT):
        if kind not in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, IP6_FRAGMENT):
            return Packet(source, destination, kind, data[at:end], fragment)
        if at + 8 > end:
            raise Unroutable("ip_extension")
        following = data[at]
        if kind == IP6_FRAGMENT:
            _, _, field, ident = IP6_FRAGMENT_FIXED.unpack_from(data, at)
            at += FRAGMENT_HEADER
            if field & 0xFFF9:  # an atomic fragment is a whole packet (RFC 6946)
                # RFC 8200 section 4.5: source, destination and identification; not the next header.
                identity = source + destination + ident.to_bytes(4, "big")
                return Packet(
                    source, destination, following, data[at:end], Fragment(identity, field & 0xFFF8, bool(field & 1))
                )
        else:
            if kind == ROUTING and data[at + 3]:  # segments left: somebody else's destination (RFC 5095)
                raise Unroutable("source_routed")
            at += 8 + 8 * data[at + 1]
            if at > end:
                raise Unroutable("ip_extension")
        kind = following
    raise Unroutable("ip_extension")


class Options(NamedTuple):
    """What a TCP header said beyond its fixed part; None where it said nothing."""

    mss: int | None
    scale: int | None
    sack_permitted: bool
    stamps: tuple[int, int] | None
    blocks: tuple[tuple[int, int], ...]
    large: int = 0  # what LARGE_PREFIX offered


NO_OPTIONS = Options(None, None, False, None, ())
_PAIR = Struct(">II").unpack_from
_HALF = Struct(">H").unpack_from


def parse_options_untrusted(data: bytes) -> Options:
    """TCP options. Whatever is malformed ends the parse there, as RFC 9293 MUST-7 asks; nothing is raised."""
    mss = scale = stamps = None
    sack_permitted, large = False, 0
    blocks: list[tuple[int, int]] = []
    at, end = 0, len(data)
    while at < end:
        kind = data[at]
        if kind == 1:
            at += 1
            continue
        if kind == 0 or at + 1 >= end:
            break
        length = data[at + 1]
        if length < 2 or at + length > end:
            break
        if kind == 8 and length == 10:
            stamps = _PAIR(data, at + 2)
        elif kind == 5 and length >= 10 and length % 8 == 2:
            blocks.extend(_PAIR(data, place) for place in range(at + 2, at + length, 8))
        elif kind == 2 and length == 4:
            mss = _HALF(data, at + 2)[0] or None
        elif kind == 3 and length == 3:
            scale = min(data[at + 2], 14)  # RFC 7323 section 2.3
        elif kind == 4 and length == 2:
            sack_permitted = True
        elif kind == 253 and length == 8 and data.startswith(LARGE_PREFIX, at):
            large = _HALF(data, at + 6)[0]
        at += length
    return Options(mss, scale, sack_permitted, stamps, tuple(blocks), large)


class Segment(NamedTuple):
    """One parsed TCP segment; numbers as on the wire."""

    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    window: int
    options: Options
    payload: bytes


def parse_segment_untrusted(data: bytes) -> Segment:
    if len(data) < TCP_HEADER:
        raise Unroutable("tcp_truncated")
    source, destination, seq, ack, offset, flags, window, _, _ = TCP_FIXED.unpack_from(data)
    header = (offset >> 4) * 4
    if header < TCP_HEADER or header > len(data):
        raise Unroutable("tcp_data_offset")
    options = parse_options_untrusted(data[TCP_HEADER:header]) if header > TCP_HEADER else NO_OPTIONS
    return Segment(source, destination, seq, ack, flags, window, options, data[header:])


def is_transport_checksum_right(packet: Packet) -> bool:
    """Over the pseudo-header; an IPv4 UDP checksum of zero means none was made (RFC 768)."""
    payload = packet.payload
    if packet.protocol == UDP and len(payload) >= UDP_HEADER:
        length = min(int.from_bytes(payload[4:6], "big"), len(payload))
        if payload[6:8] == b"\0\0":
            return len(packet.source) == 4
        payload = payload[:length]
    start = pseudo_header_sum(packet.source, packet.destination, packet.protocol, len(payload))
    return (ones_complement_sum(payload) + start) % 0xFFFF == 0


def udp_payload(local: Address, remote: Address, data: bytes) -> bytes:
    """A UDP header and `data`, checksummed; a sum of zero travels as ffff."""
    length = UDP_HEADER + len(data)
    start = pseudo_header_sum(local[0], remote[0], UDP, length) + local[1] + remote[1] + length
    return UDP_FIXED.pack(local[1], remote[1], length, checksum(data, start) or 0xFFFF) + data


def tcp_packet(
    local: Address,
    remote: Address,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    options: bytes = b"",
    data: bytes = b"",
) -> bytes:
    """One segment built from scratch; connections use segments.SegmentWriter, this is for everybody else."""
    offset = (TCP_HEADER + len(options)) // 4 << 4
    fixed = TCP_FIXED.pack(local[1], remote[1], seq & MASK32, ack & MASK32, offset, flags, window, 0, 0)
    segment = fixed + options + data
    start = pseudo_header_sum(local[0], remote[0], TCP, len(segment))
    segment = segment[:16] + checksum(segment, start).to_bytes(2, "big") + segment[18:]
    return ip_packet(local[0], remote[0], TCP, segment)


def reset_for(packet: Packet, segment: Segment) -> bytes | None:
    """RFC 9293 section 3.10.7.1: the RST that answers a segment nobody owns; None for a RST."""
    if segment.flags & RST:
        return None
    local = (packet.destination, segment.destination_port)
    remote = (packet.source, segment.source_port)
    if segment.flags & ACK:
        return tcp_packet(local, remote, segment.ack, 0, RST, 0)
    length = len(segment.payload) + bool(segment.flags & SYN) + bool(segment.flags & FIN)
    return tcp_packet(local, remote, 0, segment.seq + length, RST | ACK, 0)


class Sizes(NamedTuple):
    """The segments we take: from everybody, and through a relay from those who know LARGE_PREFIX (0: the same)."""

    mss: int
    large: int = 0


def syn_options(sizes: Sizes, shift: int | None, selective: bool, stamp: int | None, echo: int) -> bytes:
    """The options of a SYN or SYN-ACK."""
    options = b"\x02\x04" + sizes.mss.to_bytes(2, "big")
    if stamp is not None:
        options += (b"\x04\x02" if selective else b"\x01\x01") + b"\x08\x0a" + STAMPS(stamp, echo)
    elif selective:
        options += b"\x01\x01\x04\x02"
    if shift is not None:
        options += b"\x01\x03\x03" + bytes([shift])
    if sizes.large:
        options += LARGE_PREFIX + sizes.large.to_bytes(2, "big")
    return options
