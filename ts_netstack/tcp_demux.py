"""Every TCP socket of a stack: connections, half-open ones, listeners, TIME-WAIT records and free ports.

Owns the tables, their bounds and the numbers a connection begins with. Refuses to parse
IP or to know what leaves where. RFC 6528 (initial sequence numbers), RFC 6056 (ports), RFC 4987 (SYN floods).
"""

from __future__ import annotations

import errno
import hashlib
import math
from collections import Counter
from typing import NamedTuple

from ts_base.budget import Budget
from ts_base.ip_headers import ACK, FIN, RST, SYN
from ts_base.timers import Timers
from ts_base.who import Hop, Origin, PeerId
from ts_netstack.arrivals import Arrival, may_speak
from ts_netstack.icmp import UNREACHABLE, Report
from ts_netstack.ledger import Ledger, Sender
from ts_netstack.outbox import Replies
from ts_netstack.own_addresses import OwnAddresses
from ts_netstack.path_sizes import PathSizes, SegmentLimits, offered_segment_size
from ts_netstack.ports import Bound, free_port, is_taken
from ts_netstack.tcp import ConnectionProblem, TcpConnection
from ts_netstack.tcp_listen import (
    DEFAULT_BACKLOG,
    HALF_OPEN_LIMIT,
    HALF_OPEN_LIMIT_PER_HOST,
    SYN_ACK_RETRIES,
    Cookies,
    HalfOpen,
    TcpListen,
    syn_ack,
)
from ts_netstack.tcp_states import SYN_SENT, TIME_WAIT, Handshake
from ts_netstack.tcp_time_wait import TimeWaits
from ts_netstack.wire import (
    MASK32,
    Address,
    Sizes,
    Unroutable,
    reset_for,
    tcp_packet,
)

COOKIE_MEMORY = 128.0  # seconds after the last overflow that cookies are still honoured
RESETS_PER_SECOND = 1000.0


class TcpTables(NamedTuple):
    """How full the tables are."""

    connections: int
    half_open: int
    listeners: int
    waiting: int  # accepted connections nobody has asked for yet
    time_wait: int
    retransmitted: int  # segments so far


class TcpSockets:
    """Keys are the bytes of an inbound packet: remote address, local address, remote port, local port."""

    __slots__ = (
        "_cookies",
        "_counter",
        "_flooded_at",
        "_half_open_by_host",
        "_ledger",
        "_own",
        "_replies",
        "_resets",
        "_secret",
        "_timers",
        "flows",
        "half_open",
        "listeners",
        "opening",
        "time_wait",
        "unanswered",
    )

    def __init__(
        self,
        ledger: Ledger,
        timers: Timers[object],
        secret: bytes,
        replies: Replies,
        own: OwnAddresses | None = None,
    ) -> None:
        self._ledger, self._timers, self._replies = ledger, timers, replies
        self._own = own or OwnAddresses()
        self._secret = secret[:16]
        self._cookies = Cookies(secret[16:32])
        self._counter = int.from_bytes(secret[32:36], "big")
        self._flooded_at = -math.inf
        self._resets = Budget(RESETS_PER_SECOND, RESETS_PER_SECOND)
        self.flows: dict[bytes, TcpConnection] = {}
        self.half_open: dict[bytes, HalfOpen] = {}
        self._half_open_by_host: Counter[bytes] = Counter()
        self.unanswered: dict[HalfOpen, None] = {}  # SYN-ACKs that leave with the next `open_ways`
        self.opening: list[TcpConnection] = []  # whose SYN has not left yet
        self.listeners: dict[Bound, TcpListen] = {}
        self.time_wait = TimeWaits(ledger)

    def holds(self, key: bytes) -> bool:
        """Whether somebody here is who segments with this key are for."""
        if key in self.flows or key in self.half_open or key in self.time_wait:
            return True
        port, local = int.from_bytes(key[-2:], "big"), key[len(key) // 2 - 2 : -4]
        return self._listener(port, local) is not None

    def _listener(self, port: int, local: bytes) -> TcpListen | None:
        own = self.listeners.get((port, local))
        return own or (self.listeners.get((port, None)) if self._own.hears_all(local) else None)

    # -- numbers ---------------------------------------------------------------------------------------------------

    def _hash(self, text: bytes) -> int:
        return int.from_bytes(hashlib.blake2s(text, key=self._secret, digest_size=4).digest(), "big")

    def _initial_sequence(self, key: bytes, now: float) -> int:
        """RFC 6528: a 4 microsecond clock plus a secret of the four-tuple."""
        return int(now * 250_000) + self._hash(b"seq" + key) & MASK32

    def _stamp_offset(self, local: bytes, remote: bytes) -> int:
        """Per pair of hosts, so that a reused port still sees stamps that grow (RFC 7323 appendix B.2)."""
        return self._hash(b"stamp" + remote + local)

    def pick_port(self, local: bytes, remote: Address) -> int:
        """RFC 6056 algorithm 3; raises OSError when every port to this destination is taken."""
        offset = self._hash(b"port" + local + remote[0] + remote[1].to_bytes(2, "big"))
        head, tail = remote[0] + local, remote[1].to_bytes(2, "big")
        waiting = 0

        def is_free(port: int) -> bool:
            nonlocal waiting
            self._counter += 1
            key = head + tail + port.to_bytes(2, "big")
            if key in self.flows or key in self.half_open:
                return False
            if (port, None) in self.listeners or (port, local) in self.listeners:
                return False
            if key in self.time_wait:
                waiting = waiting or port
                return False
            return True

        if port := free_port(offset + self._counter, is_free):
            return port
        if waiting:  # timestamps tell the incarnations apart (RFC 6191)
            return waiting
        raise OSError(errno.EADDRNOTAVAIL, "no free local port for this destination")

    def free_listening_port(self, host: bytes | None) -> int:
        self._counter += 1
        start = self._hash(b"listen" + self._counter.to_bytes(8, "big"))
        port = free_port(start, lambda port: not is_taken(self.listeners, port, host, self._own.apart))
        if not port:
            raise OSError(errno.EADDRINUSE, "no free port to listen on")
        return port

    # -- calls -----------------------------------------------------------------------------------------------------

    def connect(self, local: Address, remote: Address, hop: Hop, mss: int, now: float) -> TcpConnection:
        port = local[1] or self.pick_port(local[0], remote)
        key = remote[0] + local[0] + remote[1].to_bytes(2, "big") + port.to_bytes(2, "big")
        if key in self.flows or key in self.half_open:
            raise OSError(errno.EADDRINUSE, f"port {port} is already connected to this destination")
        self.time_wait.forget(key)
        connection = self._new(key, (local[0], port), remote, Sizes(mss), self._initial_sequence(key, now), hop[1])
        connection.open(now)
        self.opening.append(connection)
        return connection

    def _new(
        self, key: bytes, local: Address, remote: Address, sizes: Sizes, iss: int, via: PeerId = 0
    ) -> TcpConnection:
        offset = self._stamp_offset(local[0], remote[0])
        connection = TcpConnection(self._ledger, key, local, remote, sizes, iss, offset, via)
        self.flows[key] = connection
        self._ledger.enter_exit(via)
        return connection

    def via_of(self, key: bytes) -> PeerId:
        """Through whom segments with this key belong: the exit of a connection that is open or has just ended, or 0."""
        known = self.flows.get(key) or self.time_wait.get(key)
        return known.via if known is not None else 0

    def answer(self, arrival: Arrival, now: float) -> TcpConnection:
        """A connection that begins with the SYN of `arrival`; its SYN-ACK leaves with the next emit.

        To a connection that has asked nothing yet, a SYN is a simultaneous open (RFC 9293 figure 8).
        """
        iss = self._initial_sequence(arrival.key, now)
        connection = self._new(arrival.key, arrival.local, arrival.remote, Sizes(arrival.mss), iss)
        connection.open(now)
        connection.receive_run([arrival.data], now)
        return connection

    def listen(self, port: int, host: bytes | None, backlog: int = DEFAULT_BACKLOG) -> TcpListen:
        if not port:
            port = self.free_listening_port(host)
        elif is_taken(self.listeners, port, host, self._own.apart):
            raise OSError(errno.EADDRINUSE, f"port {port} is already listened on")
        listener = self.listeners[(port, host)] = TcpListen(self._ledger, port, host, backlog)
        return listener

    def forget_listener(self, listener: TcpListen) -> None:
        if self.listeners.get((listener.port, listener.host)) is listener:
            del self.listeners[(listener.port, listener.host)]
        for record in [one for one in self.half_open.values() if one.listener is listener]:
            self._drop_half_open(record)

    def forget_addresses(self, lost: frozenset[bytes]) -> None:
        """Connections of an address that is no longer ours end here; what we forward for others never had one."""
        for connection in list(self.flows.values()):
            if connection.local[0] in lost:
                connection.fail(ConnectionProblem.UNREACHABLE)

    def statistics(self) -> TcpTables:
        waiting = sum(listener.waiting for listener in self.listeners.values())
        tables = len(self.flows), len(self.half_open), len(self.listeners), waiting, len(self.time_wait)
        return TcpTables(*tables, self._ledger.retransmitted)

    # -- segments --------------------------------------------------------------------------------------------------

    def receive_unclaimed(self, arrival: Arrival, now: float) -> None:
        """A segment to one of our addresses, of no established connection."""
        if not self.leave_time_wait(arrival, now):
            return
        record = self.half_open.get(arrival.key)
        if record is not None:
            self._receive_half_open(record, arrival, now)
            return
        flags, (host, port) = arrival.segment.flags, arrival.local
        listener = self._listener(port, host)
        if listener is not None and flags & (SYN | ACK | RST | FIN) == SYN:
            self._receive_syn(listener, arrival, now)
        elif (
            listener is not None
            and flags & (SYN | ACK | RST) == ACK
            and self._maybe_open_cookie(listener, arrival, now)
        ):
            return
        else:
            self.refuse(arrival, now)

    def refuse(self, arrival: Arrival, now: float) -> None:
        """Nobody's segment: a RST, within measure. A service is silent: another host may have that port of it."""
        self._ledger.drops["tcp.no_connection"] += 1
        if arrival.local[0] in self._own.services:
            return
        reply = reset_for(arrival.packet, arrival.segment)
        if reply is not None and self._resets.take(now):
            self._replies.append((arrival.back, reply))

    def receive_report(self, report: Report, origin: Origin, mss: int) -> Hop:
        """An ICMP error about a segment that may be on its way, whose path takes at most `mss`; else Unroutable."""
        quoted = report.quoted
        connection = self.flows.get(report.remote + report.local + quoted[2:4] + quoted[:2])
        if connection is None:
            raise Unroutable("icmp.no_connection")
        if not may_speak(origin, connection.via):
            raise Unroutable("icmp.wrong_peer")
        seq = int.from_bytes(quoted[4:8], "big")
        if report.kind == UNREACHABLE:
            connection.on_unreachable(seq)
        elif not connection.on_packet_too_big(mss, seq):
            raise Unroutable("icmp.wild_sequence")
        return connection.hop

    def fail_hop(self, hop: Hop) -> None:
        """Nobody takes packets by `hop`. Hard while opening and where an exit was named, else it passes (RFC 5461)."""
        for connection in list(self.flows.values()):
            if connection.hop == hop and (connection.via or connection.state == SYN_SENT):
                connection.fail(ConnectionProblem.NO_ROUTE)

    def path_moved(self, destination: bytes, now: float) -> None:
        """Segments to `destination` have another way since a moment."""
        for connection in self.flows.values():
            if connection.hop[0] == destination:
                connection.path_moved(now)

    def limit_segment_size(self, hop: Hop, mss: int) -> None:
        """The way of `hop` was found to carry no more."""
        for connection in self.flows.values():
            if connection.hop == hop:
                connection.limit_segment_size(mss)

    def widen_segment_sizes(self, destination: bytes, paths: PathSizes) -> None:
        """The way to `destination` is another one, or what was found of it is too old."""
        for connection in self.flows.values():
            if connection.hop[0] == destination:
                connection.widen_segment_size(paths.segment_size(connection.hop))

    def _receive_syn(self, listener: TcpListen, arrival: Arrival, now: float) -> None:
        segment, local, remote = arrival.segment, arrival.local, arrival.remote
        if segment.payload:
            self._ledger.drops["tcp.data_in_syn"] += 1  # not acknowledged, so it comes again
        stamp = int(now * 1000) + self._stamp_offset(local[0], remote[0]) & MASK32
        full = len(self.half_open) >= HALF_OPEN_LIMIT
        if full or self._half_open_by_host[remote[0]] >= HALF_OPEN_LIMIT_PER_HOST:
            self._ledger.drops["tcp.syn_cookie"] += 1
            self._flooded_at = now
            agreed = Handshake.offered(self._cookies.make(arrival.key, segment, now), segment)
            sizes = Sizes(arrival.mss)  # a cookie cannot remember more
            reply = syn_ack(local, remote, agreed, sizes, self._cookies.stamp(segment, stamp))
            self._replies.append((arrival.back, reply))
            return
        agreed = Handshake.offered(self._initial_sequence(arrival.key, now), segment)
        record = self.half_open[arrival.key] = HalfOpen(arrival, listener, agreed, stamp, now)
        self._half_open_by_host[remote[0]] += 1
        self._timers.set(record, record.deadline)
        self.unanswered[record] = None

    def _receive_half_open(self, record: HalfOpen, arrival: Arrival, now: float) -> None:
        segment, agreed = arrival.segment, record.agreed
        flags, drops = segment.flags, self._ledger.drops
        in_window = segment.seq - agreed.irs - 1 & MASK32 < 65535
        if flags & RST:
            if segment.seq == agreed.irs + 1 & MASK32:
                self._drop_half_open(record)
            else:
                drops["tcp.blind_reset"] += 1
        elif flags & SYN:
            if flags & ACK or segment.seq != agreed.irs:
                # Another incarnation of the same four-tuple: only the newest SYN can still complete.
                drops["tcp.syn_changed"] += 1
                self._drop_half_open(record)
                if not flags & ACK:
                    self._receive_syn(record.listener, arrival, now)
            else:
                self.unanswered[record] = None
        elif not flags & ACK or not in_window:
            drops["tcp.handshake_wild"] += 1
        elif segment.ack != agreed.iss + 1 & MASK32:
            drops["tcp.handshake_ack"] += 1
            reply = tcp_packet(record.local, record.remote, segment.ack, 0, RST, 0)
            if self._resets.take(now):
                self._replies.append((arrival.back, reply))
        elif self._may_wait(record.listener, arrival):  # else the SYN-ACK goes again, and the peer's ACK with it
            self._drop_half_open(record)
            sample = now - record.sent_at
            agreed = agreed._replace(round_trip=sample, resent=record.tries > 0)
            self._adopt(record.listener, arrival, agreed, Sizes(arrival.mss, record.large), now)

    def _maybe_open_cookie(self, listener: TcpListen, arrival: Arrival, now: float) -> bool:
        if now - self._flooded_at > COOKIE_MEMORY:
            return False
        agreed = self._cookies.open(arrival.key, arrival.segment, now)
        if agreed is None:
            self._ledger.drops["tcp.bad_cookie"] += 1
            return False
        if self._may_wait(listener, arrival):
            self._adopt(listener, arrival, agreed, Sizes(arrival.mss), now)
        return True

    def _may_wait(self, listener: TcpListen, arrival: Arrival) -> bool:
        if listener.has_room_for(arrival.remote[0]):
            return True
        self._ledger.drops["tcp.accept_queue_full" if listener.is_full else "tcp.accept_share_full"] += 1
        return False

    def _adopt(self, listener: TcpListen, arrival: Arrival, agreed: Handshake, sizes: Sizes, now: float) -> None:
        """The last ACK of a handshake came: the connection begins, with what that ACK carries."""
        connection = self._new(arrival.key, arrival.local, arrival.remote, sizes, agreed.iss)
        connection.adopt(agreed, arrival.segment.window, now)
        listener.offer(connection)
        connection.receive_run([arrival.data], now)

    def open_ways(self, runs: dict[Hop, list[bytes]], limits: SegmentLimits | None) -> None:
        """Let our offers into the SYNs that leave next, and answer those that came."""
        if limits is not None:
            for connection in self.opening:
                connection.offer_large(offered_segment_size(connection.hop, limits))
        self.opening.clear()
        for record in self.unanswered:
            hop, reply = record.answer(limits)
            runs.setdefault(hop, []).append(reply)
        self.unanswered.clear()

    def _drop_half_open(self, record: HalfOpen) -> None:
        if self.half_open.pop(record.key, None) is not None:
            host = record.remote[0]
            self._half_open_by_host[host] -= 1
            if self._half_open_by_host[host] <= 0:
                del self._half_open_by_host[host]
            self._timers.clear(record)
            self.unanswered.pop(record, None)

    def on_half_open_timer(self, record: HalfOpen, now: float) -> None:
        if record.tries >= SYN_ACK_RETRIES:
            self._ledger.drops["tcp.handshake_timeout"] += 1
            self._drop_half_open(record)
            return
        record.tries += 1
        record.deadline = now + (1 << record.tries)
        self._timers.set(record, record.deadline)
        self.unanswered[record] = None

    # -- TIME-WAIT -------------------------------------------------------------------------------------------------

    def settle(self, connection: Sender, now: float) -> None:
        """A finished connection leaves the table; what ended in TIME-WAIT leaves a record."""
        if self.flows.get(connection.key) is connection:
            del self.flows[connection.key]
            self._ledger.leave_exit(connection.hop[1])
        self._timers.clear(connection)
        if connection.state == TIME_WAIT:
            self.time_wait.add(connection.key, connection.last_numbers(), connection.hop[1], now)

    def leave_time_wait(self, arrival: Arrival, now: float) -> bool:
        """False for a segment of a connection that ended here a moment ago, and opens no new incarnation of it."""
        waiting = self.time_wait.get(arrival.key)
        if waiting is None:
            return True
        segment = arrival.segment
        if waiting.is_reopened_by(segment):
            self.time_wait.forget(arrival.key)
            return True
        self._ledger.drops["tcp.time_wait"] += 1
        asks = segment.payload or segment.flags & (SYN | FIN)
        if asks and not segment.flags & RST and self._resets.take(now):
            reply = tcp_packet(arrival.local, arrival.remote, waiting.nxt, waiting.rcv_nxt, ACK, 0)
            self._replies.append(((arrival.remote[0], waiting.via), reply))
        return False
