"""Deciding what was lost and how fast to repair it, for one connection.

Owns the flight, RACK-TLP (RFC 8985), proportional rate reduction (RFC 6937), NewReno for peers without SACK (RFC
6582) and the undo of false alarms (Eifel RFC 4015, D-SACK RFC 3708, F-RTO RFC 5682). Times are `now` seconds; echoes
are milliseconds of the same clock. Knows no segments: the connection sends what `flight.first_lost` names.
"""

# Theory of operation
#
# A sender never sees a loss. It sees acknowledgements: SND.UNA that moves, SACK blocks of what arrived behind a hole
# (RFC 2018), a block that reports a duplicate (D-SACK, RFC 2883), the echo of a timestamp (RFC 7323). From these and
# from the clock it answers three questions: what was lost, how many bytes may leave now, and was it a loss at all.
#
# What is kept. `flight` is the scoreboard: ranges of bytes that left together, each with the moment it left, whether
# it had left before, and its fate: in flight, held by the peer, or lost. RFC 6675's pipe is a subtraction on it: what
# is out, less what is held, less what is lost. A range is a burst and not a segment, so that a window without losses
# is a handful of objects. Of all that was delivered RACK keeps only the piece that left last: when it left
# (`_rack_at`), where it ends (`_rack_end`), how long it took (`_rack_rtt`).
#
# What was lost. RACK (RFC 8985 section 6.2) argues by time: a piece is lost if something that left later has arrived,
# and the piece has had that one's round trip and some patience on top. Patience is a quarter of the smallest round
# trip, a quarter more for each round in which a D-SACK said that we were hasty, and never more than the smoothed
# round trip. While no reordering was ever seen it ends as soon as the peer holds three segments' worth, or an episode
# runs. Pieces whose time is not up yet set `reorder_deadline`. Pieces of one burst left at one time; the lower number
# counts as the earlier. The arrival of something sent twice may be that of its first copy: it teaches nothing if the
# echo is older than the second, or if it would have been faster than this path ever was.
#
# Behind the last piece nothing arrives, and RACK has nothing to argue with. About two round trips later a probe asks
# (TLP, section 7): new data if there is any and the window allows, else the last segment again. What the peer then
# says lets RACK judge the rest. If the probe was a repeat and there was no report of a duplicate, it repaired a loss
# in silence, and the window pays for that (section 7.4).
#
# Without SACK (NewReno, RFC 6582) the third duplicate ACK in a row gives up the head, and every ACK short of the
# recovery point the next one. Each duplicate stands for a segment that left the network, so another may enter.
#
# When all this is silent, the retransmission timer (RFC 6298; Outbound keeps it) gives up everything that is not
# held. If the head is held, the peer has thrown away what it said it had (RFC 2018 section 8), and nothing counts as
# held any more.
#
# How fast. Trouble comes in episodes. One begins with a loss and lasts until all that was out at that moment is
# acknowledged (`_point`, RFC 6675's RecoveryPoint); however many pieces it finds lost, the window is cut once.
#
#                         a piece is lost, or the third duplicate ACK
#      .------. ------------------------------------------------------> .----------.
#      | OPEN |                                                         | RECOVERY |
#      '------' <------------------------------------------------------ '----------'
#       |    ^      SND.UNA reaches the point, or it was a false alarm       |
#       |    |                                                               | the timer expires
#       |    |      SND.UNA reaches the point, or it was a false alarm       v
#       |    '------------------------------------------------------- .-----------.
#       |                                                             | TIMED_OUT | --. the timer
#       '-----------------------------------------------------------> '-----------' <-' expires again
#                         the timer expires
#
# - OPEN: the congestion window less the pipe may leave.
# - RECOVERY: proportional rate reduction (RFC 6937 with its slow-start reduction bound). While more is out than the
#   new threshold, every delivered byte lets out its share, so that the pipe has come down to the threshold after one
#   round trip; below the threshold, as much as was delivered and a segment more. The first repair is never held back.
#   Whoever halves the window at once is silent for half a round trip and then sends a burst.
# - TIMED_OUT: one segment, then slow start (RFC 5681 section 3.1). Losses found meanwhile are part of the same
#   episode, and a timer that expires again goes back to one segment without another cut of the threshold.
#
# Repairs leave before anything new, the lowest number first (`flight.first_lost`). Segments that turned out too large
# for the path are marked lost by Outbound without an episode: nobody was congested.
#
# Was it a loss at all? `_begin_episode` remembers the window. Three witnesses can clear the network, none of them
# once a retransmission is known to have been needed (`_confirmed`):
#
# - Eifel (RFC 3522): an ACK that moves SND.UNA echoes a stamp older than our first retransmission, so the
#   original arrived. Not believed while something sent again is still out: that may have been needed.
# - D-SACK (RFC 3708): all that was sent again is reported as duplicate. This may come when the episode is over.
#   Networks duplicate by themselves, too: only reports about what the episode covered count.
# - F-RTO (RFC 5682), where there are no stamps, after a timeout: the first ACK that moves SND.UNA covers bytes given
#   up and not sent again. It cannot be the answer to a retransmission.
#
# Then window and memory of the congestion control are what they were (RFC 4015), what was given up is in flight
# again, and RACK counts the path among those that reorder.
#
# What is not done, and why:
#
# - A record for each segment, as kernels have it: making one costs more than sending the segment does. The price is
#   that RACK knows one time of leaving for a whole burst.
# - Giving up what has three SACKed segments behind it (RFC 6675's IsLost): it takes reordering for loss.
# - RACK beyond the highest byte that has arrived. RFC 8985 gives up new data that left before a retransmission which
#   was answered; we wait for something behind it, for the probe or for the timer. That can be late, and not wrong.
# - F-RTO's second step, two new segments and their ACKs: nearly every peer has timestamps, and Eifel needs one ACK.
# - A memory of more than one episode: a timer that expires in RECOVERY begins an episode of its own, and a false
#   alarm then restores the window as RECOVERY had cut it.
# - ECN: the marks are on the header outside the tunnel.
#
# `on_plain_ack` is the short way through `on_ack` for one piece, acknowledged whole, without trouble. A small
# exchange is mostly that. It must leave behind what the long way would; tests/ts_netstack/test_tcp_recovery.py
# compares the two.

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

from ts_netstack.congestion import Congestion, Cubic
from ts_netstack.tcp_flight import IN_FLIGHT, LOST, Flight, Span
from ts_netstack.tcp_timing import RoundTrip


class Recovery(enum.Enum):
    """In what trouble a connection is."""

    OPEN = "open"
    RECOVERY = "recovery"
    TIMED_OUT = "timed out"


OPEN, RECOVERY, TIMED_OUT = Recovery

DUPLICATE_THRESHOLD = 3
REORDER_PERSISTENCE = 16  # recoveries without a D-SACK before the reordering window shrinks again
TOLERANCE = 1e-6  # float noise must not postpone a verdict to a timer
WORST_DELAYED_ACK = 0.2
PROBE_BEFORE_SAMPLE = 1.0

Block = tuple[int, int]


class LossRecovery:
    """What is in flight, what of it is lost, and how many bytes may leave now."""

    __slots__ = (
        "_confirmed",
        "_duplicates",
        "_forward",
        "_persist",
        "_point",
        "_probe_end",
        "_probe_resent",
        "_prr_delivered",
        "_prr_flight",
        "_prr_out",
        "_prr_quota",
        "_rack_at",
        "_rack_end",
        "_rack_rtt",
        "_reorder_round",
        "_reorder_steps",
        "_reordered",
        "_saved",
        "_undo_bytes",
        "_undo_stamp",
        "congestion",
        "flight",
        "mode",
        "mss",
        "reorder_deadline",
        "resent",
        "round_trip",
        "selective",
    )

    def __init__(self, mss: int, round_trip: RoundTrip, selective: bool) -> None:
        self.flight = Flight()
        self.congestion: Congestion = Cubic(mss)
        self.round_trip = round_trip
        self.mss = mss
        self.selective = selective
        self.mode: Recovery = OPEN
        self.resent = 0  # bytes, for statistics
        self.reorder_deadline = math.inf
        self._point = -1  # RecoveryPoint: SND.NXT when trouble began
        self._duplicates = 0
        self._forward = -1  # highest byte known to have arrived
        self._rack_at, self._rack_end, self._rack_rtt = -1.0, 0, 0.0
        self._reordered = False
        self._reorder_steps, self._persist, self._reorder_round = 1, 0, -1
        self._prr_delivered = self._prr_out = self._prr_flight = self._prr_quota = 0
        self._saved: tuple[float, ...] | None = None
        self._undo_stamp = -1  # ms of the first retransmission of this episode
        self._undo_bytes = 0
        self._confirmed = False
        self._probe_end = -1
        self._probe_resent = False

    # -- sending ---------------------------------------------------------------------------------------------------

    def quota(self) -> int:
        """Bytes that may leave now, new or again."""
        if self.mode is RECOVERY:
            return self._prr_quota
        return self.congestion.window - self.flight.pipe + self._duplicates * self.mss

    def on_sent(self, start: int, end: int, now: float) -> None:
        self.flight.add(start, end, now)
        self._count_out(end - start)

    def on_resent(self, start: int, end: int, now: float) -> None:
        self.flight.resend(start, end, now)
        self._count_out(end - start)
        self._undo_bytes += end - start
        self.resent += end - start
        if self._undo_stamp < 0:
            self._undo_stamp = int(now * 1000)

    def allow_repair(self) -> None:
        """One segment may leave, however the reduction of an episode stands."""
        self._prr_quota = max(self._prr_quota, self.mss)

    def _count_out(self, size: int) -> None:
        if self.mode is RECOVERY:
            self._prr_out += size
            self._prr_quota -= size

    # -- acknowledgements ------------------------------------------------------------------------------------------

    def on_ack(
        self, una: int, nxt: int, blocks: Sequence[Block], dsack: Block | None, echo: int | None, now: float
    ) -> tuple[int, float]:
        """`una` moved, or `blocks` may tell news. Returns bytes newly delivered and a round-trip sample or 0."""
        flight = self.flight
        advanced = bool(flight.spans) and una > flight.spans[0].start
        sacked_before = flight.sacked
        news = flight.acknowledge(una)
        cumulative = len(news)
        for start, end in blocks:
            news += flight.sack(start, end)
        rtt = self._learn(news, una, nxt, echo, now)
        if dsack is not None:
            self._on_duplicate_report(dsack, una, nxt)
        if advanced:
            self._duplicates = 0
            self._maybe_undo(news[:cumulative], echo)
        self._judge_probe(una, dsack)
        delivered = sum([span.end - span.start for span in news])
        lost_before = flight.lost
        if flight.spans and (flight.sacked or self._rack_at >= 0):
            self.detect(now)
        if self.mode is RECOVERY and advanced and not self.selective and una < self._point:
            self._lose_head()
        self._settle_mode(una, nxt, delivered, flight.lost > lost_before)
        if sacked_before and not flight.spans:
            self.reorder_deadline = math.inf
        return delivered, rtt

    def on_plain_ack(self, una: int, now: float) -> tuple[int, float] | None:
        """`on_ack` for the usual end of a small exchange: no trouble, one piece in flight, all of it acknowledged."""
        flight = self.flight
        if self.mode is not OPEN or self._probe_end >= 0 or len(flight.spans) != 1:
            return None
        span = flight.spans[0]
        if span.end != una or span.resent or span.fate != IN_FLIGHT:
            return None
        flight.spans.clear()
        self._duplicates = 0
        if span.end <= self._forward:
            self._reordered = True
        else:
            self._forward = span.end
        age = now - span.sent_at
        if (span.sent_at, span.end) > (self._rack_at, self._rack_end):
            self._rack_at, self._rack_end, self._rack_rtt = span.sent_at, span.end, age
        return span.end - span.start, max(age, TOLERANCE)

    def _learn(self, news: list[Span], una: int, nxt: int, echo: int | None, now: float) -> float:
        """Feed RACK with what arrived; returns the round trip of the newest piece that was sent only once."""
        best, forward = -1.0, self._forward
        for span in news:
            age = now - span.sent_at
            if span.resent:
                # The original may be what arrived: believe nothing the echo or the minimum contradicts.
                if (echo is not None and echo < int(span.sent_at * 1000)) or age < self.round_trip.minimum:
                    continue
            else:
                best = max(best, span.sent_at)
                if span.end <= forward:
                    self._reordered = True
            if (span.sent_at, span.end) > (self._rack_at, self._rack_end):
                self._rack_at, self._rack_end, self._rack_rtt = span.sent_at, span.end, age
            self._forward = max(self._forward, span.end)
        return max(now - best, TOLERANCE) if best >= 0 else 0.0

    def _on_duplicate_report(self, dsack: Block, una: int, nxt: int) -> None:
        if una > self._reorder_round:
            self._reorder_round = nxt
            self._reorder_steps += 1
        self._persist = REORDER_PERSISTENCE
        # Only a report about what we sent again says that we need not have; networks duplicate by themselves, too.
        if self._undo_bytes > 0 and dsack[1] <= self._point and not self._confirmed:
            self._undo_bytes -= dsack[1] - dsack[0]
            if self._undo_bytes <= 0:
                self._undo()

    def on_duplicate_ack(self, nxt: int) -> None:
        """Only for peers without SACK: the third one in a row means the head is gone."""
        self._duplicates += 1
        if self._duplicates == DUPLICATE_THRESHOLD and self.mode is OPEN and self.flight.spans:
            self._lose_head()
            self._enter(nxt)
        elif self.mode is RECOVERY:
            self._prr(self.mss)

    def _lose_head(self) -> None:
        head = self.flight.spans[0]
        self.flight.mark_lost_between(head.start, min(head.start + self.mss, head.end))

    # -- RACK ------------------------------------------------------------------------------------------------------

    def _reorder_window(self) -> float:
        if not self._reordered and (self.mode is not OPEN or self.flight.sacked >= DUPLICATE_THRESHOLD * self.mss):
            return 0.0
        if self.round_trip.minimum == math.inf:
            return 0.0
        return min(self._reorder_steps * self.round_trip.minimum / 4, self.round_trip.smoothed)

    def detect(self, now: float) -> None:
        """RFC 8985 section 6.2: lost is what was sent before something that arrived, plus patience."""
        self.reorder_deadline = math.inf
        if self._rack_at < 0:
            return
        patience = self._rack_rtt + self._reorder_window()
        rack_at, rack_end, forward = self._rack_at, self._rack_end, self._forward
        for span in self.flight.spans:
            if span.start >= forward:
                break
            if span.fate != IN_FLIGHT:
                continue
            if span.sent_at < rack_at or (span.sent_at == rack_at and span.end <= rack_end):
                expiry = span.sent_at + patience
                if expiry <= now + TOLERANCE:
                    self.flight.mark_lost(span)
                else:
                    self.reorder_deadline = min(self.reorder_deadline, expiry)

    def on_reorder_timer(self, una: int, nxt: int, now: float) -> None:
        before = self.flight.lost
        self.detect(now)
        self._settle_mode(una, nxt, 0, self.flight.lost > before)

    # -- episodes --------------------------------------------------------------------------------------------------

    def _settle_mode(self, una: int, nxt: int, delivered: int, fresh_loss: bool) -> None:
        if self.mode is not OPEN and una >= self._point:
            if self.mode is RECOVERY:
                self.congestion.window = int(min(self.congestion.window, self.congestion.threshold))
            self.mode = OPEN
            self._persist -= 1
            if self._persist <= 0:
                self._reorder_steps = 1
        if fresh_loss and self.mode is OPEN:
            self._enter(nxt)
        elif self.mode is RECOVERY and (delivered or fresh_loss):
            self._prr(delivered)

    def _enter(self, nxt: int) -> None:
        spans = self.flight.spans
        self._begin_episode(nxt)
        in_flight = spans[-1].end - spans[0].start
        self.congestion.on_loss()
        self.mode = RECOVERY
        self._prr_flight = max(in_flight, 1)
        self._prr_delivered = self._prr_out = 0
        self._prr_quota = self.mss  # the fast retransmission itself is never held back
        self._prr(self.flight.sacked and self.mss)

    def _begin_episode(self, nxt: int) -> None:
        self._point = nxt
        self._saved = self.congestion.save()
        self._undo_stamp, self._undo_bytes, self._confirmed = -1, 0, False

    def _prr(self, delivered: int) -> None:
        """RFC 6937 section 3.1 with the slow-start reduction bound."""
        self._prr_delivered += delivered
        pipe, threshold = self.flight.pipe, int(self.congestion.threshold)
        if pipe > threshold:
            count = -(-self._prr_delivered * threshold // self._prr_flight) - self._prr_out
        else:
            count = min(threshold - pipe, max(self._prr_delivered - self._prr_out, delivered) + self.mss)
        self._prr_quota = max(count, self.mss if self._prr_out == 0 else 0)

    def on_timeout(self, nxt: int) -> None:
        """The retransmission timer expired with data in flight."""
        flight = self.flight
        if self.mode is not TIMED_OUT:
            self._begin_episode(nxt)
            self.congestion.on_timeout()
            self.mode = TIMED_OUT
        else:
            self.congestion.window = self.mss
        if flight.spans[0].fate not in (IN_FLIGHT, LOST):
            flight.forget_sacks()
        flight.mark_all_lost()
        self._duplicates = 0
        self._probe_end = -1
        self.reorder_deadline = math.inf

    def _maybe_undo(self, acknowledged: list[Span], echo: int | None) -> None:
        """Was this episode a false alarm? An echo older than our first retransmission says the original arrived."""
        if self._saved is None or self._confirmed or self.mode is OPEN:
            return
        if echo is not None and self._undo_stamp >= 0:
            if echo >= self._undo_stamp:
                self._confirmed = True
            elif not any(span.resent for span in self.flight.spans):  # else one of those may have been needed
                self._undo()
        elif self.mode is TIMED_OUT:
            # F-RTO: data we had given up for lost and not sent again was acknowledged.
            if any(span.fate == LOST and not span.resent for span in acknowledged):
                self._undo()
            else:
                self._confirmed = True

    def _undo(self) -> None:
        if self._saved is not None:
            self.congestion.undo(self._saved)
            self._saved = None
            self.flight.revive()
            self.mode = OPEN
            self._reordered = True
            self.reorder_deadline = math.inf

    # -- tail loss probes ------------------------------------------------------------------------------------------

    def probe_timeout(self) -> float:
        """RFC 8985 section 7.2."""
        smoothed = self.round_trip.smoothed
        if smoothed == 0.0:
            return PROBE_BEFORE_SAMPLE
        pipe = self.flight.pipe
        return 2 * smoothed + (WORST_DELAYED_ACK if pipe <= self.mss else 0.002)

    @property
    def may_probe(self) -> bool:
        return self.mode is OPEN and self._probe_end < 0 and self.selective and not self.flight.sacked

    def on_probe_sent(self, end: int, resent: bool) -> None:
        self._probe_end, self._probe_resent = end, resent

    def _judge_probe(self, una: int, dsack: Block | None) -> None:
        """RFC 8985 section 7.4: did the probe repair a loss, or was it one copy too many?"""
        if self._probe_end < 0 or una < self._probe_end:
            return
        if self._probe_resent and dsack is None:
            if una == self._probe_end:
                return  # a report of the duplicate may still follow
            if self.mode is OPEN:
                self.congestion.on_loss()
        self._probe_end = -1

    def set_segment_size(self, mss: int) -> None:
        self.mss = mss
        self.congestion.set_segment_size(mss)


def judge_blocks(blocks: tuple[Block, ...], ack: int, nxt: int) -> tuple[Block | None, tuple[Block, ...], bool]:
    """The report of a duplicate (RFC 2883), the news, and whether there were impossible blocks, which are left out."""
    first, dsack = blocks[0], None
    if first[0] < first[1] and (
        first[1] <= ack or (len(blocks) > 1 and blocks[1][0] <= first[0] and first[1] <= blocks[1][1])
    ):
        dsack, blocks = first, blocks[1:]
    good = tuple(block for block in blocks if ack < block[0] < block[1] <= nxt)
    return dsack, good, len(good) != len(blocks)
