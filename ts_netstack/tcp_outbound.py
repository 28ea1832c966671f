"""The sending half of a connection: SND.UNA to SND.NXT, the peer's window, retransmission, probes and bursts.

Owns what was written and not yet acknowledged, and every timer of the sender. Knows no states; what a segment says of
the other direction is handed in, and how large segments are is in segment_sizes. RFC 9293, 6298, 8985.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ts_base.ip_headers import ACK, FIN, PSH
from ts_netstack.ledger import Ledger
from ts_netstack.segment_sizes import SegmentSizes
from ts_netstack.segments import SegmentWriter
from ts_netstack.tcp_buffers import SendBuffer
from ts_netstack.tcp_inbound import MAXIMUM_BUFFER, Inbound
from ts_netstack.tcp_pacing import Pacer
from ts_netstack.tcp_recovery import OPEN, RECOVERY, LossRecovery, judge_blocks
from ts_netstack.tcp_timing import RoundTrip
from ts_netstack.wire import MASK32, STAMPS, TIMESTAMP_PREFIX, Address, Sizes, unwrap

INITIAL_SEND = 256 << 10
MAXIMUM_PERSIST = 60.0
OVERRIDE = 0.2  # silly-window override (RFC 9293 section 3.8.6.2.1)
SMALL_RECORDS_LIMIT = 1024  # spans in flight beyond which only full segments leave
BLACK_HOLE_TIMEOUTS = 2


class Head(NamedTuple):
    """What every segment of a burst says beside its own sequence number."""

    ack: int
    window: int
    options: bytes


class Outbound:
    """Numbers are unwrapped; deadlines are infinity when nothing waits."""

    __slots__ = (
        "_ledger",
        "_limited",
        "_stamp_offset",
        "buffer",
        "fin_queued",
        "iss",
        "largest_window",
        "nodelay",
        "nxt",
        "pacer",
        "peer_shift",
        "persist_count",
        "persist_deadline",
        "probe_deadline",
        "recovery",
        "retries",
        "round_trip",
        "rto_deadline",
        "sent_at",
        "sizes",
        "stamped",
        "una",
        "wanted_room",
        "window",
        "wl1",
        "wl2",
        "writer",
    )

    def __init__(
        self, ledger: Ledger, local: Address, remote: Address, sizes: Sizes, iss: int, stamp_offset: int
    ) -> None:
        self._ledger = ledger
        self.iss = self.una = self.nxt = iss
        self.buffer = SendBuffer(iss + 1)
        self.window = self.largest_window = 0
        self.wl1 = self.wl2 = 0  # SND.WL1 and SND.WL2
        self.peer_shift = 0
        self.sizes = SegmentSizes(sizes, len(local[0]) == 16)
        self.stamped = True
        self._stamp_offset = stamp_offset
        self.round_trip = RoundTrip()
        self.recovery = LossRecovery(self.sizes.mss, self.round_trip, True)
        self.writer = SegmentWriter(local, remote)
        self.pacer = Pacer()
        self.fin_queued = False
        self.nodelay = True
        self.wanted_room = False  # a write found none; tell when there is some
        self.retries = 0
        self.persist_count = 0
        self.sent_at = -1.0
        self._limited = False  # the congestion window is what holds us back
        self.rto_deadline = self.probe_deadline = self.persist_deadline = math.inf

    def agree(self, sizes: Sizes, shift: int | None, selective: bool, stamped: bool) -> None:
        """What the peer's SYN offered."""
        self.peer_shift = shift or 0
        self.stamped = stamped
        self.sizes.agree(sizes, stamped)
        self.recovery = LossRecovery(self.sizes.mss, self.round_trip, selective)

    def limit_segment_size(self, mss: int) -> None:
        """Cut smaller from now on, and send again what was too large; nobody was congested."""
        before = self.sizes.mss
        self.sizes.limit(mss)
        self.recovery.set_segment_size(self.sizes.mss)
        if self.recovery.flight.spans and self.sizes.mss < before:
            self.recovery.flight.mark_all_lost()

    def widen_segment_size(self, mss: int) -> None:
        """The path changed or a limit has expired: try `mss` again."""
        self.sizes.widen(mss)
        self.recovery.set_segment_size(self.sizes.mss)

    def is_in_flight(self, seq: int) -> bool:
        """A report quotes this wire number: may it be about something on its way?"""
        return self.una <= unwrap(seq, self.una) < self.nxt

    def acceptable_seq(self) -> int:
        """Where a bare segment stands: SND.NXT, or the window's end when the peer took back what it had offered.

        A strict peer ignores acknowledgements beyond its window, its own sender then waits for ever and never reads
        what would open the window again. What scaling rounds off is nothing taken back. As Linux tcp_acceptable_seq.
        """
        edge = self.una + self.window
        return self.nxt if self.nxt < edge + (1 << self.peer_shift) else edge

    def room(self) -> int:
        """Bytes a write may add: twice what the path takes in a round trip, within bounds."""
        limit = min(max(INITIAL_SEND, 2 * self.recovery.congestion.window), MAXIMUM_BUFFER)
        return limit - len(self.buffer)

    def has_room_again(self) -> bool:
        """Once after a write was cut short, when half of the buffer is free."""
        if self.wanted_room and self.room() * 2 >= self.room() + len(self.buffer):
            self.wanted_room = False
            return True
        return False

    def acknowledged(
        self,
        ack: int,
        window: int,
        seq: int,
        blocks: tuple[tuple[int, int], ...],
        echo: int | None,
        carries: bool,
        now: float,
    ) -> bool:
        """SEG.ACK is credible; `carries` says the segment had data and so is no duplicate ACK. True when it moved."""
        una, recovery = self.una, self.recovery
        scaled = window << self.peer_shift
        changed_window = False
        if ack >= una and (seq > self.wl1 or (seq == self.wl1 and ack >= self.wl2)):
            changed_window = scaled != self.window
            self.window, self.wl1, self.wl2 = scaled, seq, ack
            self.largest_window = max(self.largest_window, scaled)
            if changed_window and self.persist_deadline < math.inf:
                self.persist_deadline = math.inf
        if not scaled:
            self.retries = 0  # a peer that closes its window and says so is alive (RFC 9293 section 3.8.6.1)
        if ack < una:
            return False
        if ack == una and not blocks:
            if not recovery.selective and not carries and not changed_window and recovery.flight.spans:
                recovery.on_duplicate_ack(self.nxt)
            return False
        was_recovering = recovery.mode == RECOVERY
        plain = None if blocks else recovery.on_plain_ack(ack, now)
        if plain is not None:
            delivered, rtt = plain
            self.round_trip.sample(rtt, now)
        else:
            delivered, rtt = self._learn(ack, blocks, echo, now)
        if ack > una:
            self.una = ack
            self.buffer.release(ack)
            self.retries = self.round_trip.backoff = 0
            if recovery.flight.spans:
                self.rto_deadline = now + self.round_trip.timeout
                self._arm_probe(now)
            else:
                self.rto_deadline = self.probe_deadline = math.inf
        if delivered and self._limited and not was_recovering and recovery.mode != RECOVERY:
            recovery.congestion.on_acknowledged(delivered, ack, self.nxt, rtt, self.round_trip.smoothed, now)
        return ack > una

    def _learn(self, ack: int, blocks: tuple[tuple[int, int], ...], echo: int | None, now: float) -> tuple[int, float]:
        """What an acknowledgement says of the flight: bytes delivered, and a round trip or 0."""
        una, recovery = self.una, self.recovery
        dsack = None
        if blocks:
            blocks = tuple((unwrap(start, una), unwrap(end, una)) for start, end in blocks)
            dsack, blocks, are_wild = judge_blocks(blocks, ack, self.nxt)
            if are_wild:
                self._ledger.drops["tcp.wild_sack"] += 1
            if dsack and (dsack[1] - dsack[0] > self.largest_window or dsack[0] < ack - 2 * MAXIMUM_BUFFER):
                dsack = None
        echo_ms = None if echo is None else self._echo_ms(echo, now)
        delivered, rtt = recovery.on_ack(ack, self.nxt, blocks, dsack, echo_ms, now)
        if rtt > 0:
            self.round_trip.sample(rtt, now)
        elif echo_ms is not None and ack > una and recovery.mode == OPEN:
            self.round_trip.sample(max(now - echo_ms / 1000, 0.001), now)
        return delivered, rtt

    def _echo_ms(self, echo: int, now: float) -> int | None:
        """TSecr as milliseconds of our own clock; None when it cannot be ours."""
        current = int(now * 1000)
        stamp = unwrap(echo - self._stamp_offset, current)
        return stamp if stamp <= current and current - stamp < 600_000 else None

    def deadline(self) -> float:
        """The earliest of our timers."""
        return min(
            self.rto_deadline,
            self.probe_deadline,
            self.persist_deadline,
            self.pacer.deadline,
            self.recovery.reorder_deadline,
        )

    def stop(self) -> None:
        """No timer of ours matters any more."""
        self.rto_deadline = self.probe_deadline = self.persist_deadline = math.inf
        self.pacer.deadline = self.recovery.reorder_deadline = math.inf

    def count_timeout(self) -> None:
        """The retransmission timer expired, whatever it guarded."""
        self.rto_deadline = self.probe_deadline = math.inf
        self.retries += 1
        self.round_trip.backoff += 1

    def on_retransmission_timeout(self, now: float) -> None:
        """RFC 6298 section 5.4 to 5.6; who counts too many retries is the connection."""
        if self.recovery.flight.spans:
            self.sizes.rest_large(now)
            if self.retries % BLACK_HOLE_TIMEOUTS == 0:
                self.sizes.suspect_black_hole(now)
                self.recovery.set_segment_size(self.sizes.mss)
            self.recovery.on_timeout(self.nxt)

    def probe_tail(self, now: float) -> None:
        """RFC 8985 section 7.3: new data if there is any, else the last segment again."""
        self.probe_deadline = math.inf
        flight = self.recovery.flight
        if not flight.spans or not self.recovery.may_probe:
            return
        mss = self.sizes.mss
        size = min(self.buffer.end - self.nxt, mss)
        if size > 0 and self.una + self.window >= self.nxt + size:
            self.recovery.on_probe_sent(self.nxt + size, False)
            self.recovery.congestion.window = max(self.recovery.congestion.window, flight.pipe + size)
            return
        last = flight.spans[-1]
        flight.mark_lost_between(max(last.start, last.end - mss), last.end)
        self.recovery.on_probe_sent(last.end, True)

    def _arm_probe(self, now: float) -> None:
        recovery = self.recovery
        deadline = now + recovery.probe_timeout() if recovery.flight.spans and recovery.may_probe else math.inf
        self.probe_deadline = deadline if deadline < self.rto_deadline else math.inf

    def stamp(self, now: float) -> int:
        return int(now * 1000) + self._stamp_offset & MASK32

    def options(self, echo: int, now: float) -> bytes:
        return TIMESTAMP_PREFIX + STAMPS(self.stamp(now), echo) if self.stamped else b""

    def emit(self, out: list[bytes], inbound: Inbound, now: float) -> bool:
        """Append what may leave now; True when anything did, and the acknowledgement with it."""
        sent, recovery, sizes = self.buffer, self.recovery, self.sizes
        unsent = sent.end - self.nxt
        if unsent <= 0 and not recovery.flight.lost and not (self.fin_queued and self.nxt == sent.end):
            return False
        if sizes.hold_until <= now and recovery.mode == OPEN:
            sizes.end_hold()
            recovery.set_segment_size(sizes.mss)
        self._before_sending(now)
        congestion, smoothed = recovery.congestion, self.round_trip.smoothed
        sizes.cut = sizes.large_cut(congestion, smoothed, now) if sizes.path_large else sizes.mss
        allowance = self.pacer.allowance(congestion, smoothed, now)
        head = Head(inbound.expected, inbound.advertise(sizes.mss), self.options(inbound.stamp_recent, now))
        left = allowance
        if recovery.flight.lost:
            left = self._emit_lost(out, left, head, now)
        if not recovery.flight.lost:
            left = self._emit_new(out, left, head, now)
        if not out:
            return False
        self.pacer.spend(allowance - left)
        self.sent_at = now
        if self.rto_deadline == math.inf and recovery.flight.spans:
            self.rto_deadline = now + self.round_trip.timeout
        if self.probe_deadline == math.inf or recovery.mode == OPEN:
            self._arm_probe(now)
        return True

    def _before_sending(self, now: float) -> None:
        """Idle time must not count for growth, nor leave a stale window behind."""
        if self.recovery.flight.spans or self.sent_at < 0:
            return
        idle = now - self.sent_at
        if idle > self.round_trip.timeout:
            self.recovery.congestion.on_idle()
        elif idle > 0:
            self.recovery.congestion.on_limited_by_application(idle)

    def _emit_lost(self, out: list[bytes], left: int, head: Head, now: float) -> int:
        """Repair first; returns the pacing allowance that remains."""
        recovery, mss = self.recovery, self.sizes.mss
        while (span := recovery.flight.first_lost()) is not None:
            quota = recovery.quota()
            size = span.end - span.start
            if quota < min(size, mss):
                self._limited = True
                break
            if left < min(size, mss):
                self.pacer.wait_for(left + mss, self.recovery.congestion, self.round_trip.smoothed, now)
                break
            start = span.start
            end = min(span.end, start + max(min(quota, left) // mss, 1) * mss)
            self._emit_range(out, start, end, head)
            recovery.on_resent(start, end, now)
            left -= end - start
            if start == self.una:
                self.rto_deadline = now + self.round_trip.timeout
        return left

    def _emit_new(self, out: list[bytes], left: int, head: Head, now: float) -> int:
        recovery, sent, mss = self.recovery, self.buffer, self.sizes.mss
        nxt = self.nxt
        available = max(sent.end - nxt, 0)
        usable = self.una + self.window - nxt
        quota = recovery.quota()
        size = min(available, usable, quota, left)
        may_be_small = self.nodelay and len(recovery.flight.spans) < SMALL_RECORDS_LIMIT
        if size < available or (size % mss and not may_be_small):
            size = self._avoid_silliness(size, available, usable, quota, left, now)
        end = nxt + max(size, 0)
        fin = self.fin_queued and end == sent.end and nxt <= sent.end and (size > 0 or usable > 0 or self.window == 0)
        if end == nxt and not fin:
            self._maybe_persist(out, available, usable, head, now)
            return left
        end += fin
        self.nxt = end
        self._emit_range(out, nxt, end, head)
        recovery.on_sent(nxt, end, now)
        # Growth is earned by using the window: all of it, or half of it in slow start (RFC 9438 section 5.8).
        self._limited = quota - size < mss or 2 * recovery.flight.pipe >= recovery.congestion.window
        return left - (end - nxt)

    def _avoid_silliness(self, size: int, available: int, usable: int, quota: int, left: int, now: float) -> int:
        """RFC 9293 section 3.8.6.2.1: whole segments, or everything there is, or half of the largest window."""
        mss, cut = self.sizes.mss, self.sizes.cut
        unit = cut if size >= cut else mss
        whole = size // unit * unit
        if size == available:
            spans = self.recovery.flight.spans
            if (self.nodelay or not spans or self.fin_queued) and len(spans) < SMALL_RECORDS_LIMIT:
                return size
        elif size == usable and not whole and size > 0 and (2 * size >= self.largest_window or self.persist_count):
            return size
        if left < min(available, usable, quota, mss) or (size == left and whole < min(available, usable, quota)):
            self.pacer.wait_for(left + mss, self.recovery.congestion, self.round_trip.smoothed, now)
        if size >= quota:
            self._limited = True
        return whole

    def _maybe_persist(self, out: list[bytes], available: int, usable: int, head: Head, now: float) -> None:
        """The peer's window is what stops us and nothing in flight will tell when it opens: ask, ever more rarely."""
        waiting = available or (self.fin_queued and self.nxt == self.buffer.end)
        if not waiting or self.recovery.flight.spans or usable >= min(available, self.sizes.mss):
            return
        if self.persist_deadline < math.inf:
            return
        if self.persist_count:
            # Zero bytes below SND.UNA: unacceptable to everybody, so everybody answers with the window.
            out.append(self.writer.single(self.una - 1, head.ack, ACK, head.window, head.options))
        delay = OVERRIDE if usable > 0 else self.round_trip.timeout
        self.persist_deadline = now + min(delay * (1 << min(self.persist_count, 12)), MAXIMUM_PERSIST)

    def _emit_range(self, out: list[bytes], start: int, end: int, head: Head) -> None:
        """Segments for [start, end) of what was written, the FIN included when `end` passes it."""
        sent, writer = self.buffer, self.writer
        ack, window, options = head
        data_end = min(end, sent.end)
        pieces = sent.pieces(start, data_end, self.sizes.cut) if data_end > start else [b""]
        flags = ACK
        if data_end == sent.end:
            flags |= PSH if data_end > start else 0
            flags |= FIN if end > sent.end else 0
        last = pieces.pop()
        if pieces and flags == ACK and len(last) == len(pieces[0]):
            pieces.append(last)
            out += writer.burst(start, pieces, ack, ACK, window, options)
            return
        if pieces:
            out += writer.burst(start, pieces, ack, ACK, window, options)
        out.append(writer.single(data_end - len(last), ack, flags, window, options, last))
