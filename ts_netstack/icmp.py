"""ICMP for both families: echo both ways, unreachables, packet-too-big; what may be answered and how often is here.

Builds and reads messages, and holds a Ping. Refuses to know sockets: what an error quotes is handed to the stack as a
`Report`. RFC 792, 4443, 1191, 8201, 1812 section 4.3.2.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import Struct
from typing import Any, NamedTuple

from ts_base.ip import ICMP, ICMP6, IP6_MINIMUM_MTU, checksum, pseudo_header_sum
from ts_base.ip_headers import ip_packet
from ts_netstack.ledger import Ledger
from ts_netstack.wire import Packet, Unroutable, parse_packet_untrusted

ECHO_REPLY4, UNREACHABLE4, ECHO4 = 0, 3, 8
UNREACHABLE6, TOO_BIG6, TIME_EXCEEDED6, PARAMETER6, ECHO6, ECHO_REPLY6 = 1, 2, 3, 4, 128, 129
PORT4, FRAGMENTATION_NEEDED4, PROTOCOL4 = 3, 4, 2
PORT6, NEXT_HEADER6 = 4, 1

ECHO_PER_SECOND, ECHO_BURST = 1000.0, 50.0
ERRORS_PER_SECOND, ERROR_BURST = 100.0, 50.0
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


class Ping:
    """One echo request on its way. `round_trip` is set by the answer, `error` by a report or the deadline."""

    __slots__ = ("deadline", "destination", "error", "identifier", "owner", "round_trip", "sent_at", "size")

    def __init__(self, destination: bytes, identifier: int, size: int, now: float, timeout: float) -> None:
        self.destination, self.identifier, self.size = destination, identifier, size
        self.sent_at = now
        self.deadline = now + timeout
        self.round_trip: float | None = None
        self.error: str | None = None
        self.owner: Any = None

    @property
    def is_done(self) -> bool:
        return self.round_trip is not None or self.error is not None


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


def port_unreachable(original: bytes, source: bytes, destination: bytes) -> bytes:
    """`source` says to `destination` that nobody listens where `original` went."""
    if len(source) == 4:
        return message(source, destination, UNREACHABLE4, PORT4, 0, original[: QUOTE4 - 28])
    return message(source, destination, UNREACHABLE6, PORT6, 0, original[: QUOTE6 - 48])


def protocol_unreachable(original: bytes, source: bytes, destination: bytes) -> bytes:
    if len(source) == 4:
        return message(source, destination, UNREACHABLE4, PROTOCOL4, 0, original[: QUOTE4 - 28])
    return message(source, destination, PARAMETER6, NEXT_HEADER6, 6, original[: QUOTE6 - 48])


def is_checksum_right(packet: Packet) -> bool:
    start = 0
    if packet.protocol == ICMP6:
        start = pseudo_header_sum(packet.source, packet.destination, ICMP6, len(packet.payload))
    return checksum(packet.payload, start) in (0, 0xFFFF)


def parse_untrusted(packet: Packet) -> tuple[int, int, int, bytes]:
    """Type, code, the four bytes after the checksum, and the body."""
    if len(packet.payload) < 8:
        raise Unroutable("icmp_truncated")
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
        raise Unroutable("icmp_quote")
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
        raise Unroutable("icmp_quote") from None


def reply_to_echo(packet: Packet) -> bytes:
    """Addresses swapped, everything else as it came."""
    kind, _, rest, body = parse_untrusted(packet)
    answer = ECHO_REPLY4 if kind == ECHO4 and packet.protocol == ICMP else ECHO_REPLY6
    return message(packet.destination, packet.source, answer, 0, rest, body)


class Pings:
    """Outstanding echo requests by identifier and sequence."""

    __slots__ = ("_ledger", "outstanding")

    LIMIT = 1024

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.outstanding: dict[int, Ping] = {}

    def begin(self, destination: bytes, size: int, now: float, timeout: float, entropy: Callable[[int], bytes]) -> Ping:
        """A ping with an identifier nobody can guess; OSError when too many wait for an answer."""
        if not 0 <= size <= 65000:
            raise ValueError(f"a ping of {size} bytes is none")
        if len(self.outstanding) >= self.LIMIT:
            raise OSError(errno.ENOBUFS, "too many pings are on their way")
        identifier = int.from_bytes(entropy(4), "big")
        while identifier in self.outstanding:
            identifier = identifier + 1 & 0xFFFFFFFF
        ping = self.outstanding[identifier] = Ping(destination, identifier, size, now, timeout)
        return ping

    def answered(self, source: bytes, identifier: int, now: float) -> None:
        ping = self.outstanding.get(identifier)
        if ping is None or ping.destination != source:
            self._ledger.drops["icmp_echo_reply_unasked"] += 1
            return
        ping.round_trip = max(now - ping.sent_at, 0.0)
        self.finish(ping)

    def failed(self, identifier: int, remote: bytes, error: str) -> None:
        ping = self.outstanding.get(identifier)
        if ping is not None and ping.destination == remote:
            ping.error = error
            self.finish(ping)

    def timed_out(self, ping: Ping) -> None:
        if not ping.is_done:
            ping.error = "timed out"
            self.finish(ping)

    def finish(self, ping: Ping) -> None:
        self.outstanding.pop(ping.identifier, None)
        self._ledger.changed[ping] = None
