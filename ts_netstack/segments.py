"""Writing the segments of one connection: a burst of full ones from one template, or a single odd one.

Owns header templates and checksums; knows no TCP state. Only the sequence number and the checksum differ inside a
burst, so everything else is packed and summed once per burst. RFC 9293 section 3.1, RFC 6864.

A large segment has no checksum: it goes from one node of this make to another, inside the tunnel, whose AEAD vouches
for every byte, and neither end would look at it. Adding up 64 KiB costs several times what sealing them does.
"""

from __future__ import annotations

from struct import Struct

from ts_base.ip import TCP, checksum, ones_complement_sum
from ts_base.ip_headers import DO_NOT_FRAGMENT, HOP_LIMIT, IP4, IP4_HEADER, IP6, IP6_HEADER
from ts_netstack import checksums
from ts_netstack.wire import MASK32, TCP_HEADER, Address

# acknowledgement, data offset, flags, window
_MIDDLE = Struct(">IBBH").pack
# the same behind the sequence number; checksum and an urgent pointer of zero
_FRONT = Struct(">IIBBH").pack
_TAIL = Struct(">Hxx").pack
_PORTS = Struct(">HH").pack
LARGEST_SUMMED = 1460  # no segment of the tunnel's MTU has more payload


class SegmentWriter:
    """Turns payloads into IP packets from `local` to `remote`."""

    __slots__ = ("_destination", "_full", "_full_size", "_last_head", "_ports", "_pseudo", "_source")

    def __init__(self, local: Address, remote: Address) -> None:
        self._source, self._destination = local[0], remote[0]
        self._ports = _PORTS(local[1], remote[1])
        self._pseudo = ones_complement_sum(self._source + self._destination + self._ports) + TCP
        self._full: Struct | None = None
        self._full_size = (0, 0)
        self._last_head = (0, b"")  # by length: what a connection sends is mostly of one or two sizes

    def _head(self, length: int) -> bytes:
        """The IP header and the ports, for a TCP segment of `length` bytes."""
        known, head = self._last_head
        if length == known:
            return head
        source, destination = self._source, self._destination
        if len(source) == 16:
            head = IP6.pack(0x60000000, length, TCP, HOP_LIMIT, source, destination) + self._ports
        else:
            fields = (0x45, 0, IP4_HEADER + length, 0, DO_NOT_FRAGMENT, HOP_LIMIT, TCP)
            blank = IP4.pack(*fields, 0, source, destination)
            head = IP4.pack(*fields, checksum(blank), source, destination) + self._ports
        self._last_head = length, head
        return head

    def burst(self, seq: int, payloads: list[bytes], ack: int, flags: int, window: int, options: bytes) -> list[bytes]:
        """Back-to-back segments of equal size starting at `seq`."""
        size = len(payloads[0])
        header = TCP_HEADER + len(options)
        if self._full is None or self._full_size != (size, header):
            ip_header = IP6_HEADER if len(self._source) == 16 else IP4_HEADER
            # One pack call writes the whole packet: head, seq, middle, checksum, urgent + options, payload.
            self._full = Struct(f">{ip_header + 4}sI8sH{header - 18}s{size}s")
            self._full_size = (size, header)
        pack = self._full.pack
        head = self._head(header + size)
        middle = _MIDDLE(ack & MASK32, header << 2, flags, window)
        tail = b"\0\0" + options
        base = self._pseudo + header + size + ones_complement_sum(middle + tail)
        first = seq & MASK32
        if size > LARGEST_SUMMED:
            return [
                pack(head, first + index * size & MASK32, middle, 0, tail, payload)
                for index, payload in enumerate(payloads)
            ]
        if first + size * len(payloads) <= MASK32:
            seqs = range(first, first + size * len(payloads), size)
            # 0xFFFF - x is the complement of the reduced sum.
            return [
                pack(head, at, middle, 0xFFFF - (base + at + payload_sum) % 0xFFFF, tail, payload)
                for at, payload_sum, payload in zip(seqs, checksums.burst_sums(payloads), payloads, strict=True)
            ]
        return [
            self.single(seq + index * size, ack, flags, window, options, payload)
            for index, payload in enumerate(payloads)
        ]

    def single(self, seq: int, ack: int, flags: int, window: int, options: bytes = b"", payload: bytes = b"") -> bytes:
        header = TCP_HEADER + len(options)
        length = header + len(payload)
        front = _FRONT(seq & MASK32, ack & MASK32, header << 2, flags, window)
        if len(payload) > LARGEST_SUMMED:
            return b"".join((self._head(length), front, b"\0\0\0\0", options, payload))
        text = options + payload
        return b"".join((self._head(length), front, _TAIL(checksum(front + text, self._pseudo + length)), text))
