"""The receiving half of a connection: what arrived, what is acknowledged and when, how large a window is offered.

Owns RCV.NXT, the acknowledgement policy, SACK and D-SACK reports, TS.Recent and right-sizing of the window. Knows no
states and sends nothing: `ack_now` asks the connection to. RFC 9293 section 3.8.6, 2018, 2883, 7323, 5681 section 4.2.
"""

from __future__ import annotations

import math
from itertools import islice
from struct import Struct

from ts_base.ip_headers import FIN, SYN
from ts_netstack import tcp_drops
from ts_netstack.ledger import Ledger
from ts_netstack.tcp_buffers import ReceiveBuffer
from ts_netstack.tcp_states import Handshake
from ts_netstack.wire import MASK32, Segment

MAXIMUM_BUFFER = 65535 << 8  # 1 Gbit/s times 100 ms with room; a window scale of 8 tells it whole
WINDOW_SHIFT = 8
INITIAL_RECEIVE = 256 << 10

DELAYED_ACK = 0.04
QUICK_ACKS = 16
REPORTS_LIMIT = 64  # out-of-order arrivals remembered between two ACKs
FULL_SEGMENT = 1200  # a larger segment counts as as many (RFC 5681 section 4.2: an ACK for every second one)
OVERTAKEN_STAMPS = 1000  # ticks by which the stamp of a reordered bare ACK may be behind
STAMP_IDLE = 24 * 86400.0  # RFC 7323 section 5.5

_PAIR = Struct(">II").pack


class Inbound:
    """`selective`, `stamps` and `scaling` say what was agreed with the peer; until answered, what is offered."""

    __slots__ = (
        "_consumed",
        "_consumed_since",
        "_irs",
        "_ledger",
        "ack_deadline",
        "ack_now",
        "buffer",
        "dsack",
        "edge",
        "fin_at",
        "finished",
        "last_ack_sent",
        "quick_acks",
        "sack_first",
        "scaling",
        "segments_owed",
        "selective",
        "stamp_recent",
        "stamp_recent_at",
        "stamps",
        "target",
    )

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.selective = self.stamps = self.scaling = True
        self.buffer = ReceiveBuffer(0)
        self._irs = 0
        self.finished = False  # the FIN was taken
        self.fin_at = -1  # sequence number of a FIN that came too early
        self.edge = 0  # right edge of the window as the peer knows it
        self.target = INITIAL_RECEIVE
        self._consumed, self._consumed_since = 0, -1.0
        self.stamp_recent, self.stamp_recent_at = 0, 0.0
        self.last_ack_sent = 0
        self.ack_now = False
        self.ack_deadline = math.inf
        self.segments_owed = 0
        self.quick_acks = QUICK_ACKS
        self.sack_first: list[int] = []  # where out-of-order data arrived since the last ACK, newest last
        self.dsack: tuple[int, int] | None = None

    # -- opening and ending ----------------------------------------------------------------------------------------

    def heard_syn(self, agreed: Handshake, now: float) -> None:
        """The peer's SYN; the window our own SYN offers is never scaled."""
        self._irs = agreed.irs
        self.buffer.next = self.last_ack_sent = agreed.irs + 1
        self.edge = agreed.irs + 1 + 65535
        self.selective, self.scaling = agreed.selective, agreed.peer_shift is not None
        self.stamps = agreed.stamp is not None
        if agreed.stamp is not None:
            self.stamp_recent, self.stamp_recent_at = agreed.stamp, now
        if not self.scaling:
            self.target = 65535

    def hold_fin(self, at: int) -> None:
        """The peer's FIN is number `at`; what comes before it may still be missing."""
        self.fin_at = at

    @property
    def has_whole_stream(self) -> bool:
        """A FIN was heard and everything before it is here."""
        return self.fin_at >= 0 and self.buffer.next >= self.fin_at

    def take_fin(self) -> None:
        """The FIN takes its number: nothing comes after it."""
        self.finished = True
        self.buffer.islands.clear()
        self.fin_at = -1
        self.ack_now = True

    def stop(self) -> None:
        """No timer of ours matters any more, and the window will not be needed."""
        self.ack_deadline = math.inf
        self._give_back()

    def end(self, *, forget: bool) -> None:
        """The connection is closed; `forget` what nobody read where it broke off, which must not look whole."""
        self.stop()
        if forget:
            self.buffer.forget_unread()
        self.buffer.islands.clear()
        self.ack_now = False

    def _give_back(self) -> None:
        """Growth of the window is on loan from all connections."""
        if self.target > INITIAL_RECEIVE:
            self._ledger.growth_left += self.target - INITIAL_RECEIVE
            self.target = INITIAL_RECEIVE

    # -- segments arrive -------------------------------------------------------------------------------------------

    @property
    def expected(self) -> int:
        """RCV.NXT, the FIN included once it was taken."""
        return self.buffer.next + self.finished

    @property
    def received(self) -> int:
        """RCV.NXT - IRS."""
        return self.expected - self._irs

    def is_acceptable(self, seq: int, length: int) -> bool:
        """RFC 9293 section 3.10.7.4, "first"."""
        expected, edge = self.expected, self.edge
        if not length:
            return seq == expected if edge <= expected else expected <= seq < edge
        return edge > expected and seq < edge and seq + length > expected

    def is_stale(self, value: int, segment: Segment, now: float) -> bool:
        """RFC 7323 section 5.3. A bare ACK that was merely overtaken is still news: its SACK blocks may be."""
        age = self.stamp_recent - value & MASK32
        if not 0 < age < 0x80000000 or now - self.stamp_recent_at >= STAMP_IDLE:
            return False
        overtaken = not segment.payload and not segment.flags & (SYN | FIN) and age < OVERTAKEN_STAMPS
        return not overtaken

    def take_stamp(self, value: int, seq: int, now: float) -> None:
        """RFC 7323 section 4.3: the stamp to echo is that of the earliest segment not yet acknowledged."""
        if seq <= self.last_ack_sent and value - self.stamp_recent & MASK32 < 0x80000000:
            self.stamp_recent, self.stamp_recent_at = value, now

    def take_run(self, size: int, stamp: int, now: float) -> int:
        """`size` bytes that header prediction put into the buffer are ours now; returns where they began."""
        received = self.buffer
        seq = received.next
        received.next += size
        received.unread += size
        if seq <= self.last_ack_sent and stamp - self.stamp_recent & MASK32 < 0x80000000:  # as `take_stamp`
            self.stamp_recent, self.stamp_recent_at = stamp, now
        return seq

    def place(self, seq: int, payload: bytes, smoothed: float, now: float) -> None:
        """Text within the window, in order or not."""
        received = self.buffer
        expected = received.next
        if seq < expected:
            if seq + len(payload) <= expected:
                return  # only its FIN was news
            if self.selective:
                self.dsack = (seq, expected)
            payload = payload[expected - seq :]
            seq = expected
        if self.fin_at >= 0 and seq + len(payload) > self.fin_at:
            payload = payload[: max(self.fin_at - seq, 0)]
            if not payload:
                return
        if seq == expected:
            filled = bool(received.islands)
            received.accept(payload)
            self.took_data(1, len(payload), smoothed, now)
            if filled:
                self.ack_now = True
            return
        if self.selective and (known := received.island_at(seq)) is not None and known[1] >= seq + len(payload):
            self.dsack = (seq, seq + len(payload))
        if not received.insert(seq, payload):
            self._ledger.drops[tcp_drops.ISLANDS_LIMIT] += 1
        self.ack_now = True
        if not self.selective:
            self.segments_owed += 1  # every duplicate ACK counts for a peer that hears no SACK
        elif len(self.sack_first) < REPORTS_LIMIT:
            self.sack_first.append(seq)

    def took_data(self, segments: int, size: int, smoothed: float, now: float) -> None:
        """`size` bytes more are in order: decide when to acknowledge, and whether the window should grow."""
        segments = max(segments, size // FULL_SEGMENT)
        self.segments_owed += segments
        if self.quick_acks > 0:
            self.quick_acks -= segments
            self.ack_now = True
        elif self.segments_owed >= 2:
            self.ack_now = True
        elif self.ack_deadline == math.inf:
            self.ack_deadline = now + DELAYED_ACK
        if self._consumed_since < 0:
            self._consumed_since = now
        elif now - self._consumed_since >= max(smoothed, 0.001):
            self._tune(now)

    def _tune(self, now: float) -> None:
        """Dynamic right-sizing: a reader that empties more than half a window per round trip gets twice the window."""
        if self.scaling and 2 * self._consumed > self.target and self.target < MAXIMUM_BUFFER:
            growth = min(max(2 * self._consumed, 2 * self.target), MAXIMUM_BUFFER) - self.target
            growth = min(growth, self._ledger.growth_left)
            self._ledger.growth_left -= growth
            self.target += growth
        self._consumed, self._consumed_since = 0, now

    def read(self, limit: int, mss: int) -> tuple[bytes, bool]:
        """Up to `limit` bytes, and whether the peer should be told at once that there is room again."""
        received = self.buffer
        data = received.read(limit)
        self._consumed += len(data)
        growth = received.next + self.target - received.unread - self.edge
        # Worth a segment of its own when what we offer at least doubles; ordinary ACKs carry smaller news.
        if not self.finished and growth >= 2 * mss and growth >= self.edge - received.next:
            self.ack_now = True
            return data, True
        return data, False

    # -- acknowledgements leave ------------------------------------------------------------------------------------

    def owe_ack(self) -> None:
        """An ACK leaves with the next emit, whatever else does."""
        self.ack_now = True

    def report_duplicate(self, seq: int, end: int) -> None:
        """[seq, end) came again: D-SACK says so, of what lies below RCV.NXT (RFC 2883)."""
        if self.selective:
            self.dsack = (seq, min(end, self.expected))

    def on_ack_timer(self, now: float) -> None:
        """An ACK was delayed long enough, if it is that."""
        if self.ack_deadline <= now:
            self.ack_now = True
            self.ack_deadline = math.inf

    def advertise(self, mss: int) -> int:
        """The window to put on the wire; the right edge never moves back and moves on in useful steps only."""
        received = self.buffer
        edge = received.next + self.target - received.unread
        if edge - self.edge >= min(2 * mss, self.target // 2):
            self.edge = edge
        offered = max(self.edge - received.next, 0)
        if not self.scaling:
            return min(offered, 65535)
        # Rounded down: the edge seems to move back by less than one unit, which RFC 7323 section 2.4 asks senders to
        # bear; rounding up would creep forward with every ACK.
        return min(offered >> WINDOW_SHIFT, 65535)

    def sack_options(self, room: int) -> list[bytes]:
        """SACK options, one per ACK: the newest islands first, then others; a duplicate is reported in front."""
        received = self.buffer
        if not self.selective or not (received.islands or self.dsack):
            return [b""]
        fresh: dict[tuple[int, int], None] = {}
        for seq in reversed(self.sack_first):
            if (block := received.island_at(seq)) is not None:
                fresh[block] = None
        for island in islice(received.islands, room):
            fresh[(island.start, island.end)] = None
        blocks = list(fresh)
        needed = max(len(fresh) if self.sack_first else 0, 1)
        if self.dsack is not None:
            blocks.insert(0, self.dsack)
        options = []
        for at in range(0, min(needed, 8 * room), room):
            chosen = blocks[at : at + room]
            packed = b"".join([_PAIR(start & MASK32, end & MASK32) for start, end in chosen])
            options.append(b"\x01\x01\x05" + bytes([2 + len(packed)]) + packed)
        return options

    def all_said(self) -> None:
        """Bare ACKs left with everything there was to report."""
        self.sack_first.clear()
        self.dsack = None
        self.ack_sent()

    def ack_sent(self) -> None:
        """Something that carries RCV.NXT left; what only a bare ACK can say stays owed."""
        self.last_ack_sent = self.expected
        self.ack_deadline = math.inf
        self.segments_owed = 0
        if not self.sack_first and self.dsack is None:
            self.ack_now = False
