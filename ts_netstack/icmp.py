"""ICMP messages of both families: echo, unreachables, packet-too-big; built and read.

Refuses to know sockets and who may be answered: what an error quotes is a `Report`. RFC 792, 4443, 1191, 8201.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from ts_base.ip import ICMP, ICMP6, IP6_MINIMUM_MTU, checksum, pseudo_header_sum
from ts_base.ip_headers import ip_packet
from ts_netstack.wire import Packet, Unroutable, parse_packet_untrusted

ECHO_REPLY4, UNREACHABLE4, ECHO4 = 0, 3, 8
UNREACHABLE6, TOO_BIG6, TIME_EXCEEDED6, PARAMETER6, ECHO6, ECHO_REPLY6 = 1, 2, 3, 4, 128, 129
HOST4, PROTOCOL4, PORT4, FRAGMENTATION_NEEDED4 = 1, 2, 3, 4
NEXT_HEADER6, ADDRESS6, PORT6 = 1, 3, 4

QUOTE4, QUOTE6 = 576, IP6_MINIMUM_MTU  # an error is never larger than this
MINIMUM_MTU4, MINIMUM_MTU6 = 552, IP6_MINIMUM_MTU

# type, code, checksum, then four bytes whose meaning depends
_HEADER = Struct(">BBHI")

UNREACHABLE, TOO_BIG = "unreachable", "too_big"


class Report(NamedTuple):
    """An ICMP error: about a packet of ours to `remote`, quoting the first bytes of its transport header."""

    kind: str
    mtu: int
    local: bytes
    remote: bytes
    protocol: int
    quoted: bytes


def message(source: bytes, destination: bytes, kind: int, code: int, rest: int, body: bytes) -> bytes:
    """A whole IP packet."""
    payload = _HEADER.pack(kind, code, 0, rest) + body
    is_ip4 = len(source) == 4
    start = 0 if is_ip4 else pseudo_header_sum(source, destination, ICMP6, len(payload))
    payload = payload[:2] + checksum(payload, start).to_bytes(2, "big") + payload[4:]
    return ip_packet(source, destination, ICMP if is_ip4 else ICMP6, payload)


def echo_request(source: bytes, destination: bytes, identifier: int, body: bytes) -> bytes:
    kind = ECHO4 if len(source) == 4 else ECHO6
    return message(source, destination, kind, 0, identifier, body)


def _error(original: bytes, source: bytes, destination: bytes, kind4: int, code4: int, kind6: int, code6: int) -> bytes:
    """`source` tells `destination` what became of `original`."""
    if len(source) == 4:
        return message(source, destination, kind4, code4, 0, original[: QUOTE4 - 28])
    # RFC 4443 section 3.4: the pointer of a parameter problem names the byte, here the next header.
    rest = 6 if kind6 == PARAMETER6 else 0
    return message(source, destination, kind6, code6, rest, original[: QUOTE6 - 48])


def port_unreachable(original: bytes, source: bytes, destination: bytes) -> bytes:
    """Nobody listens where `original` went."""
    return _error(original, source, destination, UNREACHABLE4, PORT4, UNREACHABLE6, PORT6)


def host_unreachable(original: bytes, source: bytes, destination: bytes) -> bytes:
    """We forward to where `original` went, and nobody answers there."""
    return _error(original, source, destination, UNREACHABLE4, HOST4, UNREACHABLE6, ADDRESS6)


def too_big(original: bytes, source: bytes, destination: bytes, mtu: int) -> bytes:
    """The way to where `original` went carries `mtu` bytes. RFC 1191 section 4, RFC 4443 section 3.2."""
    if len(source) == 4:
        return message(source, destination, UNREACHABLE4, FRAGMENTATION_NEEDED4, mtu, original[: QUOTE4 - 28])
    return message(source, destination, TOO_BIG6, 0, mtu, original[: QUOTE6 - 48])


def protocol_unreachable(original: bytes, source: bytes, destination: bytes) -> bytes:
    """Nobody here speaks what `original` carries."""
    return _error(original, source, destination, UNREACHABLE4, PROTOCOL4, PARAMETER6, NEXT_HEADER6)


def is_checksum_right(packet: Packet) -> bool:
    start = 0
    if packet.protocol == ICMP6:
        start = pseudo_header_sum(packet.source, packet.destination, ICMP6, len(packet.payload))
    return checksum(packet.payload, start) in (0, 0xFFFF)


def parse_untrusted(packet: Packet) -> tuple[int, int, int, bytes]:
    """Type, code, the four bytes after the checksum, and the body."""
    if len(packet.payload) < 8:
        raise Unroutable("icmp.truncated")
    kind, code, _, rest = _HEADER.unpack_from(packet.payload)
    return kind, code, rest, packet.payload[8:]


def read_error_untrusted(packet: Packet, kind: int, code: int, rest: int, body: bytes) -> Report | None:
    """The report an ICMP error makes, or None for one that is no concern of ours; raises Unroutable on nonsense."""
    is_ip4 = packet.protocol == ICMP
    if is_ip4:
        if kind != UNREACHABLE4:
            return None
        too_big = code == FRAGMENTATION_NEEDED4
        mtu = max(rest & 0xFFFF, MINIMUM_MTU4) if too_big else 0
    else:
        if kind not in (UNREACHABLE6, TOO_BIG6):
            return None
        too_big = kind == TOO_BIG6
        mtu = max(rest, MINIMUM_MTU6) if too_big else 0
    quoted = _quoted_untrusted(body)
    if len(quoted.source) != len(packet.source) or len(quoted.payload) < 8:
        raise Unroutable("icmp.quote")
    return Report(
        TOO_BIG if too_big else UNREACHABLE, mtu, quoted.source, quoted.destination, quoted.protocol, quoted.payload
    )


def _quoted_untrusted(body: bytes) -> Packet:
    """The original is quoted cut short, so its own length field may promise more than is there."""
    if len(body) >= 20 and body[0] >> 4 == 4:
        body = body[:2] + min(int.from_bytes(body[2:4], "big"), len(body)).to_bytes(2, "big") + body[4:]
    elif len(body) >= 40 and body[0] >> 4 == 6:
        body = body[:4] + min(int.from_bytes(body[4:6], "big"), len(body) - 40).to_bytes(2, "big") + body[6:]
    try:
        return parse_packet_untrusted(body)
    except Unroutable:
        raise Unroutable("icmp.quote") from None


def reply_to_echo(packet: Packet) -> bytes:
    """Addresses swapped, everything else as it came."""
    kind, _, rest, body = parse_untrusted(packet)
    answer = ECHO_REPLY4 if kind == ECHO4 and packet.protocol == ICMP else ECHO_REPLY6
    return message(packet.destination, packet.source, answer, 0, rest, body)
