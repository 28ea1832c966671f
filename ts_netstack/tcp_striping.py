"""The sending half of a connection that several lanes carry at once: one stream, divided burst by burst.

Owns which lane a burst leaves by, and what is done when lanes come and go. What happened on a lane is judged in
`tcp_lanes.py`, which opens with the theory. A connection becomes this when there is something to divide; while it has
one lane it is an `Outbound` and knows nothing of any of it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

from ts_base.who import Hop, LaneOffer, Lanes
from ts_netstack.tcp_flight import SACKED
from ts_netstack.tcp_lanes import Lane, LaneFlight, LaneRecovery
from ts_netstack.tcp_outbound import Head, Outbound
from ts_netstack.tcp_recovery import OPEN, LossRecovery
from ts_netstack.tcp_send_sequence import BLACK_HOLE_TIMEOUTS, SendSequence
from ts_netstack.tcp_timing import RoundTrip
from ts_netstack.wire import TIMESTAMP_PREFIX

USUAL_WAY = 0  # the lane of what no offer is open for
LANES_LIMIT = 8  # those that only wait for what is in flight among them
DEPARTURES_KEPT = 256  # looked through only when there are so many
TRIAL = 5.0  # seconds after which it is asked whether dividing is worth it
ENOUGH_GAIN = 0.95
BURST_SEGMENTS = 16  # of a burst that stays together on one lane


class StripedOutbound(Outbound):
    """What `emit` makes for lanes is taken afterwards; for lane 0, which is the usual way, it goes the usual way."""

    __slots__ = (
        "_alone",
        "_bursts",
        "_carried_at",
        "_departures",
        "_judged_at",
        "_known",
        "_lanes",
        "_lost",
        "_silent",
        "_was_idle",
    )

    def __init__(self, before: Outbound, offers: Sequence[LaneOffer], now: float) -> None:
        """Go on where `before` is. What is in flight left by the first of the lanes."""
        for slot in SendSequence.__slots__:
            setattr(self, slot, getattr(before, slot))
        self._bursts: list[tuple[int, list[bytes]]] = []
        self._silent: list[int] = []
        # Where what left within one tick of our stamps began, and that tick; before the first of them, the same.
        self._departures: list[tuple[int, float]] = [(self.una, before.sent_at)]
        self._lost: Counter[int] = Counter()  # bytes, by the lane that lost them
        self._known: list[tuple[int, bool]] = []
        self._judged_at, self._carried_at, self._alone, self._was_idle = now, self.una, 0.0, False
        first = Lane(offers[0], _continued(before.recovery), now)
        first.pacer, first.is_limited = before.pacer, before.is_limited
        first.restart_timers(now)
        self.recovery = first.recovery
        self._lanes = [first]
        self.use_lanes(offers, now)

    # -- lanes -----------------------------------------------------------------------------------------------------

    def use_lanes(self, offers: Sequence[LaneOffer], now: float) -> None:
        """These are all there are now. What is in flight on others is lost at once."""
        known = [(offer.number, offer.is_open) for offer in offers]
        if known == self._known and offers:
            return
        self._known = known
        lanes = {lane.number: lane for lane in self._lanes}
        if not any(is_open for _, is_open in known):
            offers = (*offers, LaneOffer(USUAL_WAY, 0.0))
        for offer in offers[:LANES_LIMIT]:
            lane = lanes.pop(offer.number, None)
            if lane is None and offer.is_open:
                self._lanes.append(Lane(offer, LaneRecovery(self.sizes.mss, RoundTrip(), LaneFlight()), now))
            elif lane is not None:
                lane.is_open = offer.is_open
        for lane in lanes.values():
            lane.close()
        self._lanes = [lane for lane in self._lanes if lane.is_open or lane.recovery.flight.spans]
        main = next(lane for lane in self._lanes if lane.is_open)
        self.recovery, self.round_trip, self.pacer = main.recovery, main.round_trip, main.pacer
        self._begin_trial(now)
        self._rearm()

    def _ready(self, now: float) -> list[Lane]:
        """The lanes that may be sent by: those that rest only where there is no other."""
        ready = [lane for lane in self._lanes if lane.may_send(now)]
        return ready or [lane for lane in self._lanes if lane.is_open]

    def _rearm(self) -> None:
        """The connection's timers are the earliest of its lanes'."""
        self.rto_deadline = min([lane.rto_deadline for lane in self._lanes])
        self.probe_deadline = min([lane.probe_deadline for lane in self._lanes])

    @property
    def is_flying(self) -> bool:
        return self.una < self.nxt

    @property
    def _has_lost(self) -> bool:
        return any(lane.recovery.flight.lost for lane in self._lanes)

    # -- sending ---------------------------------------------------------------------------------------------------

    def prepare(self, now: float) -> bool:
        sent, sizes = self.buffer, self.sizes
        is_asked = self._has_lost or any(lane.wants_probe for lane in self._lanes)
        if sent.end <= self.nxt and not is_asked and not (self.fin_queued and self.nxt == sent.end):
            return False
        if sizes.hold_until <= now and self.recovery.mode is OPEN:
            sizes.end_hold()
            self._set_segment_size()
        if not self.is_flying and self.sent_at >= 0:
            self._forget_stale(now - self.sent_at)
        return True

    def _forget_stale(self, idle: float) -> None:
        for lane in self._lanes:
            if idle > lane.round_trip.timeout:
                lane.recovery.congestion.on_idle()
            elif idle > 0:
                lane.recovery.congestion.on_limited_by_application(idle)

    def emit(self, out: list[bytes], head: Head, now: float) -> bool:
        self.sizes.cut = self.sizes.mss
        lanes = self._ready(now)
        for lane in lanes:
            lane.begin_burst(now)
            if (probe := lane.take_probe()) is not None:
                self._put(lane, *probe, self._as_before(head, probe[0]))
                lane.recovery.on_resent(*probe, now)
                lane.on_sent(probe[1] - probe[0], now)
        if self._emit_repairs(lanes, head, now):
            self._emit_stream(lanes, out, head, now)
        if self._bursts:
            self.sent_at = now
            self._rearm()
        for _, packets in [burst for burst in self._bursts if burst[0] == USUAL_WAY]:
            out += packets
        self._bursts = [burst for burst in self._bursts if burst[0] != USUAL_WAY]
        return bool(self._bursts or out)

    def _emit_repairs(self, lanes: list[Lane], head: Head, now: float) -> bool:
        """What was lost on any lane, the lowest first; False while some of it has to wait."""
        mss = self.sizes.mss
        while self._has_lost:
            losers = [lane for lane in self._lanes if lane.recovery.flight.lost]
            owner, span = min(
                ((lane, span) for lane in losers if (span := lane.first_lost()) is not None),
                key=lambda found: found[1].start,
            )
            lane = self._soonest(lanes, min(span.end - span.start, mss), now)
            if lane is None:
                return False
            room = max(min(lane.quota(), lane.left, BURST_SEGMENTS * mss) // mss, 1) * mss
            start, end = span.start, min(span.end, span.start + room)
            owner.hand_over(start, end)
            self._lost[owner.number] += end - start
            self._put(lane, start, end, self._as_before(head, start))
            lane.recovery.on_repaired(start, end, now)
            lane.on_sent(end - start, now)
        return True

    def _as_before(self, head: Head, start: int) -> Head:
        """With the stamp of when it left first.

        A repair overtakes what left before it by a slower lane. With a stamp of now it would make that look old, and
        the receiver would drop it (PAWS, RFC 7323 section 5.3): stamps have to rise with sequence numbers.
        """
        if not head.options:
            return head
        left_at = self._departures[max(bisect_right(self._departures, start, key=_begin) - 1, 0)][1]
        before = head.options[: len(TIMESTAMP_PREFIX)] + self.stamp(left_at).to_bytes(4, "big")
        return head._replace(options=before + head.options[len(before) :])

    def _emit_stream(self, lanes: list[Lane], out: list[bytes], head: Head, now: float) -> None:
        """What is new, burst by burst."""
        sent, mss = self.buffer, self.sizes.mss
        while True:
            nxt = self.nxt
            available = max(sent.end - nxt, 0)
            usable = self.una + self.window - nxt
            self._was_idle = self._was_idle or not available
            size = self._worth_sending(min(available, usable), available)
            has_fin = self.fin_queued and nxt <= sent.end and size >= available and (size > 0 or usable > 0)
            if size <= 0 and not has_fin:
                self._maybe_persist(out, available, usable, head, now)
                return
            lane = self._soonest(lanes, min(max(size, 1), mss), now)
            if lane is None:
                return
            whole = max(min(lane.quota(), lane.left, BURST_SEGMENTS * mss) // mss, 1) * mss
            end = nxt + min(size, whole)
            end += has_fin and end == sent.end
            self.nxt = end
            self._put(lane, nxt, end, head)
            if self.stamp(now) != self.stamp(self._departures[-1][1]):
                self._departures.append((nxt, now))
            lane.recovery.on_sent(nxt, end, now)
            lane.on_sent(end - nxt, now)

    def _worth_sending(self, size: int, available: int) -> int:
        """Whole segments, or everything there is (RFC 9293 section 3.7.4), or what a small window takes."""
        mss = self.sizes.mss
        if size >= available and (self.nodelay or not self.is_flying or self.fin_queued or size >= mss):
            return size
        whole = size // mss * mss
        if not whole and size > 0 and not self.is_flying and (2 * size >= self.largest_window or self.persist_count):
            return size
        return whole

    def _soonest(self, lanes: list[Lane], size: int, now: float) -> Lane | None:
        """Of the lanes that take `size` bytes now, the one by which they arrive first."""
        takers = []
        for lane in lanes:
            if lane.quota() < size:
                lane.is_limited = True
            elif lane.left < size:
                lane.pacer.wait_for(lane.left + self.sizes.mss, lane.recovery.congestion, lane.round_trip.smoothed, now)
            else:
                takers.append(lane)
        return min(takers, key=lambda lane: lane.arrives_in(BURST_SEGMENTS * self.sizes.mss)) if takers else None

    def tell(self, lanes: Lanes, hop: Hop, now: float) -> None:
        """Hand over what the last `emit` made, and what became of lanes since."""
        bursts, self._bursts = self._bursts, []
        for number, packets in bursts:
            lanes.send(hop, number, packets)
        silent, self._silent = self._silent, []
        for number in silent:
            lanes.on_silence(hop, number)
        lost, self._lost = self._lost, Counter()
        for number, count in lost.items():
            lanes.on_lost(hop, number, count)
        if self._gains_nothing(now):
            lanes.on_no_gain(hop, now)

    def _gains_nothing(self, now: float) -> bool:
        """Once for each trial: whether all lanes together carried less than the best of them would have alone.

        A lane alone would fill its own window, or the peer's where that is smaller, once in each round trip.
        """
        if now - self._judged_at < TRIAL:
            return False
        carried, alone = (self.una - self._carried_at) / (now - self._judged_at), self._alone
        is_fair = not self._was_idle and sum([lane.is_open for lane in self._lanes]) > 1
        self._begin_trial(now)
        return is_fair and carried < ENOUGH_GAIN * alone

    def _begin_trial(self, now: float) -> None:
        self._judged_at, self._carried_at, self._was_idle = now, self.una, False
        self._alone = max([lane.alone(self.window) for lane in self._lanes])

    def _put(self, lane: Lane, start: int, end: int, head: Head) -> None:
        packets: list[bytes] = []
        self._emit_range(packets, start, end, head)
        if self._bursts and self._bursts[-1][0] == lane.number:
            self._bursts[-1][1].extend(packets)
        else:
            self._bursts.append((lane.number, packets))

    # -- acknowledgements ------------------------------------------------------------------------------------------

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
        una = self.una
        self._take_window(ack, window, seq)
        if ack < una or (ack == una and not blocks):
            return False
        if blocks:
            _, blocks = self._judge(blocks, ack)
        for lane in self._lanes:
            lane.hear(ack, self.nxt, blocks, now)
        if ack > una:
            self.una = ack
            self.buffer.release(ack)
            self.retries = 0
            if len(self._departures) > DEPARTURES_KEPT:
                del self._departures[: bisect_right(self._departures, ack, key=_begin) - 1]
        self._rearm()
        return ack > una

    # -- how much and how large ------------------------------------------------------------------------------------

    def room(self) -> int:
        window = sum([lane.recovery.congestion.window for lane in self._lanes if lane.is_open])
        return self._room_for(window)

    def limit_segment_size(self, mss: int) -> None:
        before = self.sizes.mss
        self.sizes.limit(mss)
        self._set_segment_size()
        if self.sizes.mss < before:
            for lane in self._lanes:
                lane.recovery.give_up()

    def widen_segment_size(self, mss: int) -> None:
        self.sizes.widen(mss)
        self._set_segment_size()

    def _set_segment_size(self) -> None:
        for lane in self._lanes:
            lane.recovery.set_segment_size(self.sizes.mss)

    # -- timers ----------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        own = min(self.rto_deadline, self.probe_deadline, self.persist_deadline)
        return min(own, min([lane.deadline for lane in self._lanes]))

    def stop(self) -> None:
        for lane in self._lanes:
            lane.close()
        self.rto_deadline = self.probe_deadline = self.persist_deadline = math.inf

    def on_timer(self, now: float) -> None:
        for lane in self._lanes:
            if lane.pacer.deadline <= now:
                lane.pacer.deadline = math.inf
            if lane.recovery.reorder_deadline <= now:
                missing = lane.recovery.flight.first_missing(self.nxt)
                lane.recovery.on_reorder_timer(missing, self.nxt, now)

    def count_timeout(self) -> int:
        """A lane's own back-off is counted where its timeout is."""
        self.retries += 1
        self.timeouts += 1
        return self.retries

    def on_retransmission_timeout(self, now: float) -> None:
        if self.retries % BLACK_HOLE_TIMEOUTS == 0:
            self.sizes.suspect_black_hole(now)
            self._set_segment_size()
        first = [lane.recovery.flight.spans[0] for lane in self._lanes if lane.recovery.flight.spans]
        if first and min(first, key=lambda span: span.start).fate == SACKED:  # RFC 2018 section 8
            for lane in self._lanes:
                lane.recovery.flight.forget_sacks()
        for lane in self._lanes:
            if lane.rto_deadline <= now:
                lane.on_timeout(self.nxt, now)
                self._silent.append(lane.number)
        self._rearm()

    def probe_tail(self, now: float) -> None:
        for lane in self._lanes:
            if lane.probe_deadline <= now:
                lane.probe_deadline, lane.wants_probe = math.inf, True
        self._rearm()

    def resend_head(self, now: float) -> bool:
        """As of one lane: of each, since one of them may have lost it."""
        resent = False
        for lane in self._lanes:
            spans = lane.recovery.flight.spans
            if spans and lane.is_open and now - spans[0].sent_at >= lane.round_trip.smoothed:
                head = spans[0]
                lane.recovery.flight.mark_lost_between(head.start, min(head.end, head.start + self.sizes.mss))
                lane.recovery.allow_repair()
                resent = True
        return resent


def _begin(departure: tuple[int, float]) -> int:
    return departure[0]


def _continued(recovery: LossRecovery) -> LaneRecovery:
    """The same as a lane's; nothing in flight is held or lost."""
    made = LaneRecovery(recovery.mss, recovery.round_trip, LaneFlight(recovery.flight.spans))
    for slot in LossRecovery.__slots__:
        if slot != "flight":
            setattr(made, slot, getattr(recovery, slot))
    return made
