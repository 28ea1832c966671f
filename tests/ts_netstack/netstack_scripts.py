"""Timed scripts in packetdrill's spirit: one stack, one scripted peer, a virtual clock.

Sequence and acknowledgement numbers are relative: the peer's data begins at 1 after its SYN at 0, ours likewise.
"""

from __future__ import annotations

import math
import random
import struct
from dataclasses import dataclass

from ts_base.ip_headers import ACK, SYN
from ts_netstack.stack import Stack
from ts_netstack.tcp import TcpConnection
from ts_netstack.tcp_statistics import TcpStatistics
from ts_netstack.wire import (
    Segment,
    is_transport_checksum_right,
    parse_packet_untrusted,
    parse_segment_untrusted,
    tcp_packet,
)

US, PEER = bytes([100, 64, 0, 1]), bytes([100, 64, 0, 2])
NAMES = {1: "FIN", 2: "SYN", 4: "RST", 8: "PSH", 16: "ACK", 32: "URG"}
PSH = 8


def flag_names(flags: int) -> str:
    return "|".join(name for bit, name in NAMES.items() if flags & bit) or "none"


def stamps(value: int, echo: int) -> bytes:
    return b"\x01\x01\x08\x0a" + struct.pack(">II", value & 0xFFFFFFFF, echo & 0xFFFFFFFF)


@dataclass
class Sent:
    at: float
    segment: Segment
    raw: bytes


class Script:
    """`port` is ours, `peer_port` the peer's. Timestamps are used when `stamped`; the peer's clock is ours in ms."""

    def __init__(
        self, *, stamped: bool = True, sack: bool = True, mss: int = 1240, irs: int = 0x10203040, **stack: object
    ):
        self.stack = Stack(entropy=random.Random(7).randbytes, **stack)  # type: ignore[arg-type]
        self.stack.set_addresses([US])
        self.now = 0.0
        self.sent: list[Sent] = []
        self.port, self.peer_port = 80, 5000
        self.stamped, self.sack, self.mss = stamped, sack, mss
        self.irs, self.iss = irs, None
        self.our_stamp = 0
        self.connection: TcpConnection | None = None

    # -- time

    def advance(self, until: float) -> None:
        assert until >= self.now
        self._flush()
        while (at := self.stack.next_timer()) <= until:
            self.now = max(self.now, at)
            self.stack.handle_timer(self.now)
            self._flush()
        self.now = max(self.now, until)

    def _flush(self) -> None:
        for _, packets in self.stack.transmit(self.now):
            for raw in packets:
                packet = parse_packet_untrusted(raw, True)
                assert is_transport_checksum_right(packet), "we sent a wrong checksum"
                if packet.protocol != 6 or packet.destination != PEER:
                    continue
                segment = parse_segment_untrusted(packet.payload)
                if segment.flags & SYN:
                    self.iss = segment.seq
                    self.port = segment.source_port
                if segment.options.stamps:
                    self.our_stamp = segment.options.stamps[0]
                self.sent.append(Sent(self.now, segment, raw))

    # -- the peer speaks

    def packet(
        self,
        flags: int,
        seq: int = 0,
        ack: int | None = None,
        data: bytes = b"",
        window: int = 65535,
        options: bytes | None = None,
        stamp: int | None = None,
        echo: int | None = None,
    ) -> bytes:
        if options is None:
            value = int(self.now * 1000) + 1000 if stamp is None else stamp
            pair = stamps(value, (self.our_stamp if echo is None else echo) if flags & ACK else 0)
            options = pair if self.stamped else b""
            if flags & SYN:
                options += struct.pack(">BBH", 2, 4, self.mss) + b"\x01\x03\x03\x07"
                options += b"\x04\x02\x01\x01" if self.sack else b""
        number = 0 if ack is None else (self.iss or 0) + ack
        return tcp_packet((PEER, self.peer_port), (US, self.port), self.irs + seq, number, flags, window, options, data)

    def segment(
        self, at: float, flags: int, seq: int = 0, ack: int | None = None, data: bytes = b"", **rest: object
    ) -> None:
        """At `at` the peer's segment arrives."""
        self.advance(at)
        if ack is not None:
            flags |= ACK
        self.stack.receive([self.packet(flags, seq, ack, data, **rest)], at)  # type: ignore[arg-type]
        self._flush()

    def sack_option(self, *blocks: tuple[int, int], own: bool = False) -> bytes:
        """A timestamps + SACK option text naming ranges of our data."""
        base = self.iss or 0
        packed = b"".join(struct.pack(">II", base + a & 0xFFFFFFFF, base + b & 0xFFFFFFFF) for a, b in blocks)
        head = stamps(int(self.now * 1000) + 1000, self.our_stamp) if self.stamped else b""
        return head + b"\x01\x01\x05" + bytes([2 + len(packed)]) + packed

    # -- what we expect of ourselves

    def expect(
        self,
        at: float,
        flags: int,
        seq: int | None = None,
        ack: int | None = None,
        data: bytes | int | None = None,
        window: int | None = None,
    ) -> Segment:
        """The next segment not yet looked at left exactly at `at`."""
        self.advance(at)
        assert self.sent, f"nothing was sent by {at}"
        sent = self.sent.pop(0)
        got = sent.segment
        said = self.describe(got)
        assert abs(sent.at - at) < 1e-6, f"sent at {sent.at}, not {at}: {said}"
        assert got.flags & ~PSH == flags & ~PSH, f"wanted {flag_names(flags)}: {said}"
        if seq is not None:
            assert self.relative_seq(got) == seq, f"wanted seq {seq}: {said}"
        if ack is not None:
            assert got.ack - self.irs & 0xFFFFFFFF == ack & 0xFFFFFFFF, f"wanted ack {ack}: {said}"
        if isinstance(data, int):
            assert len(got.payload) == data, f"wanted {data} bytes: {said}"
        elif data is not None:
            assert got.payload == data, f"wanted {data!r}: {said}"
        if window is not None:
            assert got.window == window, f"wanted window {window}: {said}"
        return got

    def relative_seq(self, segment: Segment) -> int:
        return segment.seq - (self.iss or 0) & 0xFFFFFFFF

    def describe(self, segment: Segment) -> str:
        return (
            f"{flag_names(segment.flags)} seq={self.relative_seq(segment)} ack={segment.ack - self.irs & 0xFFFFFFFF} "
            f"len={len(segment.payload)} win={segment.window}"
        )

    def sacked(self, segment: Segment) -> list[tuple[int, int]]:
        return [(a - self.irs & 0xFFFFFFFF, b - self.irs & 0xFFFFFFFF) for a, b in segment.options.blocks]

    def quiet_until(self, at: float) -> None:
        self.advance(at)
        assert not self.sent, f"unexpected at {self.sent[0].at}: {self.describe(self.sent[0].segment)}"

    def receive(self, packets: list[bytes]) -> None:
        """A burst arrives at once, at the time it is."""
        self.stack.receive(packets, self.now)
        self._flush()

    def flush(self) -> list[Segment]:
        """Take whatever was sent so far."""
        self._flush()
        taken, self.sent = self.sent, []
        return [one.segment for one in taken]

    # -- shortcuts

    def accept(self, at: float = 0.0, window: int = 65535) -> TcpConnection:
        """The peer opened a connection to our port 80."""
        listener = self.stack.listen(80)
        self.segment(at, SYN)
        self.expect(at, SYN | ACK, seq=0, ack=1)
        self.segment(at, ACK, seq=1, ack=1, window=window)
        self.connection = listener.accept()
        assert self.connection is not None
        assert not self.sent
        return self.connection

    def connect(self, at: float = 0.0, window: int = 65535) -> TcpConnection:
        """We opened a connection to the peer's port."""
        self.advance(at)
        self.connection = self.stack.connect((PEER, self.peer_port), at)
        self.expect(at, SYN, seq=0)
        self.segment(at, SYN | ACK, seq=0, ack=1, window=window)
        self.expect(at, ACK, seq=1, ack=1)
        return self.connection

    def skip_quick_acks(self) -> int:
        """Let the connection leave its eager first ACKs behind; returns the peer's next sequence number."""
        seq = 1
        for _ in range(16):
            self.segment(self.now, ACK, seq=seq, ack=1, data=b"q" * 10)
            seq += 10
        assert self.connection is not None
        self.connection.read(1000)
        self.flush()
        return seq

    @property
    def state(self) -> str:
        assert self.connection is not None
        return str(self.connection.state)

    @property
    def statistics(self) -> TcpStatistics:
        assert self.connection is not None
        return self.connection.statistics()

    @property
    def drops(self) -> dict[str, int]:
        return self.stack.drops

    def is_asleep(self) -> bool:
        return self.stack.next_timer() == math.inf
