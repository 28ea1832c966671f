"""The sending half of a connection: what leaves now, as one burst.

Owns the order (repair, then what is new), silly-window avoidance, Nagle and the questions to a closed window. Knows no
states; the numbers and timers are SendSequence, and what a segment says of the other direction is handed in. RFC 9293
section 3.8.6.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ts_base.ip_headers import ACK, FIN, PSH
from ts_netstack.tcp_recovery import OPEN
from ts_netstack.tcp_send_sequence import SendSequence

MAXIMUM_PERSIST = 60.0
OVERRIDE = 0.2  # silly-window override (RFC 9293 section 3.8.6.2.1)
SMALL_RECORDS_LIMIT = 1024  # spans in flight beyond which only full segments leave


class Head(NamedTuple):
    """What every segment of a burst says of the other direction, beside its own sequence number."""

    ack: int
    window: int
    options: bytes


class Outbound(SendSequence):
    """`prepare`, then `emit`, for all that may leave at one moment."""

    __slots__ = ()

    def prepare(self, now: float) -> bool:
        """Get ready for `emit`; False when there is nothing to send, whatever window and pacing say."""
        sent, recovery, sizes = self.buffer, self.recovery, self.sizes
        if sent.end <= self.nxt and not recovery.flight.lost and not (self.fin_queued and self.nxt == sent.end):
            return False
        if sizes.hold_until <= now and recovery.mode is OPEN:
            sizes.end_hold()
            recovery.set_segment_size(sizes.mss)
        self._before_sending(now)
        return True

    def emit(self, out: list[bytes], head: Head, now: float) -> bool:
        """Append what may leave now; True when anything did, and the acknowledgement with it."""
        recovery, sizes = self.recovery, self.sizes
        congestion, smoothed = recovery.congestion, self.round_trip.smoothed
        sizes.cut = sizes.large_cut(congestion, smoothed, now) if sizes.path_large else sizes.mss
        allowance = self.pacer.allowance(congestion, smoothed, now)
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
        if self.probe_deadline == math.inf or recovery.mode is OPEN:
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
            self._ledger.note_resent(self.remote, end - start)
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
