"""One lane of a connection that is striped: what is in flight there, what of it is lost, how much more it takes.

Owns a lane's share of the scoreboard, its RACK state, round trip, congestion window, pacing and timers. Refuses to
know the other lanes, and which path a lane is: its number is the path finder's.
"""

# Theory of operation
#
# A stream that is divided over two paths arrives out of order without any loss, so what arrived by one path says
# nothing of what left by the other. Each lane therefore judges itself, as if it were a connection: RACK compares with
# what left later *on the same lane*, a sample of the round trip belongs to the lane it was taken on, and a loss cuts
# the window of its lane alone. They share the sequence numbers, and a receiver needs to know nothing of it: it sees
# segments out of order, says so by SACK, and reads the stream when the holes are filled.
#
# What is lost on a lane leaves again by whichever lane brings it soonest, and from then on it is that one's.
#
# SND.UNA stands still while the slower lane's bytes are on their way. So rounds and episodes end by a lane's own
# first missing byte, and its timers start anew with whatever arrives by it.
#
# The echo of a stamp tells of the byte that moved SND.UNA last, whichever lane brought it, so nobody asks it here:
# false alarms are not undone, and whether a copy or its original arrived is judged by the smallest round trip alone.
#
# A lane often has a tail in the middle of the stream, when what follows went by others, so a probe (RFC 8985 section
# 7) is sent in an episode, too. It leaves by the lane it asks about.

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from ts_base.who import LaneOffer
from ts_netstack.tcp_flight import IN_FLIGHT, SACKED, Flight, Span
from ts_netstack.tcp_pacing import Pacer
from ts_netstack.tcp_recovery import OPEN, RECOVERY, TIMED_OUT, Block, LossRecovery
from ts_netstack.tcp_timing import RoundTrip

RATE_STEP = 0.1
RATE_FADES = 0.95  # what is left of an old peak after a step
FIRST_REST, LONGEST_REST = 1.0, 30.0  # of a lane after a timeout: what is lost there holds up all that follows


class LaneFlight(Flight):
    """Spans in sequence order, with gaps where other lanes' are."""

    __slots__ = ("_outstanding",)

    def __init__(self, spans: Sequence[Span] = ()) -> None:
        super().__init__()
        self.spans = list(spans)
        self._outstanding = sum(span.end - span.start for span in spans)

    @property
    def outstanding(self) -> int:
        return self._outstanding

    @property
    def pipe(self) -> int:
        return self._outstanding - self.sacked - self.lost

    def add(self, start: int, end: int, now: float) -> None:
        super().add(start, end, now)
        self._outstanding += end - start

    def acknowledge(self, una: int) -> list[Span]:
        sacked = self.sacked
        news = super().acknowledge(una)
        self._outstanding -= sacked - self.sacked + sum([span.end - span.start for span in news])
        return news

    def take_out(self, start: int, end: int) -> None:
        """[start, end) was lost here and is another lane's from now on."""
        first, last = self._isolate(start, end)
        for span in self.spans[first:last]:
            self._uncount(span)
            self._outstanding -= span.end - span.start
        del self.spans[first:last]

    def put_in(self, start: int, end: int, now: float) -> None:
        """What was lost somewhere leaves again, here."""
        self.spans.insert(bisect_left([span.start for span in self.spans], start), Span(start, end, now, resent=True))
        self._outstanding += end - start

    def first_missing(self, nxt: int) -> int:
        """The lowest byte of this lane that the peer is not known to hold."""
        return next((span.start for span in self.spans if span.fate != SACKED), nxt)


class LaneRecovery(LossRecovery):
    """As for a whole connection, with spans that have gaps between them."""

    __slots__ = ()

    def __init__(self, mss: int, round_trip: RoundTrip, flight: LaneFlight) -> None:
        super().__init__(mss, round_trip, True)
        self.flight: LaneFlight = flight

    def hear(self, una: int, nxt: int, blocks: Sequence[Block], now: float) -> tuple[int, float]:
        """What an acknowledgement says of this lane: bytes that arrived by it, and a round trip or 0."""
        flight = self.flight
        if not flight.spans and self.mode is OPEN:
            return 0, 0.0
        news = flight.acknowledge(una)
        for start, end in blocks:
            news += flight.sack(start, end)
        if not news and self.mode is OPEN:
            return 0, 0.0
        rtt = self._learn(news, una, nxt, None, now)
        delivered = sum([span.end - span.start for span in news])
        lost_before = flight.lost
        if flight.spans:
            self.detect(now)
        else:
            self.reorder_deadline = math.inf
        self._settle_mode(flight.first_missing(nxt), nxt, delivered, flight.lost > lost_before)
        return delivered, rtt

    def on_repaired(self, start: int, end: int, now: float) -> None:
        """[start, end), lost on some lane, left by this one."""
        self.flight.put_in(start, end, now)
        self._count_out(end - start)
        self.resent += end - start

    def has_reneged(self) -> bool:
        """What is missing before the first byte of this lane may be another's: the connection looks at all of them."""
        return False

    def give_up(self) -> None:
        """Nothing more is expected of what is in flight here."""
        self.flight.mark_all_lost()
        self.reorder_deadline = math.inf


class Lane:
    """`left` is what pacing lets go in the burst that is being made."""

    __slots__ = (
        "_arrived",
        "_rests",
        "_step_began",
        "is_limited",
        "is_open",
        "left",
        "number",
        "pacer",
        "probe_deadline",
        "rate",
        "recovery",
        "rests_until",
        "round_trip",
        "rto_deadline",
        "wants_probe",
    )

    def __init__(self, offer: LaneOffer, recovery: LaneRecovery, now: float) -> None:
        self.number = offer.number
        self.recovery = recovery
        self.round_trip: RoundTrip = recovery.round_trip
        if offer.round_trip > 0 and self.round_trip.smoothed == 0.0:
            self.round_trip.sample(offer.round_trip, now)
        self.pacer = Pacer()
        self.is_open = True
        self.is_limited = False
        self.wants_probe = False
        self.left = 0
        self.rate = 0.0  # bytes a second that arrived in the busiest step of late
        self.rto_deadline = self.probe_deadline = math.inf
        self.rests_until = -math.inf
        self._rests = 0
        self._arrived, self._step_began = 0, now

    # -- choosing --------------------------------------------------------------------------------------------------

    def begin_burst(self, now: float) -> None:
        self.left = self.pacer.allowance(self.recovery.congestion, self.round_trip.smoothed, now)

    def may_send(self, now: float) -> bool:
        return self.is_open and now >= self.rests_until

    def arrives_in(self, size: int) -> float:
        """When the last of `size` bytes more would be there: after what is in flight, or after half a round trip."""
        recovery, smoothed = self.recovery, self.round_trip.smoothed
        rate = max(self.rate, recovery.congestion.window / max(smoothed, 1e-3) / 2)
        half = min(self.round_trip.minimum, smoothed) / 2
        return max(size / rate + half, (recovery.flight.pipe + size) / rate - half)

    def alone(self, window: int) -> float:
        """Bytes a second that this lane would carry if it had all that the peer takes for itself."""
        return min(self.recovery.congestion.window, window) / max(self.round_trip.smoothed, 1e-3)

    def quota(self) -> int:
        """Bytes that may leave by this lane; a segment at least where nothing is on its way that would allow more."""
        if not self.recovery.flight.pipe:
            self.recovery.allow_repair()
        return self.recovery.quota()

    # -- sending ---------------------------------------------------------------------------------------------------

    def on_sent(self, size: int, now: float) -> None:
        recovery = self.recovery
        self.left -= size
        self.pacer.spend(size)
        self.is_limited = recovery.quota() < recovery.mss or 2 * recovery.flight.pipe >= recovery.congestion.window
        if self.rto_deadline == math.inf:
            self.rto_deadline = now + self.round_trip.timeout
        self._arm_probe(now)

    def _arm_probe(self, now: float) -> None:
        flight = self.recovery.flight
        flies = any(span.fate == IN_FLIGHT for span in flight.spans)
        may_probe = flies and self.recovery.mode is not TIMED_OUT and self.may_send(now)
        deadline = now + self.recovery.probe_timeout() if may_probe else math.inf
        self.probe_deadline = deadline if deadline < self.rto_deadline else math.inf

    # -- acknowledgements ------------------------------------------------------------------------------------------

    def hear(self, una: int, nxt: int, blocks: Sequence[Block], now: float) -> int:
        """What arrived by this lane, in bytes; its window grows and its timers start anew."""
        recovery = self.recovery
        was_recovering = recovery.mode is RECOVERY
        delivered, rtt = recovery.hear(una, nxt, blocks, now)
        if not delivered:
            return 0
        if rtt > 0:
            self.round_trip.sample(rtt, now)
        self._rests, self.rests_until = 0, -math.inf
        self.round_trip.backoff = 0
        self._measure(delivered, now)
        if self.is_limited and not was_recovering and recovery.mode is not RECOVERY:
            missing = recovery.flight.first_missing(nxt)
            recovery.congestion.on_acknowledged(delivered, missing, nxt, rtt, self.round_trip.smoothed, now)
        self.restart_timers(now)
        return delivered

    def restart_timers(self, now: float) -> None:
        if any(span.fate == IN_FLIGHT for span in self.recovery.flight.spans):
            self.rto_deadline = now + self.round_trip.timeout
            self._arm_probe(now)
        else:
            self.rto_deadline = self.probe_deadline = math.inf

    def _measure(self, size: int, now: float) -> None:
        self._arrived += size
        elapsed = now - self._step_began
        if elapsed >= RATE_STEP:
            self.rate = max(self._arrived / elapsed, self.rate * RATE_FADES)
            self._arrived, self._step_began = 0, now

    # -- trouble ---------------------------------------------------------------------------------------------------

    def on_timeout(self, nxt: int, now: float) -> None:
        """Nothing came back for too long: all of it is lost, and the lane rests while there are others."""
        self.round_trip.backoff += 1
        self.recovery.on_timeout(nxt)
        self.rto_deadline = self.probe_deadline = math.inf
        self.rests_until = now + min(FIRST_REST * 2**self._rests, LONGEST_REST)
        self._rests = min(self._rests + 1, 16)

    def take_probe(self) -> tuple[int, int] | None:
        """RFC 8985 section 7.3: the last segment again, if it is time; what it brings back lets RACK judge the rest."""
        if not self.wants_probe:
            return None
        self.wants_probe = False
        newest = max((one for one in self.recovery.flight.spans if one.fate == IN_FLIGHT), key=_sent, default=None)
        return None if newest is None else (max(newest.start, newest.end - self.recovery.mss), newest.end)

    def hand_over(self, start: int, end: int) -> None:
        """[start, end), which was lost here, leaves again by whichever lane is best: no timer of ours waits for it."""
        self.recovery.flight.take_out(start, end)
        if not any(span.fate == IN_FLIGHT for span in self.recovery.flight.spans):
            self.rto_deadline = self.probe_deadline = math.inf

    def close(self) -> None:
        """The path is none of ours any more: what is in flight there leaves again by others."""
        self.is_open = False
        self.recovery.give_up()
        self.rto_deadline = self.probe_deadline = self.pacer.deadline = math.inf

    def first_lost(self) -> Span | None:
        return self.recovery.flight.first_lost()

    @property
    def deadline(self) -> float:
        """When something is due that is no timeout and no probe."""
        return min(self.pacer.deadline, self.recovery.reorder_deadline)


def _sent(span: Span) -> tuple[float, int]:
    return span.sent_at, span.end
