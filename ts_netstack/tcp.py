"""One TCP connection: the user calls, segments arrive, timers expire, all of it leaves: RFC 9293 section 3.10.

Owns the state machine and the checks every segment must pass; its two halves, Inbound and Outbound, own the numbers.
Sockets, ports and clocks are unknown to it. Receive works on runs of packets and emit writes bursts: bench/netstack.py
shows what a segment costs. RFC 9293, 5961, 7323.
"""

# How this file reads
#
#       the user calls       segments arrive       timers expire          the stack collects
#             |                     |                    |                        ^
#   .---------v---------------------v--------------------v------------------------|---------.
#   | TcpConnection      state, the checks of section 3.10.7, endings, keep-alive | emit    |
#   |                                                                                       |
#   |   Inbound    RCV.NXT, window offered      Outbound   what leaves now                  |
#   |     ReceiveBuffer                           SendSequence  SND.UNA .. SND.NXT, timers  |
#   |                                               SendBuffer, RoundTrip, SegmentSizes     |
#   |                                               LossRecovery: Flight, Congestion        |
#   |                                               Pacer, SegmentWriter                    |
#   '---------------------------------------------------------------------------------------'
#
# From top to bottom it is section 3.10 of RFC 9293: what the user may call (3.10.1 to 3.10.6), a segment that arrives
# (3.10.7), endings, timers (3.10.8), and last what is sent. LISTEN and a passive open's SYN-RECEIVED are in
# tcp_listen; a connection comes from there established. TIME-WAIT is entered here, and once its last ACK has left,
# the stack keeps a record of a few numbers in its place (tcp_demux).
#
# Three laws hold it together.
#
# The state changes in `_enter` alone, along the steps of tcp_states. The halves know no states: each verb of theirs
# means the same in all of them, and which are called when is decided here. In turn this file reads the numbers of its
# halves and writes none; the one exception is header prediction, which puts payloads into the receive buffer before
# the half counts them.
#
# Nothing is sent where it is decided. Whoever decides leaves a note (`owe_ack`, `_reset_seq`, `_handshake_due`,
# `_keepalive_due`, bytes in a buffer, a piece marked lost) and puts the connection among the dirty ones of its
# ledger. The stack then asks each dirty one once to `emit`. So a burst of sixty segments costs one ACK, and an ACK
# that is owed travels with data if there is any.
#
# There are two ways in. A run of packets first meets header prediction, which takes data in order and plain ACKs at a
# few operations each and does the rest once for the run. What it does not understand goes the careful way, section
# 3.10.7 in its order, packet by packet. Prediction never decides what the careful way would decide otherwise: in
# doubt it stops. It applies only where there is nothing to think about: text may come, SACK and timestamps were
# agreed, no hole, no FIN, a reader.
#
# Sequence numbers are unwrapped: they begin at the initial one and grow for ever, so that they compare as numbers do.
# They are cut to 32 bits where they are written, and a number read from a segment is the nearest to one we know
# (`unwrap`).

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from ts_base.ip_headers import ACK, FIN, RST, SYN, URG
from ts_base.who import LaneOffer, Lanes, PeerId
from ts_netstack import tcp_drops
from ts_netstack.ledger import Ledger, Socket
from ts_netstack.tcp_buffers import MERGED_PIECE, SMALL_PIECE
from ts_netstack.tcp_inbound import WINDOW_SHIFT, Inbound
from ts_netstack.tcp_outbound import Head, Outbound
from ts_netstack.tcp_states import (
    CLOSE_WAIT,
    CLOSED,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT_1,
    FIN_WAIT_2,
    LAST_ACK,
    RECEIVING,
    SENDING,
    STEPS,
    SYN_RECEIVED,
    SYN_SENT,
    TIME_WAIT,
    WRITABLE,
    Handshake,
    State,
)
from ts_netstack.tcp_statistics import TcpStatistics
from ts_netstack.tcp_striping import StripedOutbound
from ts_netstack.wire import (
    MASK32,
    TIMESTAMP_PREFIX,
    Address,
    Packet,
    Segment,
    Sizes,
    Unroutable,
    is_transport_checksum_right,
    parse_packet_untrusted,
    parse_segment_untrusted,
    syn_options,
    unwrap,
)

SYN_RETRIES = 6
DATA_RETRIES = 15
ORPHAN_RETRIES = 8
CHALLENGE_INTERVAL = 0.5
STRANGE_ACK_INTERVAL = 0.1  # bare segments outside the window are answered no faster
FIN_WAIT_2_LINGER = 60.0
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
    NO_ROUTE = "no route to destination"
    ABORTED = "connection aborted"


class Keepalive(NamedTuple):
    """When a silent peer is asked whether it is there: seconds, seconds, how often."""

    idle: float
    interval: float
    probes: int


SMALL_STREAM = 64 << 10  # bytes unsent or unacknowledged up to which dividing a stream gains nothing
HEARD_LATELY = 2.0  # a connection that was silent for longer waits for nothing that a lost way could bring


class TcpConnection(Socket):
    """`via` is the peer through which it was opened, 0 for whoever routes `remote`; `hop` is both of them."""

    __slots__ = (
        "__weakref__",
        "_answered_at",
        "_challenged_at",
        "_handshake_due",
        "_heard_at",
        "_inbound",
        "_keepalive",
        "_keepalive_due",
        "_keepalive_probes",
        "_ledger",
        "_linger_deadline",
        "_orphaned",
        "_outbound",
        "_reset_seq",
        "error",
        "hop",
        "key",
        "local",
        "remote",
        "state",
        "via",
    )

    def __init__(
        self,
        ledger: Ledger,
        key: bytes,
        local: Address,
        remote: Address,
        sizes: Sizes,
        iss: int,
        stamp_offset: int,
        via: PeerId = 0,
    ) -> None:
        super().__init__()
        self._ledger = ledger
        self.key = key
        self.local, self.remote = local, remote
        self.via, self.hop = via, (remote[0], via)
        self.state: State = CLOSED
        self.error: ConnectionProblem | None = None
        self._outbound = Outbound(ledger, local, remote, sizes, iss, stamp_offset)
        self._inbound = Inbound(ledger)
        self._handshake_due = False
        self._reset_seq: int | None = None
        self._challenged_at = self._answered_at = -math.inf
        self._orphaned = False
        self._heard_at = 0.0
        self._keepalive: Keepalive | None = None
        self._keepalive_probes = 0
        self._keepalive_due = False
        self._linger_deadline = math.inf

    def _enter(self, state: State) -> None:
        """The one place where the state changes; tcp_states has the steps that are allowed, and why."""
        assert state in STEPS[self.state], f"{self.state} to {state} is no step of RFC 9293 figure 5"
        self.state = state

    # -- opening ---------------------------------------------------------------------------------------------------

    def open(self, now: float) -> None:
        """Active open: the SYN leaves with the next emit."""
        self._enter(SYN_SENT)
        self._outbound.start()
        self._handshake_due = True
        self._heard_at = now
        self._ledger.dirty[self] = None

    def adopt(self, agreed: Handshake, window: int, now: float) -> None:
        """Begin established: a listener's handshake is complete."""
        self._heard_at = now
        self._inbound.heard_syn(agreed, now)
        self._outbound.adopt(agreed, window, now)
        self._enter(ESTABLISHED)
        self._ledger.changed[self] = None

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
        """Room for a write; after one was cut short, once there is enough of it to be told of."""
        outbound = self._outbound
        return self.state in WRITABLE and not outbound.fin_queued and not outbound.wanted_room and outbound.room() > 0

    @property
    def is_established(self) -> bool:
        """The handshake is complete and the connection is not yet gone."""
        return self.state >= ESTABLISHED

    @property
    def mss(self) -> int:
        """Payload bytes of a full segment we send."""
        return self._outbound.sizes.mss

    @property
    def has_bulk(self) -> bool:
        """More than a segment waits or flies, and the peer takes large ones: how large is worth asking."""
        return self._outbound.sizes.peer_large > 0 and len(self._outbound.buffer) > self._outbound.sizes.mss

    @property
    def is_worth_dividing(self) -> bool:
        """More waits or flies than one lane should carry alone, or several carry it already."""
        return len(self._outbound.buffer) > SMALL_STREAM or isinstance(self._outbound, StripedOutbound)

    @property
    def round_trip(self) -> float:
        """Smoothed round trip in seconds; 0.0 before the first sample."""
        return self._outbound.round_trip.smoothed

    @property
    def unread(self) -> int:
        return self._inbound.buffer.unread

    @property
    def unsent(self) -> int:
        """Bytes written and not yet acknowledged."""
        return len(self._outbound.buffer)

    @property
    def carried(self) -> tuple[int, int]:
        """Payload bytes received in order, and of those we sent the acknowledged ones; both without SYN and FIN."""
        inbound, outbound = self._inbound, self._outbound
        return max(0, inbound.received - 1 - inbound.finished), max(0, outbound.una - outbound.iss - 1)

    @property
    def is_due(self) -> bool:
        """Something of ours waits for the stack's next transmit."""
        return self in self._ledger.dirty

    def statistics(self) -> TcpStatistics:
        """Everything worth knowing of this connection, at this moment."""
        inbound, outbound = self._inbound, self._outbound
        sizes, recovery, round_trip = outbound.sizes, outbound.recovery, outbound.round_trip
        congestion, flight = recovery.congestion, recovery.flight
        return TcpStatistics(
            state=self.state,
            mss=sizes.mss,
            path_mss=sizes.path_mss,
            selective=inbound.selective,
            stamped=inbound.stamps,
            peer_shift=outbound.peer_shift,
            unsent=len(outbound.buffer),
            outstanding=outbound.nxt - outbound.una,
            in_flight=flight.pipe,
            sacked=flight.sacked,
            lost=flight.lost,
            acknowledged=outbound.una - outbound.iss,
            peer_window=outbound.window,
            largest_peer_window=outbound.largest_window,
            congestion_window=congestion.window,
            slow_start_threshold=congestion.threshold,
            recovery=recovery.mode,
            round_trip=round_trip.smoothed,
            smallest_round_trip=round_trip.minimum,
            retransmission_timeout=round_trip.timeout,
            resent=recovery.resent,
            timeouts=outbound.timeouts,
            timeouts_in_a_row=outbound.retries,
            received=inbound.received,
            unread=inbound.buffer.unread,
            unread_pieces=len(inbound.buffer.chunks),
            islands=len(inbound.buffer.islands),
            receive_window=inbound.target,
        )

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes; b"" when there are none, which is the end of the stream only if `at_eof`."""
        if not self._inbound.buffer.unread:
            return b""
        data, reopened = self._inbound.read(limit, self._outbound.sizes.mss)
        if reopened:
            self._ledger.dirty[self] = None
        return data

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take as much of `data` as there is room for; 0 asks for patience until a message says writable."""
        if self._outbound.fin_queued:
            raise ValueError("write after the end of the stream was sent")
        if self.state not in WRITABLE:
            return 0
        taken = self._outbound.write(data)
        if taken:
            self._ledger.dirty[self] = None
        return taken

    def send_eof(self, now: float) -> None:
        """FIN behind everything written; reading goes on."""
        if self._outbound.fin_queued or self.state not in (ESTABLISHED, CLOSE_WAIT, SYN_RECEIVED):
            return
        self._outbound.queue_fin()
        if self.state == ESTABLISHED:
            self._enter(FIN_WAIT_1)
        elif self.state == CLOSE_WAIT:
            self._enter(LAST_ACK)
        self._ledger.dirty[self] = None

    def close(self, now: float) -> None:
        """Let go of the connection: FIN, or RST when bytes were left unread (RFC 9293 section 3.10.4)."""
        self._orphaned = True
        if self.state == SYN_SENT:
            self._end(None)
        elif self._inbound.buffer.unread and not (self._inbound.finished and self._outbound.fin_queued):
            self.abort(now)
        else:
            self._inbound.buffer.forget_unread()
            self.send_eof(now)
            if self.state == FIN_WAIT_2:
                self._linger_deadline = now + FIN_WAIT_2_LINGER
        self._ledger.dirty[self] = None

    def abort(self, now: float) -> None:
        """RST and forget."""
        if self.state in (CLOSED, TIME_WAIT):
            return
        if self.state != SYN_SENT:
            self._reset_seq = self._outbound.nxt
        self._end(ConnectionProblem.ABORTED)

    def set_nodelay(self, on: bool) -> None:
        """Off: small segments wait for what is in flight (Nagle, RFC 9293 section 3.7.4). On is the default."""
        self._outbound.set_nodelay(on)
        self._ledger.dirty[self] = None

    def set_keepalive(self, idle: float | None, interval: float = 75.0, count: int = 9) -> None:
        """Probe a silent peer after `idle` seconds; None, the default, never asks."""
        if self.state in (CLOSED, TIME_WAIT):
            return
        self._keepalive = None if idle is None else Keepalive(idle, interval, count)
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
        self._ledger.drops[tcp_drops.BAD_CHECKSUM] += 1
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
        chunks = received.chunks
        expected = first = received.next & MASK32
        una, flying = self._outbound.una & MASK32, self._outbound.nxt - self._outbound.una
        stamp_recent = self._inbound.stamp_recent
        control = first_stamps = stamps = -1
        ack, window = una, -1
        segments = 0
        try:
            for packet in islice(run, index, None) if index else run:
                length, fragment, seq, bits, option, pair = unpack(packet)
                end = length + before
                size = end - payload_at
                if seq != expected or option != _PREDICTED_OPTION or fragment & fragment_mask:
                    break
                if size < 0 or (size and end > len(packet)):
                    break
                if pair != stamps and (pair >> 32) - stamp_recent & MASK32 >= 0x80000000:
                    break
                if bits != control:
                    candidate = bits >> 32
                    if bits & _PREDICTED_MASK != _PREDICTED_BITS or candidate - una & MASK32 > flying:
                        break
                    if candidate - ack & MASK32 < 0x80000000:
                        ack, window = candidate, bits & 0xFFFF
                    control = bits
                stamps = pair
                if size:
                    if size < SMALL_PIECE and chunks and len(chunks[-1]) < MERGED_PIECE:
                        chunks[-1] += packet[payload_at:end]
                    else:
                        chunks.append(packet[payload_at:end])
                    expected = expected + size & MASK32
                    segments += 1
                if first_stamps < 0:
                    first_stamps = pair
                index += 1
        except struct.error:  # too short to hold what prediction reads: the careful path says why
            pass
        if first_stamps >= 0:
            moved = ack - una & MASK32 if window >= 0 else -1
            self._take_predicted(segments, expected - first & MASK32, moved, window, (first_stamps, stamps), now)
        return index

    def _take_predicted(
        self, segments: int, size: int, moved: int, window: int, stamps: tuple[int, int], now: float
    ) -> None:
        """What a predicted run means, once for all of it: text, `moved` bytes acknowledged (-1: no news), stamps."""
        inbound, outbound = self._inbound, self._outbound
        seq = inbound.take_run(size, stamps[0] >> 32, now)
        if moved >= 0:
            ack = outbound.una + moved
            moves = outbound.acknowledged(ack, window, seq, (), stamps[1] & MASK32, bool(size), now)
            self._was_acknowledged(moves, now)
        if size:
            inbound.took_data(segments, size, outbound.round_trip.smoothed, now)
            self._ledger.changed[self] = None

    def _receive_segment(self, packet: Packet, segment: Segment, now: float) -> None:
        if self.state == SYN_SENT:
            self._receive_in_syn_sent(segment, now)
        elif self.state != CLOSED:
            self._receive_synchronized(segment, now)
        else:
            self._ledger.drops[tcp_drops.CLOSED] += 1

    def _receive_in_syn_sent(self, segment: Segment, now: float) -> None:
        """RFC 9293 section 3.10.7.3."""
        flags, inbound, outbound = segment.flags, self._inbound, self._outbound
        drops = self._ledger.drops
        answers_ours = bool(flags & ACK)
        if answers_ours and (ack := unwrap(segment.ack, outbound.una)) != outbound.nxt:
            drops[tcp_drops.HANDSHAKE_ACK] += 1
            if not flags & RST:
                self._reset_seq = ack
            return
        if flags & RST:
            if answers_ours:
                self._end(ConnectionProblem.REFUSED)
            else:
                drops[tcp_drops.BLIND_RESET] += 1
            return
        if not flags & SYN:
            drops[tcp_drops.HANDSHAKE_NO_SYN] += 1
            return
        if answers_ours:
            outbound.syn_acknowledged(now)
        agreed = Handshake.offered(outbound.iss, segment)
        inbound.heard_syn(agreed, now)
        outbound.heard_syn(agreed, segment.window)
        if not answers_ours:
            self._enter(SYN_RECEIVED)  # simultaneous open
            self._handshake_due = True
            return
        self._enter(ESTABLISHED)
        inbound.owe_ack()
        self._ledger.changed[self] = None
        if segment.payload or flags & FIN:
            self._receive_text(inbound.buffer.next, segment, now)

    def _receive_synchronized(self, segment: Segment, now: float) -> None:
        """RFC 9293 section 3.10.7.4, in its order; RFC 5961 for the challenges."""
        drops = self._ledger.drops
        expected = self._inbound.expected
        seq = unwrap(segment.seq, expected)
        if self.state == SYN_RECEIVED and segment.flags & (SYN | ACK) == SYN | ACK and seq == expected - 1:
            # Simultaneous open (RFC 9293 figure 7): its SYN we know, its ACK is what we wait for.
            segment, seq = segment._replace(flags=segment.flags & ~SYN, seq=expected & MASK32), expected
        if not self._passes(seq, segment, now):
            return
        ack = unwrap(segment.ack, self._outbound.una)
        if self.state == SYN_RECEIVED and not self._leave_syn_received(ack):
            return
        if not self._outbound.una - self._outbound.largest_window - 1 <= ack <= self._outbound.nxt:
            drops[tcp_drops.WILD_ACK] += 1
            self._challenge(now)
            return
        carries = bool(segment.payload) or bool(segment.flags & FIN)
        self._receive_ack(ack, seq, segment, carries, now)
        if segment.flags & URG:
            drops[tcp_drops.URGENT] += 1
        if self.state != CLOSED and carries:
            self._receive_text(seq, segment, now)

    def _passes(self, seq: int, segment: Segment, now: float) -> bool:
        """Sections "first" to "fourth", and whether there is an ACK: what comes behind them is credible."""
        inbound, flags, drops = self._inbound, segment.flags, self._ledger.drops
        stamps = segment.options.stamps if inbound.stamps else None
        if stamps is not None and not flags & RST and inbound.is_stale(stamps[0], segment, now):
            drops[tcp_drops.PAWS] += 1
            self._answer_strange(segment, now)
            return False
        if not inbound.is_acceptable(seq, len(segment.payload) + bool(flags & FIN) + bool(flags & SYN)):
            self._receive_unacceptable(seq, segment, now)
            return False
        if stamps is not None:
            inbound.take_stamp(stamps[0], seq, now)
        if flags & RST:
            if seq == inbound.expected:
                self._reset_by_peer()
            else:
                drops[tcp_drops.RESET_IN_WINDOW] += 1
                self._challenge(now)
        elif flags & SYN:
            drops[tcp_drops.SYN_IN_WINDOW] += 1
            self._challenge(now)
        elif not flags & ACK:
            drops[tcp_drops.NO_ACK] += 1
        else:
            return True
        return False

    def _receive_ack(self, ack: int, seq: int, segment: Segment, carries: bool, now: float) -> None:
        """A credible acknowledgement, in a segment that `carries` something of its own or does not."""
        options = segment.options
        echo = options.stamps[1] if options.stamps is not None and self._inbound.stamps else None
        moves = self._outbound.acknowledged(ack, segment.window, seq, options.blocks, echo, carries, now)
        self._was_acknowledged(moves, now)

    def _receive_unacceptable(self, seq: int, segment: Segment, now: float) -> None:
        flags, payload = segment.flags, segment.payload
        drops = self._ledger.drops
        if flags & RST:
            drops[tcp_drops.RESET_OUT_OF_WINDOW] += 1
            return
        if seq < self._inbound.expected:
            drops[tcp_drops.DUPLICATE] += 1
            if payload:
                self._inbound.report_duplicate(seq, seq + len(payload))
        else:
            drops[tcp_drops.OUT_OF_WINDOW] += 1
        # A window probe or a keep-alive carries a fresh acknowledgement all the same.
        if flags & ACK and not flags & SYN and self.state > SYN_RECEIVED:
            ack = unwrap(segment.ack, self._outbound.una)
            if self._outbound.una <= ack <= self._outbound.nxt:
                # Not a window update unless it is the newest word (SND.WL1): `seq` says so.
                self._receive_ack(ack, seq, segment, True, now)
        self._answer_strange(segment, now)

    def _answer_strange(self, segment: Segment, now: float) -> None:
        """An ACK for a segment we had no use for; those that carry data always get one."""
        if segment.payload or segment.flags & FIN:
            self._inbound.owe_ack()
        elif now - self._answered_at >= STRANGE_ACK_INTERVAL:
            self._answered_at = now
            self._inbound.owe_ack()

    def _challenge(self, now: float) -> None:
        """RFC 5961: say where we are, so that an honest peer can correct itself and a blind one learns nothing."""
        if now - self._challenged_at < CHALLENGE_INTERVAL or not self._ledger.challenges.take(now):
            self._ledger.drops[tcp_drops.CHALLENGE_LIMIT] += 1
            return
        self._challenged_at = now
        self._inbound.owe_ack()

    def _reset_by_peer(self) -> None:
        if self.state == TIME_WAIT:
            self._ledger.drops[tcp_drops.RESET_IN_TIME_WAIT] += 1
        elif self.state == SYN_RECEIVED:
            self._end(ConnectionProblem.REFUSED)
        elif self.state in (CLOSING, LAST_ACK):
            self._end(None)
        else:
            self._end(ConnectionProblem.RESET)

    def _leave_syn_received(self, ack: int) -> bool:
        outbound = self._outbound
        if ack != outbound.nxt:
            self._ledger.drops[tcp_drops.HANDSHAKE_ACK] += 1
            self._reset_seq = ack
            return False
        outbound.syn_ack_acknowledged()
        self._handshake_due = False
        self._enter(FIN_WAIT_1 if outbound.fin_queued else ESTABLISHED)
        self._ledger.changed[self] = None
        return True

    # -- acknowledgements of what we sent --------------------------------------------------------------------------

    def _was_acknowledged(self, moves: bool, now: float) -> None:
        """A credible ACK came, and `outbound` took it: SND.UNA `moves` or does not."""
        outbound = self._outbound
        self._keepalive_probes = 0
        if outbound.persist_count and not self._orphaned:  # nobody waits for ever on behalf of an orphan
            outbound.forget_probes()
        if moves:
            if outbound.has_room_again():
                self._ledger.changed[self] = None
            if outbound.fin_queued and outbound.una > outbound.buffer.end:
                self._fin_acknowledged(now)

    def _fin_acknowledged(self, now: float) -> None:
        if self.state == FIN_WAIT_1:
            self._enter(FIN_WAIT_2)
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
                self._ledger.drops[tcp_drops.AFTER_FIN] += 1
            self._inbound.owe_ack()
            return
        if payload and self._orphaned and end > received.next:
            # Nobody will ever read this: RFC 9293 section 3.6.1 wants the peer to know.
            self._ledger.drops[tcp_drops.READER_GONE] += 1
            self._reset_seq = self._outbound.nxt
            self._end(None)
            return
        if segment.flags & FIN and end <= self._inbound.edge:
            self._inbound.hold_fin(end)
        if payload:
            before = received.next
            self._inbound.place(seq, payload[: self._inbound.edge - seq], self._outbound.round_trip.smoothed, now)
            if received.next != before:
                self._ledger.changed[self] = None
        if self._inbound.has_whole_stream:
            self._take_fin()
        elif segment.flags & FIN:
            self._inbound.owe_ack()

    def _take_fin(self) -> None:
        self._inbound.take_fin()
        self._ledger.changed[self] = None
        if self.state == ESTABLISHED:
            self._enter(CLOSE_WAIT)
        elif self.state == FIN_WAIT_1:
            self._enter(CLOSING)
        elif self.state == FIN_WAIT_2:
            self._enter_time_wait()

    # -- endings ---------------------------------------------------------------------------------------------------

    def _enter_time_wait(self) -> None:
        """The stack keeps a tiny record from here on, after the last ACK has left."""
        self._enter(TIME_WAIT)
        self._stop_timers()
        self._inbound.stop()
        self._outbound.stop()
        self._ledger.changed[self] = None
        self._ledger.finished[self] = None

    def _end(self, problem: ConnectionProblem | None) -> None:
        self._enter(CLOSED)
        self.error = self.error or problem
        self._stop_timers()
        self._inbound.end(forget=problem is not None and not self._inbound.finished)
        self._outbound.end()
        self._ledger.changed[self] = None
        self._ledger.finished[self] = None
        self._ledger.dirty[self] = None

    def _stop_timers(self) -> None:
        self._linger_deadline = math.inf
        self._keepalive = None

    def last_numbers(self) -> tuple[int, int, int | None]:
        """What a TIME-WAIT record keeps: SND.NXT, RCV.NXT and the newest stamp of the peer."""
        return self._outbound.nxt, self._inbound.expected, self._inbound.stamp_recent if self._inbound.stamps else None

    def fail(self, problem: ConnectionProblem) -> None:
        """Somebody else knows that this connection cannot go on: an address lost, a route refused."""
        if self.state != CLOSED:
            self._end(problem)

    # -- news from ICMP --------------------------------------------------------------------------------------------

    def on_unreachable(self, seq: int) -> None:
        """Hard only while opening (RFC 5461); `seq` is the sequence number the report quotes."""
        if self.state == SYN_SENT and unwrap(seq, self._outbound.iss) == self._outbound.iss:
            self._end(ConnectionProblem.UNREACHABLE)

    def on_packet_too_big(self, mss: int, seq: int) -> bool:
        """The path carries segments of at most `mss`. False when the quoted sequence number is not in flight."""
        if self.state < ESTABLISHED or not self._outbound.is_in_flight(seq):
            return False
        self.limit_segment_size(mss)
        return True

    def limit_segment_size(self, mss: int) -> None:
        """Somebody learnt that the path carries less."""
        self._outbound.limit_segment_size(mss)
        self._ledger.dirty[self] = None

    def offer_large(self, mss: int) -> None:
        """Before the SYN leaves: what we take beside its MSS."""
        self._outbound.offer_large(mss)

    def set_large(self, mss: int) -> None:
        """The way to the peer is relays only and carries segments of `mss`; 0 where any of it is not."""
        self._outbound.set_large(mss)

    def path_moved(self, now: float) -> None:
        """Segments have another way since a moment: what the old one may have lost is asked for at once.

        Who only receives says so by an acknowledgement: the other side learns by it which way we are heard.
        """
        if self.state in (SYN_SENT, SYN_RECEIVED):
            if not self._handshake_due:
                self._outbound.hasten_timeout(now)
        elif self.state >= ESTABLISHED:
            if not self._outbound.resend_head(now) and now - self._heard_at < HEARD_LATELY:
                self._inbound.owe_ack()
        self._ledger.dirty[self] = None

    def widen_segment_size(self, mss: int) -> None:
        """The path changed or a limit has expired: try `mss` again."""
        self._outbound.widen_segment_size(mss)

    # -- timers ----------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """The earliest moment this connection needs `handle_timer`."""
        deadline = min(self._outbound.deadline(), self._inbound.ack_deadline, self._linger_deadline)
        if self._keepalive is not None and self.state >= ESTABLISHED:
            deadline = min(deadline, self._keepalive_deadline())
        return deadline

    def _keepalive_deadline(self) -> float:
        assert self._keepalive is not None
        return self._heard_at + self._keepalive.idle + self._keepalive.interval * self._keepalive_probes

    def handle_timer(self, now: float) -> None:
        inbound, outbound = self._inbound, self._outbound
        self._ledger.dirty[self] = None
        inbound.on_ack_timer(now)
        outbound.on_timer(now)
        if outbound.rto_deadline <= now:
            self._on_retransmission_timeout(now)
        elif outbound.probe_deadline <= now:
            outbound.probe_tail(now)
        if outbound.persist_deadline <= now:
            self._give_up_after(outbound.count_probe())
        if self._linger_deadline <= now:
            self._end(None)
        if self._keepalive is not None and self.state >= ESTABLISHED and self._keepalive_deadline() <= now:
            self._on_keepalive(now)

    def _on_retransmission_timeout(self, now: float) -> None:
        tries = self._outbound.count_timeout()
        if self.state in (SYN_SENT, SYN_RECEIVED):
            if tries > SYN_RETRIES:
                self._end(ConnectionProblem.TIMED_OUT)
            self._handshake_due = True
        elif not self._give_up_after(tries):
            self._outbound.on_retransmission_timeout(now)

    def _give_up_after(self, tries: int) -> bool:
        if tries <= (ORPHAN_RETRIES if self._orphaned else DATA_RETRIES):
            return False
        self._time_out()
        return True

    def _time_out(self) -> None:
        self._reset_seq = self._outbound.nxt
        self._end(ConnectionProblem.TIMED_OUT)

    def _on_keepalive(self, now: float) -> None:
        assert self._keepalive is not None
        self._keepalive_probes += 1
        self._keepalive_due = True
        if self._keepalive_probes > self._keepalive.probes:
            self._time_out()

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
        inbound, outbound = self._inbound, self._outbound
        if self.state in SENDING and outbound.prepare(now):
            window = inbound.advertise(outbound.sizes.mss)
            head = Head(inbound.expected, window, outbound.options(inbound.stamp_recent, now))
            if outbound.emit(out, head, now):
                inbound.ack_sent()
        if self._keepalive_due:
            self._keepalive_due = False
            if not outbound.is_flying:  # else retransmission asks the same question
                out.append(self._bare_ack(outbound.nxt - 1, now))
        if inbound.ack_now:
            self._emit_acks(out, now)
        return out

    def emit_by(self, lanes: Lanes, now: float) -> list[bytes]:
        """As `emit`; what leaves by one of several lanes is handed to `lanes`, and the rest is returned."""
        hop = self.hop
        self._use_lanes(lanes.offers_to(hop, self.key, now), now)
        packets = self.emit(now)
        outbound = self._outbound
        if isinstance(outbound, StripedOutbound):
            outbound.tell(lanes, hop, now)
        return packets

    def _use_lanes(self, offers: Sequence[LaneOffer], now: float) -> None:
        outbound = self._outbound
        if isinstance(outbound, StripedOutbound):
            outbound.use_lanes(offers, now)
        elif self.state in SENDING and self._inbound.selective and outbound.is_untroubled:
            if sum([offer.is_open for offer in offers]) > 1:
                self._outbound = StripedOutbound(outbound, offers, now)

    def _bare_ack(self, seq: int, now: float, blocks: bytes = b"") -> bytes:
        inbound, outbound = self._inbound, self._outbound
        options = outbound.options(inbound.stamp_recent, now) + blocks
        return outbound.writer.single(seq, inbound.expected, ACK, inbound.advertise(outbound.sizes.mss), options)

    def _emit_acks(self, out: list[bytes], now: float) -> None:
        """One ACK for a burst; more where a burst made more holes than one ACK can name."""
        inbound = self._inbound
        copies = 1
        if not inbound.selective and inbound.buffer.islands:
            copies = max(inbound.segments_owed, 1)
        for blocks in inbound.sack_options(3 if inbound.stamps else 4):
            out += [self._bare_ack(self._outbound.acceptable_seq(), now, blocks)] * copies
        inbound.all_said()

    def _emit_reset(self, out: list[bytes]) -> None:
        assert self._reset_seq is not None
        stamped = self.state == CLOSED and self._inbound.buffer.next
        flags = RST | ACK if stamped else RST
        out.append(self._outbound.writer.single(self._reset_seq, self._inbound.expected if stamped else 0, flags, 0))
        self._reset_seq = None

    def _emit_handshake(self, out: list[bytes], now: float) -> None:
        inbound, outbound = self._inbound, self._outbound
        self._handshake_due = False
        flags, ack, echo = SYN, 0, 0
        if self.state == SYN_RECEIVED:
            flags, ack, echo = SYN | ACK, inbound.buffer.next, inbound.stamp_recent
        stamp = outbound.stamp(now) if inbound.stamps else None
        shift = WINDOW_SHIFT if inbound.scaling else None
        options = syn_options(outbound.sizes.offered, shift, inbound.selective, stamp, echo)
        out.append(outbound.writer.single(outbound.iss, ack, flags, 65535, options))
        outbound.handshake_sent(now)

    def __repr__(self) -> str:
        return f"TcpConnection({self.local[1]} -> {self.remote[1]}, {self.state})"
