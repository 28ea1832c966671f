"""The numbers of what we send, SND.UNA to SND.NXT: what was written, what is acknowledged, what to do about silence.

Owns the peer's window, the buffer and every timer of the sender. Knows no states; what leaves and when is in
tcp_outbound, what was lost in tcp_recovery, how large segments are in segment_sizes. RFC 9293 section 3.3.1, 6298.
"""

from __future__ import annotations

import math

from ts_netstack import tcp_drops
from ts_netstack.ledger import Ledger
from ts_netstack.segment_sizes import SegmentSizes
from ts_netstack.segments import SegmentWriter
from ts_netstack.tcp_buffers import SendBuffer
from ts_netstack.tcp_inbound import MAXIMUM_BUFFER
from ts_netstack.tcp_pacing import Pacer
from ts_netstack.tcp_recovery import OPEN, RECOVERY, LossRecovery, judge_blocks
from ts_netstack.tcp_states import Handshake
from ts_netstack.tcp_timing import RoundTrip
from ts_netstack.wire import MASK32, STAMPS, TIMESTAMP_PREFIX, Address, Sizes, unwrap

INITIAL_SEND = 256 << 10
BLACK_HOLE_TIMEOUTS = 2


class SendSequence:
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
        "remote",
        "retries",
        "round_trip",
        "rto_deadline",
        "sent_at",
        "sizes",
        "stamped",
        "timeouts",
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
        self.remote = remote[0]
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
        self.retries = 0  # timeouts in a row
        self.timeouts = 0  # timeouts ever
        self.persist_count = 0
        self.sent_at = -1.0
        self._limited = False  # the congestion window is what holds us back
        self.rto_deadline = self.probe_deadline = self.persist_deadline = math.inf

    # -- opening and ending ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Our SYN takes the first number."""
        self.nxt = self.iss + 1

    def adopt(self, agreed: Handshake, window: int, now: float) -> None:
        """A listener did the handshake; `window` is that of the peer's ACK."""
        self.start()
        self.una = self.nxt
        self.heard_syn(agreed, window << (agreed.peer_shift or 0))
        if agreed.resent:
            self.round_trip.syn_was_lost()
        elif agreed.round_trip > 0:
            self.round_trip.sample(agreed.round_trip, now)

    def handshake_sent(self, now: float) -> None:
        """Our SYN or SYN-ACK left."""
        self.sent_at = now
        self.rto_deadline = now + self.round_trip.timeout

    def syn_acknowledged(self, now: float) -> None:
        """Our SYN was answered by theirs; its round trip counts unless it had to be sent again (Karn)."""
        self.una = self.nxt
        if self.retries:
            self.round_trip.syn_was_lost()
        elif self.sent_at >= 0:
            self.round_trip.sample(now - self.sent_at, now)

    def heard_syn(self, agreed: Handshake, window: int) -> None:
        """The peer's SYN, and the bytes it offers to take: a SYN's window is never scaled."""
        self.peer_shift = agreed.peer_shift or 0
        self.stamped = agreed.stamp is not None
        self.sizes.agree(Sizes(agreed.peer_mss or 0, agreed.large), self.stamped)
        self.recovery = LossRecovery(self.sizes.mss, self.round_trip, agreed.selective)
        self.window = self.largest_window = window
        self.wl1, self.wl2 = agreed.irs, self.nxt
        self._forget_timeouts()
        self.rto_deadline = math.inf

    def syn_ack_acknowledged(self) -> None:
        """A simultaneous open is complete. The window in that segment is news, whatever its numbers."""
        self.una = self.nxt
        self.rto_deadline = math.inf
        self._forget_timeouts()
        self.wl1 = self.wl2 = -1 << 62

    def _forget_timeouts(self) -> None:
        self.retries = self.round_trip.backoff = 0

    def queue_fin(self) -> None:
        """Nothing more will be written; the FIN leaves behind what was."""
        self.fin_queued = True

    def end(self) -> None:
        """Nobody waits for an acknowledgement any more."""
        self.stop()
        self.buffer.release(self.buffer.end)

    # -- how large -------------------------------------------------------------------------------------------------

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

    def offer_large(self, mss: int) -> None:
        """What our SYN says that we take beside its MSS."""
        self.sizes.offered_large = mss

    def set_large(self, mss: int) -> None:
        """What the path of this moment carries in one segment; 0 where it is no relay's."""
        self.sizes.path_large = mss

    def set_nodelay(self, on: bool) -> None:
        """Off: Nagle."""
        self.nodelay = on

    @property
    def is_flying(self) -> bool:
        """Something waits for an acknowledgement."""
        return bool(self.recovery.flight.spans)

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

    # -- what is written -------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take what there is room for. Room for a byte is not worth waking for: see `has_room_again`."""
        room = 0 if self.wanted_room else self.room()
        if room <= 0:
            self.wanted_room = True
            return 0
        if len(data) > room:
            data = data[:room]
            self.wanted_room = True
        self.buffer.append(data if type(data) is bytes else bytes(data))
        return len(data)

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
        was_recovering = recovery.mode is RECOVERY
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
        if delivered and self._limited and not was_recovering and recovery.mode is not RECOVERY:
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
                self._ledger.drops[tcp_drops.WILD_SACK] += 1
            if dsack and (dsack[1] - dsack[0] > self.largest_window or dsack[0] < ack - 2 * MAXIMUM_BUFFER):
                dsack = None
        echo_ms = None if echo is None else self._echo_ms(echo, now)
        delivered, rtt = recovery.on_ack(ack, self.nxt, blocks, dsack, echo_ms, now)
        if rtt > 0:
            self.round_trip.sample(rtt, now)
        elif echo_ms is not None and ack > una and recovery.mode is OPEN:
            self.round_trip.sample(max(now - echo_ms / 1000, 0.001), now)
        return delivered, rtt

    def _echo_ms(self, echo: int, now: float) -> int | None:
        """TSecr as milliseconds of our own clock; None when it cannot be ours."""
        current = int(now * 1000)
        stamp = unwrap(echo - self._stamp_offset, current)
        return stamp if stamp <= current and current - stamp < 600_000 else None

    # -- timers ----------------------------------------------------------------------------------------------------

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

    def on_timer(self, now: float) -> None:
        """The timers that mean the same in every state."""
        if self.pacer.deadline <= now:
            self.pacer.deadline = math.inf
        if self.recovery.reorder_deadline <= now:
            self.recovery.on_reorder_timer(self.una, self.nxt, now)

    def count_timeout(self) -> int:
        """The retransmission timer expired, whatever it guarded; returns how often in a row."""
        self.rto_deadline = self.probe_deadline = math.inf
        self.retries += 1
        self.timeouts += 1
        self.round_trip.backoff += 1
        return self.retries

    def count_probe(self) -> int:
        """It is time to ask for the peer's window again; returns how often in a row."""
        self.persist_deadline = math.inf
        self.persist_count += 1
        return self.persist_count

    def forget_probes(self) -> None:
        """The peer answers: it may keep its window closed for as long as it likes."""
        self.persist_count = 0

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

    def resend_head(self, now: float) -> bool:
        """The way may have lost what is out: ask with the oldest of it, as a timeout would, and blame no congestion.

        False where nothing is out, or it left so lately that its answer may be under way.
        """
        recovery = self.recovery
        spans = recovery.flight.spans
        if not spans or now - spans[0].sent_at < self.round_trip.smoothed:
            return False
        head = spans[0]
        recovery.flight.mark_lost_between(head.start, min(head.end, head.start + self.sizes.mss))
        recovery.allow_repair()
        self.round_trip.backoff = 0
        self.rto_deadline = now + self.round_trip.timeout
        return True

    def _arm_probe(self, now: float) -> None:
        recovery = self.recovery
        deadline = now + recovery.probe_timeout() if recovery.flight.spans and recovery.may_probe else math.inf
        self.probe_deadline = deadline if deadline < self.rto_deadline else math.inf

    def stamp(self, now: float) -> int:
        return int(now * 1000) + self._stamp_offset & MASK32

    def options(self, echo: int, now: float) -> bytes:
        return TIMESTAMP_PREFIX + STAMPS(self.stamp(now), echo) if self.stamped else b""
