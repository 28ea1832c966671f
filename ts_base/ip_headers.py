"""IP headers as bytes: their layouts, the packets we make, and the options that ask for another way.

Owns what the packet filter and the stack must read alike; each keeps its own parser, for they want different things.
Refuses to know connections, rules and peers. RFC 791, 8200, 6864, 7126.
"""

from __future__ import annotations

from struct import Struct

from ts_base.ip import checksum

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20  # of a TCP header
SYN_ACK = SYN | ACK

HOP_LIMIT = 64
IP4_HEADER, IP6_HEADER = 20, 40
DO_NOT_FRAGMENT, MORE_FRAGMENTS, FRAGMENT_OFFSET = 0x4000, 0x2000, 0x1FFF

# version/IHL, TOS, total length, id, flags/offset, TTL, protocol, checksum, source, destination
IP4 = Struct(">BBHHHBBH4s4s")
# version/class/flow, payload length, next header, hop limit, source, destination
IP6 = Struct(">IHBB16s16s")

_END_OF_OPTIONS, _NO_OPERATION = 0, 1
_LOOSE_SOURCE_ROUTE, _STRICT_SOURCE_ROUTE = 131, 137


def ip_packet(source: bytes, destination: bytes, protocol: int, payload: bytes) -> bytes:
    """A whole unfragmented packet. IPv4: DF with identification zero (RFC 6864)."""
    if len(source) == 4:
        return ip4_header(source, destination, protocol, len(payload)) + payload
    return IP6.pack(0x60000000, len(payload), protocol, HOP_LIMIT, source, destination) + payload


def ip4_header(
    source: bytes, destination: bytes, protocol: int, length: int, ident: int = 0, field: int = DO_NOT_FRAGMENT
) -> bytes:
    total = IP4_HEADER + length
    blank = IP4.pack(0x45, 0, total, ident, field, HOP_LIMIT, protocol, 0, source, destination)
    return IP4.pack(0x45, 0, total, ident, field, HOP_LIMIT, protocol, checksum(blank), source, destination)


def is_source_routed(options: bytes) -> bool:
    """Do IPv4 options ask for another way (RFC 7126 section 4.3: drop), or can nobody say?

    Options that do not parse count as asking: another reader of the same bytes might find a route in them.
    """
    at, end = 0, len(options)
    while at < end:
        kind = options[at]
        if kind == _END_OF_OPTIONS:
            return False
        if kind == _NO_OPERATION:
            at += 1
            continue
        if kind in (_LOOSE_SOURCE_ROUTE, _STRICT_SOURCE_ROUTE) or at + 1 >= end or options[at + 1] < 2:
            return True
        at += options[at + 1]
    return at > end
