"""One TCP connection: segment arrives, user calls, timers, emit, in the order of RFC 9293 section 3.10.

Owns the state machine, windows and acknowledgement policy. Sequence numbers are unwrapped ints. Loss recovery, buffers,
timing and header writing are its parts; sockets, ports and clocks are unknown to it. Receive works on runs of packets
and emit writes bursts: see bench/netstack.py for what a segment costs. RFC 9293, 7323, 2018, 5961, 9293 section 3.8.
"""

from __future__ import annotations

import enum
import math
import struct
from itertools import islice
from typing import Any, NamedTuple

from ts_netstack.ledger import Ledger
from ts_netstack.segments import SegmentWriter
from ts_netstack.tcp_buffers import SMALL_PIECE, SendBuffer
from ts_netstack.tcp_inbound import MAXIMUM_BUFFER, WINDOW_SHIFT, Inbound
from ts_netstack.tcp_pacing import Pacer
from ts_netstack.tcp_recovery import OPEN, RECOVERY, LossRecovery
from ts_netstack.tcp_timing import RoundTrip
from ts_netstack.wire import (
    ACK,
    FIN,
    MASK32,
    PSH,
    RST,
    STAMPS,
    SYN,
    TIMESTAMP_LENGTH,
    TIMESTAMP_PREFIX,
    URG,
    Address,
    Packet,
    Segment,
    Unroutable,
    is_transport_checksum_right,
    parse_packet_untrusted,
    parse_segment_untrusted,
    syn_options,
    unwrap,
)

CLOSED, SYN_SENT, SYN_RECEIVED, ESTABLISHED, FIN_WAIT_1 = 0, 1, 2, 3, 4
FIN_WAIT_2, CLOSE_WAIT, CLOSING, LAST_ACK, TIME_WAIT = 5, 6, 7, 8, 9
STATE_NAMES = (
    *("CLOSED", "SYN-SENT", "SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1"),
    *("FIN-WAIT-2", "CLOSE-WAIT", "CLOSING", "LAST-ACK", "TIME-WAIT"),
)
RECEIVING = (ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2)
SENDING = (ESTABLISHED, CLOSE_WAIT, FIN_WAIT_1, CLOSING, LAST_ACK)

INITIAL_SEND = 256 << 10
DEFAULT_MSS = (536, 1220)  # when the peer names none: IPv4, IPv6
MINIMUM_MSS = 48

SYN_RETRIES = 6
DATA_RETRIES = 15
ORPHAN_RETRIES = 8
CHALLENGE_INTERVAL = 0.5
STRANGE_ACK_INTERVAL = 0.1  # bare segments outside the window are answered no faster
MAXIMUM_PERSIST = 60.0
OVERRIDE = 0.2  # sender's silly-window override (RFC 9293 section 3.8.6.2.1)
FIN_WAIT_2_LINGER = 60.0
SMALL_RECORDS_LIMIT = 1024  # spans in flight beyond which only full segments leave

BLACK_HOLE_SIZES = (1024, 536)
BLACK_HOLE_TIMEOUTS = 2
BLACK_HOLE_FIRST_HOLD = 1.0
BLACK_HOLE_HOLD = 600.0
BLACK_HOLE_MEMORY = 60.0  # a second suspicion this soon is believed

# What header prediction reads, from the start of the IP packet: length, fragment field, sequence number,
# acknowledgement + offset + flags + window, option prefix, both timestamps.
_PREDICT4 = struct.Struct(">2xH2xH16xIQ4xIQ").unpack_from
_PREDICT6 = struct.Struct(">4xHH36xIQ4xIQ").unpack_from
_PREDICTED_MASK, _PREDICTED_BITS = 0xFFF70000, 0x80100000  # 8 words of header, ACK, PSH ignored
_PREDICTED_OPTION = int.from_bytes(TIMESTAMP_PREFIX, "big")


class ConnectionProblem(enum.Enum):
    """Why a connection ended otherwise than by two FINs."""

    REFUSED = "connection refused"
    RESET = "connection reset by peer"
    TIMED_OUT = "connection timed out"
    UNREACHABLE = "destination unreachable"
    ABORTED = "connection aborted"


class Handshake(NamedTuple):
    """What was agreed while opening, for a connection that begins established."""

    iss: int
    irs: int
    peer_mss: int | None
    peer_shift: int | None
    selective: bool
    stamp: int | None  # the peer's latest TSval, None without timestamps
    round_trip: float
    resent: bool


class TcpConnection:
    """`owner` is a slot for whoever holds the connection; the connection never looks at it."""

    __slots__ = (
        "__weakref__",
        "_answered_at",
        "_challenged_at",
        "_fin_queued",
        "_handshake_due",
        "_heard_at",
        "_hold_until",
        "_inbound",
        "_iss",
        "_keepalive",
        "_keepalive_due",
        "_keepalive_probes",
        "_largest_window",
        "_ledger",
        "_limited",
        "_linger_deadline",
        "_nodelay",
        "_nxt",
        "_orphaned",
        "_pacer",
        "_path_mss",
        "_peer_mss",
        "_peer_shift",
        "_persist_count",
        "_persist_deadline",
        "_probe_deadline",
        "_recovery",
        "_reset_seq",
        "_retries",
        "_rto_deadline",
        "_sent",
        "_sent_at",
        "_stamp_offset",
        "_suspected_at",
        "_una",
        "_wanted_room",
        "_window",
        "_wl1",
        "_wl2",
        "_writer",
        "error",
        "key",
        "local",
        "mss",
        "owner",
        "remote",
        "round_trip",
        "state",
    )

    def __init__(
        self, ledger: Ledger, key: bytes, local: Address, remote: Address, mss: int, iss: int, stamp_offset: int
    ) -> None:
        self._ledger = ledger
        self.key = key
        self.local, self.remote = local, remote
        self.owner: Any = None
        self.state = CLOSED
        self.error: ConnectionProblem | None = None
        self.round_trip = RoundTrip()
        # sending
        self._iss = iss
        self._una, self._nxt = iss, iss
        self._sent = SendBuffer(iss + 1)
        self._window = self._largest_window = 0
        self._wl1 = self._wl2 = 0
        self._peer_shift = 0
        self._path_mss = mss  # what the path carries, options included
        self._peer_mss = DEFAULT_MSS[len(local[0]) == 16]
        self.mss = mss
        self._recovery = LossRecovery(mss, self.round_trip, True)
        self._writer = SegmentWriter(local, remote)
        self._fin_queued = False
        self._nodelay = True
        self._wanted_room = False
        self._retries = 0
        self._handshake_due = False
        self._limited = False
        self._sent_at = -1.0
        self._suspected_at, self._hold_until = -math.inf, math.inf  # of a black hole
        self._pacer = Pacer()
        self._reset_seq: int | None = None
        # receiving
        self._inbound = Inbound(ledger)
        self._stamp_offset = stamp_offset
        self._challenged_at = self._answered_at = -math.inf
        self._orphaned = False
        self._heard_at = 0.0
        self._keepalive: tuple[float, float, int] | None = None
        self._keepalive_probes = 0
        self._keepalive_due = False
        # deadlines
        self._rto_deadline = self._probe_deadline = self._persist_deadline = math.inf
        self._linger_deadline = math.inf
        self._persist_count = 0

    # -- opening ---------------------------------------------------------------------------------------------------

    def open(self, now: float) -> None:
        """Active open: the SYN leaves with the next emit."""
        self.state = SYN_SENT
        self._nxt = self._iss + 1
        self._handshake_due = True
        self._heard_at = now
        self._ledger.dirty[self] = None

    def adopt(self, agreed: Handshake, window: int, now: float) -> None:
        """Begin established: a listener's handshake is complete."""
        self._una = self._nxt = self._iss + 1
        self._start_receiving(agreed.irs, now)
        self._agree(agreed.peer_mss, agreed.peer_shift, agreed.selective, agreed.stamp, now)
        if agreed.resent:
            self.round_trip.syn_was_lost()
        elif agreed.round_trip > 0:
            self.round_trip.sample(agreed.round_trip, now)
        self._window = self._largest_window = window << self._peer_shift
        self._wl1, self._wl2 = agreed.irs, self._una
        self.state = ESTABLISHED
        self._ledger.changed[self] = None

    def _start_receiving(self, irs: int, now: float) -> None:
        self._inbound.start(irs)
        self._heard_at = now

    def _agree(self, mss: int | None, shift: int | None, selective: bool, stamp: int | None, now: float) -> None:
        if mss is not None:
            self._peer_mss = max(mss, MINIMUM_MSS)
        self._peer_shift = shift or 0
        self._inbound.agree(selective, shift is not None, stamp, now)
        self._fit_segment_size()
        self._recovery = LossRecovery(self.mss, self.round_trip, selective)

    def _fit_segment_size(self) -> None:
        size = min(self._peer_mss, self._path_mss) - (TIMESTAMP_LENGTH if self._inbound.stamps else 0)
        # An even size keeps every payload of a burst aligned for the checksum.
        self.mss = max(size, MINIMUM_MSS - TIMESTAMP_LENGTH) & ~1
        self._recovery.set_segment_size(self.mss)

    # -- what the owner sees ---------------------------------------------------------------------------------------

    @property
    def readable(self) -> bool:
        return self._inbound.buffer.unread > 0 or self.at_eof or self.error is not None

    @property
    def at_eof(self) -> bool:
        """The peer's FIN came and everything before it was read."""
        return self._inbound.finished and not self._inbound.buffer.unread

    @property
    def writable(self) -> bool:
        return self.state in (ESTABLISHED, CLOSE_WAIT) and not self._fin_queued and self._room() > 0

    @property
    def is_established(self) -> bool:
        """The handshake is complete and the connection is not yet gone."""
        return self.state >= ESTABLISHED

    @property
    def unread(self) -> int:
        return self._inbound.buffer.unread

    @property
    def unsent(self) -> int:
        """Bytes written and not yet acknowledged."""
        return len(self._sent)

    def _room(self) -> int:
        limit = min(max(INITIAL_SEND, 2 * self._recovery.congestion.window), MAXIMUM_BUFFER)
        return limit - len(self._sent)

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes; b"" when there are none, which is the end of the stream only if `at_eof`."""
        if not self._inbound.buffer.unread:
            return b""
        data, reopened = self._inbound.read(limit, self.mss)
        if reopened:
            self._ledger.dirty[self] = None
        return data

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take as much of `data` as there is room for; 0 asks for patience until a message says writable."""
        if self._fin_queued:
            raise ValueError("write after the end of the stream was sent")
        if self.state not in (ESTABLISHED, CLOSE_WAIT):
            return 0
        room = self._room()
        if room <= 0:
            self._wanted_room = True
            return 0
        if len(data) > room:
            data = data[:room]
            self._wanted_room = True
        self._sent.append(data if type(data) is bytes else bytes(data))
        self._ledger.dirty[self] = None
        return len(data)

    def send_eof(self, now: float) -> None:
        """FIN behind everything written; reading goes on."""
        if self._fin_queued or self.state not in (ESTABLISHED, CLOSE_WAIT, SYN_RECEIVED):
            return
        self._fin_queued = True
        if self.state == ESTABLISHED:
            self.state = FIN_WAIT_1
        elif self.state == CLOSE_WAIT:
            self.state = LAST_ACK
        self._ledger.dirty[self] = None

    def close(self, now: float) -> None:
        """Let go of the connection: FIN, or RST when bytes were left unread (RFC 9293 section 3.10.4)."""
        self._orphaned = True
        if self.state == SYN_SENT:
            self._end(None)
        elif self._inbound.buffer.unread and not (self._inbound.finished and self._fin_queued):
            self.abort(now)
        else:
            self._inbound.buffer.read(self._inbound.buffer.unread)
            self.send_eof(now)
            if self.state == FIN_WAIT_2:
                self._linger_deadline = now + FIN_WAIT_2_LINGER
        self._ledger.dirty[self] = None

    def abort(self, now: float) -> None:
        """RST and forget."""
        if self.state in (CLOSED, TIME_WAIT):
            return
        if self.state != SYN_SENT:
            self._reset_seq = self._nxt
        self._end(ConnectionProblem.ABORTED)

    def set_nodelay(self, on: bool) -> None:
        """Off: small segments wait for what is in flight (Nagle, RFC 9293 section 3.7.4). On is the default."""
        self._nodelay = on
        self._ledger.dirty[self] = None

    def set_keepalive(self, idle: float | None, interval: float = 75.0, count: int = 9) -> None:
        """Probe a silent peer after `idle` seconds; None, the default, never asks."""
        self._keepalive = None if idle is None else (idle, interval, count)
        self._keepalive_probes = 0
        self._ledger.dirty[self] = None

    # -- segments arrive -------------------------------------------------------------------------------------------

    def receive_run(self, run: list[bytes], now: float) -> None:
        """Packets of this connection, in the order they came."""
        if self._ledger.verify:
            run = [packet for packet in run if self._is_intact(packet)]
        index, count = 0, len(run)
        self._ledger.dirty[self] = None
        self._heard_at = now
        while index < count:
            if self._is_predictable():
                index = self._receive_predicted(run, index, now)
                if index == count:
                    return
            try:
                packet = parse_packet_untrusted(run[index])
                if packet.fragment is not None:
                    self._ledger.strays.append(run[index])
                else:
                    self._receive_segment(packet, parse_segment_untrusted(packet.payload), now)
            except Unroutable as wrong:
                self._ledger.drops[wrong.reason] += 1
            index += 1

    def _is_intact(self, data: bytes) -> bool:
        try:
            packet = parse_packet_untrusted(data, True)
        except Unroutable as wrong:
            self._ledger.drops[wrong.reason] += 1
            return False
        if packet.fragment is not None or is_transport_checksum_right(packet):
            return True
        self._ledger.drops["tcp_checksum"] += 1
        return False

    def _is_predictable(self) -> bool:
        received = self._inbound.buffer
        return (
            self.state in RECEIVING
            and self._inbound.stamps
            and self._inbound.selective
            and not received.islands
            and self._inbound.fin_at < 0
            and not self._orphaned
            and received.next < self._inbound.edge
        )

    def _receive_predicted(self, run: list[bytes], index: int, now: float) -> int:
        """Take in-order data and plain ACKs from `run` until something needs thought; returns where that is.

        A run may overshoot the window: refusing within a run would cost a comparison per segment, and a run is bounded.
        """
        received = self._inbound.buffer
        if len(self.local[0]) == 4:
            unpack, payload_at, before, fragment_mask = _PREDICT4, 52, 0, 0x3FFF
        else:
            unpack, payload_at, before, fragment_mask = _PREDICT6, 72, 40, 0
        append = received.chunks.append
        expected = first = received.next & MASK32
        una, flying = self._una & MASK32, self._nxt - self._una
        stamp_recent = self._inbound.stamp_recent
        control = first_stamps = stamps = -1
        ack, window = una, -1
        segments = 0
        try:
            for packet in islice(run, index, None):
                length, fragment, seq, bits, option, pair = unpack(packet)
                if seq != expected or option != _PREDICTED_OPTION or fragment & fragment_mask:
                    break
                if bits != control:
                    candidate = bits >> 32
                    if bits & _PREDICTED_MASK != _PREDICTED_BITS or candidate - una & MASK32 > flying:
                        break
                    if candidate - ack & MASK32 < 0x80000000:
                        ack, window = candidate, bits & 0xFFFF
                    control = bits
                if pair != stamps:
                    if (pair >> 32) - stamp_recent & MASK32 >= 0x80000000:
                        break
                    stamps = pair
                end = length + before
                size = end - payload_at
                if size > 0:
                    if size < SMALL_PIECE or end > len(packet):
                        break
                    append(packet[payload_at:end])
                    expected = expected + size & MASK32
                    segments += 1
                elif size < 0:
                    break
                if first_stamps < 0:
                    first_stamps = pair
                index += 1
        except struct.error:  # too short to hold what prediction reads: the careful path says why
            pass
        if first_stamps >= 0:
            size = expected - first & MASK32
            seq = received.next
            received.next += size
            received.unread += size
            self._inbound.take_stamp(first_stamps >> 32, seq, now)
            if window >= 0:
                self._acknowledged(self._una + (ack - una & MASK32), window, seq, (), stamps & MASK32, bool(size), now)
            if size:
                self._inbound.took_data(segments, self.round_trip.smoothed, now)
                self._ledger.changed[self] = None
        return index

    def _receive_segment(self, packet: Packet, segment: Segment, now: float) -> None:
        if self.state == SYN_SENT:
            self._receive_in_syn_sent(segment, now)
        elif self.state != CLOSED:
            self._receive_synchronized(segment, now)
        else:
            self._ledger.drops["tcp_closed"] += 1

    def _receive_in_syn_sent(self, segment: Segment, now: float) -> None:
        """RFC 9293 section 3.10.7.3."""
        flags = segment.flags
        acceptable = False
        if flags & ACK:
            ack = unwrap(segment.ack, self._una)
            if ack != self._nxt:
                self._ledger.drops["tcp_handshake_ack"] += 1
                if not flags & RST:
                    self._reset_seq = ack
                return
            acceptable = True
        if flags & RST:
            if acceptable:
                self._end(ConnectionProblem.REFUSED)
            else:
                self._ledger.drops["tcp_blind_reset"] += 1
            return
        if not flags & SYN:
            self._ledger.drops["tcp_handshake_no_syn"] += 1
            return
        options = segment.options
        resent = self._retries > 0
        self._start_receiving(segment.seq, now)
        self._agree(
            options.mss,
            options.scale,
            options.sack_permitted,
            options.stamps[0] if options.stamps else None,
            now,
        )
        self._window = self._largest_window = segment.window  # never scaled in a SYN
        self._wl1, self._wl2 = segment.seq, segment.ack
        self._retries = self.round_trip.backoff = 0
        self._rto_deadline = math.inf
        if not acceptable:
            self.state = SYN_RECEIVED  # simultaneous open
            self._handshake_due = True
            return
        if resent:
            self.round_trip.syn_was_lost()
        elif self._sent_at >= 0:
            self.round_trip.sample(now - self._sent_at, now)
        self._una = self._wl2 = self._nxt
        self.state = ESTABLISHED
        self._inbound.ack_now = True
        self._ledger.changed[self] = None
        if segment.payload or flags & FIN:
            self._receive_text(self._inbound.buffer.next, segment, now)

    def _receive_synchronized(self, segment: Segment, now: float) -> None:
        """RFC 9293 section 3.10.7.4, in its order; RFC 5961 for the challenges."""
        drops = self._ledger.drops
        expected = self._inbound.expected
        seq = unwrap(segment.seq, expected)
        if self.state == SYN_RECEIVED and segment.flags & (SYN | ACK) == SYN | ACK and seq == expected - 1:
            # Simultaneous open (RFC 9293 figure 8): its SYN we know, its ACK is what we wait for.
            segment, seq = segment._replace(flags=segment.flags & ~SYN, seq=expected & MASK32), expected
        flags = segment.flags
        stamps = segment.options.stamps
        if (
            self._inbound.stamps
            and stamps is not None
            and not flags & RST
            and self._inbound.is_stale(stamps[0], segment, now)
        ):
            drops["tcp_paws"] += 1
            self._answer_strange(segment, now)
            return
        length = len(segment.payload) + bool(flags & FIN) + bool(flags & SYN)
        if not self._inbound.is_acceptable(seq, length):
            self._receive_unacceptable(seq, segment, now)
            return
        if self._inbound.stamps and stamps is not None:
            self._inbound.take_stamp(stamps[0], seq, now)
        if flags & RST:
            if seq == expected:
                self._reset_by_peer()
            else:
                drops["tcp_reset_in_window"] += 1
                self._challenge(now)
            return
        if flags & SYN:
            drops["tcp_syn_in_window"] += 1
            self._challenge(now)
            return
        if not flags & ACK:
            drops["tcp_no_ack"] += 1
            return
        ack = unwrap(segment.ack, self._una)
        if self.state == SYN_RECEIVED and not self._leave_syn_received(ack, segment):
            return
        if not self._una - self._largest_window - 1 <= ack <= self._nxt:
            drops["tcp_wild_ack"] += 1
            self._challenge(now)
            return
        echo = stamps[1] if stamps is not None and self._inbound.stamps else None
        self._acknowledged(ack, segment.window, seq, segment.options.blocks, echo, length > 0, now)
        if flags & URG:
            drops["tcp_urgent"] += 1  # a note, not a drop: the bytes are delivered in line
        if self.state != CLOSED and length:
            self._receive_text(seq, segment, now)

    def _receive_unacceptable(self, seq: int, segment: Segment, now: float) -> None:
        flags, payload = segment.flags, segment.payload
        drops = self._ledger.drops
        if flags & RST:
            drops["tcp_reset_out_of_window"] += 1
            return
        if seq < self._inbound.expected:
            drops["tcp_duplicate"] += 1
            if payload and self._inbound.selective:
                self._inbound.dsack = (seq, min(seq + len(payload), self._inbound.expected))
        else:
            drops["tcp_out_of_window"] += 1
        # A window probe or a keep-alive carries a fresh acknowledgement all the same.
        if flags & ACK and not flags & SYN and self.state > SYN_RECEIVED:
            ack = unwrap(segment.ack, self._una)
            if self._una <= ack <= self._nxt:
                stamps = segment.options.stamps
                echo = stamps[1] if stamps is not None and self._inbound.stamps else None
                # Not a window update unless it is the newest word (SND.WL1): `seq` says so.
                self._acknowledged(ack, segment.window, seq, segment.options.blocks, echo, True, now)
        self._answer_strange(segment, now)

    def _answer_strange(self, segment: Segment, now: float) -> None:
        """An ACK for a segment we had no use for; those that carry data always get one."""
        if segment.payload or segment.flags & FIN:
            self._inbound.ack_now = True
        elif now - self._answered_at >= STRANGE_ACK_INTERVAL:
            self._answered_at = now
            self._inbound.ack_now = True

    def _challenge(self, now: float) -> None:
        """RFC 5961: say where we are, so that an honest peer can correct itself and a blind one learns nothing."""
        if now - self._challenged_at < CHALLENGE_INTERVAL or not self._ledger.challenges.admits(now):
            self._ledger.drops["tcp_challenge_limit"] += 1
            return
        self._challenged_at = now
        self._inbound.ack_now = True

    def _reset_by_peer(self) -> None:
        if self.state == TIME_WAIT:
            self._ledger.drops["tcp_reset_in_time_wait"] += 1  # RFC 1337
        elif self.state == SYN_RECEIVED:
            self._end(ConnectionProblem.REFUSED)
        elif self.state in (CLOSING, LAST_ACK):
            self._end(None)
        else:
            self._end(ConnectionProblem.RESET)

    def _leave_syn_received(self, ack: int, segment: Segment) -> bool:
        if ack != self._iss + 1:
            self._ledger.drops["tcp_handshake_ack"] += 1
            self._reset_seq = ack
            return False
        self._una = ack
        self._rto_deadline = math.inf
        self._retries = self.round_trip.backoff = 0
        self._handshake_due = False
        self._wl1 = self._wl2 = -1 << 62
        self.state = FIN_WAIT_1 if self._fin_queued else ESTABLISHED
        self._ledger.changed[self] = None
        return True

    # -- acknowledgements of what we sent --------------------------------------------------------------------------

    def _acknowledged(
        self,
        ack: int,
        window: int,
        seq: int,
        blocks: tuple[tuple[int, int], ...],
        echo: int | None,
        carries: bool,
        now: float,
    ) -> None:
        """SEG.ACK is credible; `carries` says the segment had data and so is no duplicate ACK."""
        una, recovery = self._una, self._recovery
        scaled = window << self._peer_shift
        changed_window = False
        if ack >= una and (seq > self._wl1 or (seq == self._wl1 and ack >= self._wl2)):
            changed_window = scaled != self._window
            self._window, self._wl1, self._wl2 = scaled, seq, ack
            self._largest_window = max(self._largest_window, scaled)
            if changed_window and self._persist_deadline < math.inf:
                self._persist_deadline = math.inf
        self._persist_count = 0 if not self._orphaned else self._persist_count
        self._keepalive_probes = 0
        if not scaled:
            self._retries = 0  # a peer that closes its window and says so is alive (RFC 9293 section 3.8.6.1)
        if ack < una:
            return
        if ack == una and not blocks:
            if not self._inbound.selective and not carries and not changed_window and recovery.flight.spans:
                recovery.on_duplicate_ack(self._nxt)
            return
        dsack = None
        if blocks:
            blocks = tuple((unwrap(start, una), unwrap(end, una)) for start, end in blocks)
            dsack, blocks = self._judge_blocks(ack, blocks)
        echo_ms = None if echo is None else self._echo_ms(echo, now)
        was_recovering = recovery.mode == RECOVERY
        delivered, rtt = recovery.on_ack(ack, self._nxt, blocks, dsack, echo_ms, now)
        if rtt > 0:
            self.round_trip.sample(rtt, now)
        elif echo_ms is not None and ack > una and recovery.mode == OPEN:
            self.round_trip.sample(max(now - echo_ms / 1000, 0.001), now)
        if ack > una:
            self._una = ack
            self._sent.release(ack)
            self._retries = self.round_trip.backoff = 0
            self._rto_deadline = now + self.round_trip.timeout if recovery.flight.spans else math.inf
            self._arm_probe(now)
            self._wake_writer()
            if self._fin_queued and ack > self._sent.end:
                self._fin_acknowledged(now)
        if delivered and self._limited and not was_recovering and recovery.mode != RECOVERY:
            recovery.congestion.on_acknowledged(delivered, ack, self._nxt, rtt, self.round_trip.smoothed, now)

    def _judge_blocks(
        self, ack: int, blocks: tuple[tuple[int, int], ...]
    ) -> tuple[tuple[int, int] | None, tuple[tuple[int, int], ...]]:
        """Tell a report of a duplicate (RFC 2883) from news; blocks that cannot be are ignored."""
        first = blocks[0]
        dsack = None
        if first[0] < first[1] and (
            first[1] <= ack or (len(blocks) > 1 and blocks[1][0] <= first[0] and first[1] <= blocks[1][1])
        ):
            dsack = first
            blocks = blocks[1:]
        if dsack is not None and (dsack[1] - dsack[0] > self._largest_window or dsack[0] < ack - 2 * MAXIMUM_BUFFER):
            dsack = None
        good = tuple(block for block in blocks if ack < block[0] < block[1] <= self._nxt)
        if len(good) != len(blocks):
            self._ledger.drops["tcp_wild_sack"] += 1
        return dsack, good

    def _echo_ms(self, echo: int, now: float) -> int | None:
        """TSecr as milliseconds of our own clock; None when it cannot be ours."""
        current = int(now * 1000)
        stamp = unwrap(echo - self._stamp_offset, current)
        return stamp if stamp <= current and current - stamp < 600_000 else None

    def _wake_writer(self) -> None:
        if self._wanted_room and self._room() * 2 >= self._room() + len(self._sent):
            self._wanted_room = False
            self._ledger.changed[self] = None

    def _fin_acknowledged(self, now: float) -> None:
        if self.state == FIN_WAIT_1:
            self.state = FIN_WAIT_2
            if self._orphaned:
                self._linger_deadline = now + FIN_WAIT_2_LINGER
        elif self.state == CLOSING:
            self._enter_time_wait()
        elif self.state == LAST_ACK:
            self._end(None)

    # -- data that arrives -----------------------------------------------------------------------------------------

    def _receive_text(self, seq: int, segment: Segment, now: float) -> None:
        """Sections "seventh" and "eighth" of RFC 9293 section 3.10.7.4: text, then FIN."""
        received, payload = self._inbound.buffer, segment.payload
        end = seq + len(payload)
        if self.state not in RECEIVING:
            if end + bool(segment.flags & FIN) > self._inbound.expected:
                self._ledger.drops["tcp_after_fin"] += 1
            self._inbound.ack_now = True
            return
        if payload and self._orphaned and end > received.next:
            # Nobody will ever read this: RFC 9293 section 3.6.1 wants the peer to know.
            self._ledger.drops["tcp_reader_gone"] += 1
            self._reset_seq = self._nxt
            self._end(None)
            return
        if segment.flags & FIN and end <= self._inbound.edge:
            self._inbound.fin_at = end
        if payload:
            before = received.next
            self._inbound.place(seq, payload[: self._inbound.edge - seq], self.round_trip.smoothed, now)
            if received.next != before:
                self._ledger.changed[self] = None
        if self._inbound.fin_at >= 0 and received.next >= self._inbound.fin_at:
            self._take_fin(now)
        elif segment.flags & FIN:
            self._inbound.ack_now = True

    def _take_fin(self, now: float) -> None:
        self._inbound.finished = True
        self._inbound.buffer.islands.clear()
        self._inbound.fin_at = -1
        self._inbound.ack_now = True
        self._ledger.changed[self] = None
        if self.state == ESTABLISHED:
            self.state = CLOSE_WAIT
        elif self.state == FIN_WAIT_1:
            self.state = CLOSING
        elif self.state == FIN_WAIT_2:
            self._enter_time_wait()

    # -- endings ---------------------------------------------------------------------------------------------------

    def _enter_time_wait(self) -> None:
        """The stack keeps a tiny record from here on, after the last ACK has left."""
        self.state = TIME_WAIT
        self._stop_timers()
        self._inbound.give_back()
        self._ledger.changed[self] = None
        self._ledger.finished[self] = None

    def _end(self, problem: ConnectionProblem | None) -> None:
        self.state = CLOSED
        self.error = self.error or problem
        self._stop_timers()
        self._inbound.give_back()
        if problem is not None:
            self._inbound.buffer.chunks.clear()
            self._inbound.buffer.unread = 0
        self._inbound.buffer.islands.clear()
        self._sent.release(self._sent.end)
        self._inbound.ack_now = False
        self._ledger.changed[self] = None
        self._ledger.finished[self] = None
        self._ledger.dirty[self] = None

    def _stop_timers(self) -> None:
        self._rto_deadline = self._probe_deadline = self._persist_deadline = math.inf
        self._inbound.ack_deadline = self._pacer.deadline = self._linger_deadline = math.inf
        self._recovery.reorder_deadline = math.inf
        self._keepalive = None

    def last_numbers(self) -> tuple[int, int, int | None]:
        """What a TIME-WAIT record keeps: SND.NXT, RCV.NXT and the newest stamp of the peer."""
        return self._nxt, self._inbound.expected, self._inbound.stamp_recent if self._inbound.stamps else None

    def fail(self, problem: ConnectionProblem) -> None:
        """Somebody else knows that this connection cannot go on: an address lost, a route refused."""
        if self.state != CLOSED:
            self._end(problem)

    # -- news from ICMP --------------------------------------------------------------------------------------------

    def on_unreachable(self, seq: int) -> None:
        """Hard only while opening (RFC 5461); `seq` is the sequence number the report quotes."""
        if self.state == SYN_SENT and unwrap(seq, self._iss) == self._iss:
            self._end(ConnectionProblem.UNREACHABLE)

    def on_packet_too_big(self, mss: int, seq: int) -> bool:
        """The path carries segments of at most `mss`. False when the quoted sequence number is not in flight."""
        if not self._una <= unwrap(seq, self._una) < self._nxt or self.state < ESTABLISHED:
            return False
        self.limit_segment_size(mss)
        return True

    def limit_segment_size(self, mss: int) -> None:
        """Cut smaller from now on, and send again what was too large; nobody was congested."""
        if mss >= self._path_mss:
            return
        before = self.mss
        self._path_mss = mss
        self._fit_segment_size()
        if self._recovery.flight.spans and self.mss < before:
            self._recovery.flight.mark_all_lost()
        self._ledger.dirty[self] = None

    def widen_segment_size(self, mss: int) -> None:
        """The path changed or a limit has expired: try `mss` again."""
        if mss > self._path_mss:
            self._path_mss = mss
            self._fit_segment_size()

    # -- timers ----------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """The earliest moment this connection needs `handle_timer`."""
        deadline = min(
            self._rto_deadline,
            self._probe_deadline,
            self._persist_deadline,
            self._inbound.ack_deadline,
            self._pacer.deadline,
            self._linger_deadline,
            self._recovery.reorder_deadline,
        )
        if self._keepalive is not None and self.state >= ESTABLISHED:
            deadline = min(deadline, self._keepalive_deadline())
        return deadline

    def _keepalive_deadline(self) -> float:
        assert self._keepalive is not None
        idle, interval, _ = self._keepalive
        return self._heard_at + idle + interval * self._keepalive_probes

    def handle_timer(self, now: float) -> None:
        self._ledger.dirty[self] = None
        if self._inbound.ack_deadline <= now:
            self._inbound.ack_now = True
            self._inbound.ack_deadline = math.inf
        if self._pacer.deadline <= now:
            self._pacer.deadline = math.inf
        if self._recovery.reorder_deadline <= now:
            self._recovery.on_reorder_timer(self._una, self._nxt, now)
        if self._rto_deadline <= now:
            self._on_retransmission_timeout(now)
        elif self._probe_deadline <= now:
            self._probe_tail(now)
        if self._persist_deadline <= now:
            self._on_persist_timeout(now)
        if self._linger_deadline <= now:
            self._end(None)
        if self._keepalive is not None and self.state >= ESTABLISHED and self._keepalive_deadline() <= now:
            self._on_keepalive(now)

    def _on_retransmission_timeout(self, now: float) -> None:
        self._rto_deadline = self._probe_deadline = math.inf
        self._retries += 1
        self.round_trip.backoff += 1
        if self.state in (SYN_SENT, SYN_RECEIVED):
            if self._retries > SYN_RETRIES:
                self._end(ConnectionProblem.TIMED_OUT)
            self._handshake_due = True
            return
        if self._retries > (ORPHAN_RETRIES if self._orphaned else DATA_RETRIES):
            self._reset_seq = self._nxt
            self._end(ConnectionProblem.TIMED_OUT)
            return
        if not self._recovery.flight.spans:
            return
        if self._retries % BLACK_HOLE_TIMEOUTS == 0:
            self._suspect_black_hole(now)
        self._recovery.on_timeout(self._nxt)

    def _suspect_black_hole(self, now: float) -> None:
        """RFC 4821 section 7.7: full segments vanish without a word, so try smaller ones; a plain outage heals soon."""
        for size in BLACK_HOLE_SIZES:
            if self.mss > size:
                again = now - self._suspected_at < BLACK_HOLE_MEMORY
                self._suspected_at = now
                self._hold_until = now + (BLACK_HOLE_HOLD if again else BLACK_HOLE_FIRST_HOLD)
                self.mss = size
                self._recovery.set_segment_size(size)
                return

    def _probe_tail(self, now: float) -> None:
        """RFC 8985 section 7.3: new data if there is any, else the last segment again."""
        self._probe_deadline = math.inf
        flight = self._recovery.flight
        if not flight.spans or not self._recovery.may_probe:
            return
        pending = self._sent.end - self._nxt
        if pending > 0 and self._una + self._window >= self._nxt + min(pending, self.mss):
            end = self._nxt + min(pending, self.mss)
            self._recovery.on_probe_sent(end, False)
            self._recovery.congestion.window = max(
                self._recovery.congestion.window, flight.pipe + min(pending, self.mss)
            )
            return
        last = flight.spans[-1]
        flight.mark_lost_between(max(last.start, last.end - self.mss), last.end)
        self._recovery.on_probe_sent(last.end, True)

    def _arm_probe(self, now: float) -> None:
        recovery = self._recovery
        if recovery.flight.spans and recovery.may_probe:
            deadline = now + recovery.probe_timeout()
            self._probe_deadline = deadline if deadline < self._rto_deadline else math.inf
        else:
            self._probe_deadline = math.inf

    def _on_persist_timeout(self, now: float) -> None:
        self._persist_deadline = math.inf
        self._persist_count += 1
        if self._persist_count > (ORPHAN_RETRIES if self._orphaned else DATA_RETRIES):
            self._reset_seq = self._nxt
            self._end(ConnectionProblem.TIMED_OUT)

    def _on_keepalive(self, now: float) -> None:
        assert self._keepalive is not None
        self._keepalive_probes += 1
        self._keepalive_due = True
        if self._keepalive_probes > self._keepalive[2]:
            self._reset_seq = self._nxt
            self._end(ConnectionProblem.TIMED_OUT)

    # -- emit ------------------------------------------------------------------------------------------------------

    def emit(self, now: float) -> list[bytes]:
        """Everything this connection has to say now."""
        out: list[bytes] = []
        if self._reset_seq is not None:
            self._emit_reset(out)
        if self.state == CLOSED:
            return out
        if self.state in (SYN_SENT, SYN_RECEIVED):
            if self._handshake_due:
                self._emit_handshake(out, now)
            return out
        if self.state in SENDING:
            self._emit_data(out, now)
        if self._keepalive_due:
            self._keepalive_due = False
            if not self._recovery.flight.spans:  # else retransmission asks the same question
                window, options = self._inbound.advertise(self.mss), self._options(now)
                out.append(self._writer.single(self._nxt - 1, self._inbound.expected, ACK, window, options))
        if self._inbound.ack_now:
            self._emit_acks(out, now)
        return out

    def _emit_reset(self, out: list[bytes]) -> None:
        assert self._reset_seq is not None
        stamped = self.state == CLOSED and self._inbound.buffer.next
        flags = RST | ACK if stamped else RST
        out.append(self._writer.single(self._reset_seq, self._inbound.expected if stamped else 0, flags, 0))
        self._reset_seq = None

    def _emit_handshake(self, out: list[bytes], now: float) -> None:
        self._handshake_due = False
        flags, ack, stamp_echo = SYN, 0, 0
        if self.state == SYN_RECEIVED:
            flags, ack, stamp_echo = SYN | ACK, self._inbound.buffer.next, self._inbound.stamp_recent
        stamp = self._stamp(now) if self._inbound.stamps else None
        shift = WINDOW_SHIFT if self._inbound.scaling else None
        options = syn_options(self._path_mss, shift, self._inbound.selective, stamp, stamp_echo)
        out.append(self._writer.single(self._iss, ack, flags, 65535, options))
        self._sent_at = now
        self._rto_deadline = now + self.round_trip.timeout

    def _stamp(self, now: float) -> int:
        return int(now * 1000) + self._stamp_offset & MASK32

    def _options(self, now: float) -> bytes:
        return TIMESTAMP_PREFIX + STAMPS(self._stamp(now), self._inbound.stamp_recent) if self._inbound.stamps else b""

    def _emit_data(self, out: list[bytes], now: float) -> None:
        sent, recovery = self._sent, self._recovery
        unsent = sent.end - self._nxt
        if unsent <= 0 and not recovery.flight.lost and not (self._fin_queued and self._nxt == sent.end):
            return
        if self._hold_until <= now and recovery.mode == OPEN:
            self._hold_until = math.inf
            self._fit_segment_size()
        self._before_sending(now)
        allowance = self._pacer.allowance(recovery.congestion, self.round_trip.smoothed, now)
        window, options = self._inbound.advertise(self.mss), self._options(now)
        left = allowance
        if recovery.flight.lost:
            left = self._emit_lost(out, left, window, options, now)
        if not recovery.flight.lost:
            left = self._emit_new(out, left, window, options, now)
        if out:
            self._pacer.spend(allowance - left)
            self._sent_at = now
            self._inbound.ack_sent()
            if self._rto_deadline == math.inf and recovery.flight.spans:
                self._rto_deadline = now + self.round_trip.timeout
            if self._probe_deadline == math.inf or recovery.mode == OPEN:
                self._arm_probe(now)

    def _before_sending(self, now: float) -> None:
        """Idle time must not count for growth, nor leave a stale window behind."""
        if self._recovery.flight.spans or self._sent_at < 0:
            return
        idle = now - self._sent_at
        if idle > self.round_trip.timeout:
            self._recovery.congestion.on_idle()
        elif idle > 0:
            self._recovery.congestion.on_limited_by_application(idle)

    def _emit_lost(self, out: list[bytes], left: int, window: int, options: bytes, now: float) -> int:
        """Repair first; returns the pacing allowance that remains."""
        recovery = self._recovery
        mss = self.mss
        while (span := recovery.flight.first_lost()) is not None:
            quota = recovery.quota()
            size = span.end - span.start
            if quota < min(size, mss):
                break
            if left < min(size, mss):
                self._pacer.wait_for(left + mss, self._recovery.congestion, self.round_trip.smoothed, now)
                break
            start = span.start
            end = min(span.end, start + max(min(quota, left) // mss, 1) * mss)
            self._emit_range(out, start, end, window, options)
            recovery.on_resent(start, end, now)
            left -= end - start
            if start == self._una:
                self._rto_deadline = now + self.round_trip.timeout
        return left

    def _emit_new(self, out: list[bytes], left: int, window: int, options: bytes, now: float) -> int:
        recovery, sent, mss = self._recovery, self._sent, self.mss
        nxt = self._nxt
        available = max(sent.end - nxt, 0)
        usable = self._una + self._window - nxt
        quota = recovery.quota()
        size = min(available, usable, quota, left)
        if size < available or size % mss:
            size = self._avoid_silliness(size, available, usable, quota, left, now)
        end = nxt + max(size, 0)
        fin = self._fin_queued and end == sent.end and nxt <= sent.end and (size > 0 or usable > 0 or self._window == 0)
        if end == nxt and not fin:
            self._maybe_persist(out, available, usable, window, options, now)
            return left
        end += fin
        self._nxt = end
        self._emit_range(out, nxt, end, window, options)
        recovery.on_sent(nxt, end, now)
        # Growth is earned by using the window: all of it, or half of it in slow start (RFC 9438 section 5.8).
        self._limited = quota - size < mss or 2 * recovery.flight.pipe >= recovery.congestion.window
        return left - (end - nxt)

    def _avoid_silliness(self, size: int, available: int, usable: int, quota: int, left: int, now: float) -> int:
        """RFC 9293 section 3.8.6.2.1: whole segments, or everything there is, or half of the largest window."""
        mss = self.mss
        whole = size // mss * mss
        if size == available:
            may_be_small = self._nodelay or not self._recovery.flight.spans or self._fin_queued
            if may_be_small and len(self._recovery.flight.spans) < SMALL_RECORDS_LIMIT:
                return size
        elif size == usable and not whole and size > 0 and (2 * size >= self._largest_window or self._persist_count):
            return size
        if left < min(available, usable, quota, mss) or (size == left and whole < min(available, usable, quota)):
            self._pacer.wait_for(left + mss, self._recovery.congestion, self.round_trip.smoothed, now)
        if size >= quota:
            self._limited = True
        return whole

    def _maybe_persist(
        self, out: list[bytes], available: int, usable: int, window: int, options: bytes, now: float
    ) -> None:
        """The peer's window is what stops us and nothing in flight will tell when it opens: ask, ever more rarely."""
        waiting = available or (self._fin_queued and self._nxt == self._sent.end)
        if not waiting or self._recovery.flight.spans or usable >= min(available, self.mss):
            return
        if self._persist_deadline < math.inf:
            return
        if self._persist_count:
            # Zero bytes below SND.UNA: unacceptable to everybody, so everybody answers with the window.
            out.append(self._writer.single(self._una - 1, self._inbound.expected, ACK, window, options))
        delay = OVERRIDE if usable > 0 else self.round_trip.timeout
        self._persist_deadline = now + min(delay * (1 << min(self._persist_count, 12)), MAXIMUM_PERSIST)

    def _emit_range(self, out: list[bytes], start: int, end: int, window: int, options: bytes) -> None:
        """Segments for [start, end) of what was written, the FIN included when `end` passes it."""
        sent, writer, ack = self._sent, self._writer, self._inbound.expected
        data_end = min(end, sent.end)
        pieces = sent.pieces(start, data_end, self.mss) if data_end > start else [b""]
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

    def _emit_acks(self, out: list[bytes], now: float) -> None:
        """One ACK for a burst; more where a burst made more holes than one ACK can name."""
        window, options = self._inbound.advertise(self.mss), self._options(now)
        owed = self._inbound.segments_owed if not self._inbound.selective and self._inbound.buffer.islands else 1
        for blocks in self._inbound.sack_options(3 if self._inbound.stamps else 4):
            packet = self._writer.single(self._nxt, self._inbound.expected, ACK, window, options + blocks)
            out += [packet] * max(owed, 1)
        self._inbound.all_said()

    def __repr__(self) -> str:
        return f"TcpConnection({self.local[1]} -> {self.remote[1]}, {STATE_NAMES[self.state]})"
