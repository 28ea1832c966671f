"""Every TCP socket of a stack: connections, half-open ones, listeners, TIME-WAIT records and free ports.

Owns the tables, their bounds and the numbers a connection begins with. Refuses to parse
IP or to know what leaves where. RFC 6528 (initial sequence numbers), RFC 6056 (ports), RFC 6191 (TIME-WAIT
reuse), RFC 4987 (SYN floods).
"""

from __future__ import annotations

import errno
import hashlib
import math
from collections import Counter, OrderedDict

from ts_base.budget import Budget
from ts_base.ip_headers import ACK, FIN, RST, SYN
from ts_base.timers import Timers
from ts_netstack.icmp import UNREACHABLE, Report
from ts_netstack.ledger import Ledger
from ts_netstack.outbox import Replies
from ts_netstack.ports import free_port
from ts_netstack.tcp import ConnectionProblem, TcpConnection
from ts_netstack.tcp_listen import (
    DEFAULT_BACKLOG,
    HALF_OPEN_LIMIT,
    HALF_OPEN_LIMIT_PER_HOST,
    SYN_ACK_RETRIES,
    Cookies,
    HalfOpen,
    TcpListen,
    answer_syn,
)
from ts_netstack.tcp_states import TIME_WAIT
from ts_netstack.wire import (
    MASK32,
    Address,
    Packet,
    Segment,
    Sizes,
    Unroutable,
    parse_segment_untrusted,
    reset_for,
    tcp_packet,
    unwrap,
)

TIME_WAIT_SECONDS = 60.0
TIME_WAIT_LIMIT = 65536
COOKIE_MEMORY = 128.0  # seconds after the last overflow that cookies are still honoured
RESETS_PER_SECOND = 1000.0


class TimeWait:
    """What must be remembered of a connection that ended here."""

    __slots__ = ("expires", "nxt", "rcv_nxt", "stamp")

    def __init__(self, expires: float, nxt: int, rcv_nxt: int, stamp: int | None) -> None:
        self.expires, self.nxt, self.rcv_nxt, self.stamp = expires, nxt, rcv_nxt, stamp


class TcpSockets:
    """Keys are the bytes of an inbound packet: remote address, local address, remote port, local port."""

    __slots__ = (
        "_cookies",
        "_counter",
        "_flooded_at",
        "_half_open_by_host",
        "_ledger",
        "_replies",
        "_resets",
        "_secret",
        "_timers",
        "flows",
        "half_open",
        "listeners",
        "time_wait",
    )

    def __init__(self, ledger: Ledger, timers: Timers[object], secret: bytes, replies: Replies) -> None:
        self._ledger, self._timers, self._replies = ledger, timers, replies
        self._secret = secret[:16]
        self._cookies = Cookies(secret[16:32])
        self._counter = int.from_bytes(secret[32:36], "big")
        self._flooded_at = -math.inf
        self._resets = Budget(RESETS_PER_SECOND, RESETS_PER_SECOND)
        self.flows: dict[bytes, TcpConnection] = {}
        self.half_open: dict[bytes, HalfOpen] = {}
        self._half_open_by_host: Counter[bytes] = Counter()
        self.listeners: dict[tuple[int, bytes | None], TcpListen] = {}
        self.time_wait: OrderedDict[bytes, TimeWait] = OrderedDict()

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
        port = free_port(start, lambda port: not self._is_listened(port, host))
        if not port:
            raise OSError(errno.EADDRINUSE, "no free port to listen on")
        return port

    def _is_listened(self, port: int, host: bytes | None) -> bool:
        if (port, None) in self.listeners or (port, host) in self.listeners:
            return True
        return host is None and any(taken == port for taken, _ in self.listeners)

    # -- calls -----------------------------------------------------------------------------------------------------

    def connect(self, local: Address, remote: Address, sizes: Sizes, now: float) -> TcpConnection:
        port = local[1] or self.pick_port(local[0], remote)
        key = remote[0] + local[0] + remote[1].to_bytes(2, "big") + port.to_bytes(2, "big")
        if key in self.flows or key in self.half_open:
            raise OSError(errno.EADDRINUSE, f"port {port} is already connected to this destination")
        self.time_wait.pop(key, None)
        connection = self._new(key, (local[0], port), remote, sizes, self._initial_sequence(key, now))
        connection.open(now)
        return connection

    def _new(self, key: bytes, local: Address, remote: Address, sizes: Sizes, iss: int) -> TcpConnection:
        offset = self._stamp_offset(local[0], remote[0])
        connection = TcpConnection(self._ledger, key, local, remote, sizes, iss, offset)
        self.flows[key] = connection
        return connection

    def listen(self, port: int, host: bytes | None, backlog: int = DEFAULT_BACKLOG) -> TcpListen:
        if not port:
            port = self.free_listening_port(host)
        elif self._is_listened(port, host):
            raise OSError(errno.EADDRINUSE, f"port {port} is already listened on")
        listener = self.listeners[(port, host)] = TcpListen(self._ledger, port, host, backlog)
        return listener

    def forget_listener(self, listener: TcpListen) -> None:
        if self.listeners.get((listener.port, listener.host)) is listener:
            del self.listeners[(listener.port, listener.host)]
        for record in [one for one in self.half_open.values() if one.listener is listener]:
            self._drop_half_open(record)

    def forget_addresses(self, addresses: frozenset[bytes]) -> None:
        """Connections of an address that is no longer ours end here."""
        for connection in list(self.flows.values()):
            if connection.local[0] not in addresses:
                connection.fail(ConnectionProblem.UNREACHABLE)

    # -- segments --------------------------------------------------------------------------------------------------

    def receive_unclaimed(self, key: bytes, packet: Packet, data: bytes, sizes: Sizes, now: float) -> None:
        """A segment for no established connection; `data` is the packet it came in, canonical."""
        segment = parse_segment_untrusted(packet.payload)
        drops = self._ledger.drops
        if not segment.source_port or not segment.destination_port:
            drops["tcp_port_zero"] += 1
            return
        local = (packet.destination, segment.destination_port)
        remote = (packet.source, segment.source_port)
        waiting = self.time_wait.get(key)
        if waiting is not None and not self._leave_time_wait(key, waiting, segment, local, remote, now):
            return
        record = self.half_open.get(key)
        if record is not None:
            self._receive_half_open(record, segment, data, sizes, now)
            return
        flags = segment.flags
        listener = self.listeners.get((local[1], local[0])) or self.listeners.get((local[1], None))
        if listener is not None and flags & (SYN | ACK | RST | FIN) == SYN:
            self._receive_syn(key, listener, segment, local, remote, sizes, now)
        elif (
            listener is not None
            and flags & (SYN | ACK | RST) == ACK
            and self._maybe_open_cookie(key, listener, segment, data, local, remote, sizes, now)
        ):
            return
        else:
            drops["tcp_no_connection"] += 1
            reply = reset_for(packet, segment)
            if reply is not None and self._resets.take(now):
                self._replies.append((packet.source, reply))

    def receive_report(self, report: Report, mss: int) -> None:
        """An ICMP error about a segment that may be on its way, whose path takes at most `mss`; else Unroutable."""
        quoted = report.quoted
        connection = self.flows.get(report.remote + report.local + quoted[2:4] + quoted[:2])
        if connection is None:
            raise Unroutable("icmp_no_connection")
        seq = int.from_bytes(quoted[4:8], "big")
        if report.kind == UNREACHABLE:
            connection.on_unreachable(seq)
        elif not connection.on_packet_too_big(mss, seq):
            raise Unroutable("icmp_wild_sequence")

    def _receive_syn(
        self,
        key: bytes,
        listener: TcpListen,
        segment: Segment,
        local: Address,
        remote: Address,
        sizes: Sizes,
        now: float,
    ) -> None:
        if segment.payload:
            self._ledger.drops["tcp_data_in_syn"] += 1  # not acknowledged, so it comes again
        offset = self._stamp_offset(local[0], remote[0])
        stamp = int(now * 1000) + offset & MASK32
        full = len(self.half_open) >= HALF_OPEN_LIMIT
        if full or self._half_open_by_host[remote[0]] >= HALF_OPEN_LIMIT_PER_HOST:
            self._ledger.drops["tcp_syn_cookie"] += 1
            self._flooded_at = now
            iss = self._cookies.make(key, segment, now)
            sizes = Sizes(sizes.mss)  # a cookie cannot remember more
            _, reply = answer_syn(segment, local, remote, iss, sizes, self._cookies.stamp(segment, stamp))
            self._replies.append((remote[0], reply))
            return
        agreed, reply = answer_syn(segment, local, remote, self._initial_sequence(key, now), sizes, stamp)
        record = self.half_open[key] = HalfOpen(key, listener, local, remote, agreed, reply, now)
        self._half_open_by_host[remote[0]] += 1
        self._timers.set(record, record.deadline)
        self._replies.append((remote[0], reply))

    def _receive_half_open(self, record: HalfOpen, segment: Segment, data: bytes, sizes: Sizes, now: float) -> None:
        agreed, flags = record.agreed, segment.flags
        drops = self._ledger.drops
        in_window = segment.seq - agreed.irs - 1 & MASK32 < 65535
        if flags & RST:
            if segment.seq == agreed.irs + 1 & MASK32:
                self._drop_half_open(record)
            else:
                drops["tcp.blind_reset"] += 1
        elif flags & SYN:
            if flags & ACK or segment.seq != agreed.irs:
                # Another incarnation of the same four-tuple: only the newest SYN can still complete.
                drops["tcp_syn_changed"] += 1
                self._drop_half_open(record)
                if not flags & ACK:
                    self._receive_syn(record.key, record.listener, segment, record.local, record.remote, sizes, now)
            else:
                self._replies.append((record.remote[0], record.reply))
        elif not flags & ACK or not in_window:
            drops["tcp_handshake_wild"] += 1
        elif segment.ack != agreed.iss + 1 & MASK32:
            drops["tcp.handshake_ack"] += 1
            reply = tcp_packet(record.local, record.remote, segment.ack, 0, RST, 0)
            if self._resets.take(now):
                self._replies.append((record.remote[0], reply))
        elif record.listener.is_full:
            drops["tcp_accept_queue_full"] += 1  # the SYN-ACK goes out again, and the peer's ACK with it
        else:
            self._drop_half_open(record)
            sample = now - record.sent_at
            agreed = agreed._replace(round_trip=sample, resent=record.tries > 0)
            connection = self._new(record.key, record.local, record.remote, sizes, agreed.iss)
            connection.adopt(agreed, segment.window, now)
            record.listener.offer(connection)
            connection.receive_run([data], now)

    def _maybe_open_cookie(
        self,
        key: bytes,
        listener: TcpListen,
        segment: Segment,
        data: bytes,
        local: Address,
        remote: Address,
        sizes: Sizes,
        now: float,
    ) -> bool:
        if now - self._flooded_at > COOKIE_MEMORY:
            return False
        agreed = self._cookies.open(key, segment, now)
        if agreed is None:
            self._ledger.drops["tcp_bad_cookie"] += 1
            return False
        if listener.is_full:
            self._ledger.drops["tcp_accept_queue_full"] += 1
            return True
        connection = self._new(key, local, remote, sizes, agreed.iss)
        connection.adopt(agreed, segment.window, now)
        listener.offer(connection)
        connection.receive_run([data], now)
        return True

    def _drop_half_open(self, record: HalfOpen) -> None:
        if self.half_open.pop(record.key, None) is not None:
            host = record.remote[0]
            self._half_open_by_host[host] -= 1
            if self._half_open_by_host[host] <= 0:
                del self._half_open_by_host[host]
            self._timers.clear(record)

    def on_half_open_timer(self, record: HalfOpen, now: float) -> None:
        if record.tries >= SYN_ACK_RETRIES:
            self._ledger.drops["tcp_handshake_timeout"] += 1
            self._drop_half_open(record)
            return
        record.tries += 1
        record.deadline = now + (1 << record.tries)
        self._timers.set(record, record.deadline)
        self._replies.append((record.remote[0], record.reply))

    # -- TIME-WAIT -------------------------------------------------------------------------------------------------

    def settle(self, connection: TcpConnection, now: float) -> None:
        """A finished connection leaves the table; what ended in TIME-WAIT leaves a record."""
        if self.flows.get(connection.key) is connection:
            del self.flows[connection.key]
        self._timers.clear(connection)
        if connection.state != TIME_WAIT:
            return
        if len(self.time_wait) >= TIME_WAIT_LIMIT:
            self.time_wait.popitem(last=False)
            self._ledger.drops["tcp_time_wait_limit"] += 1
        nxt, rcv_nxt, stamp = connection.last_numbers()
        self.time_wait[connection.key] = TimeWait(now + TIME_WAIT_SECONDS, nxt, rcv_nxt, stamp)

    def _leave_time_wait(
        self, key: bytes, waiting: TimeWait, segment: Segment, local: Address, remote: Address, now: float
    ) -> bool:
        """True when the segment opens a new incarnation and the record is gone."""
        flags, stamps = segment.flags, segment.options.stamps
        if flags & (SYN | ACK | RST) == SYN:
            newer = unwrap(segment.seq, waiting.rcv_nxt) > waiting.rcv_nxt
            if stamps is not None and waiting.stamp is not None:
                newer = newer or 0 < (stamps[0] - waiting.stamp & MASK32) < 0x80000000
            if newer:
                del self.time_wait[key]
                return True
        self._ledger.drops["tcp_time_wait"] += 1
        if not flags & RST and (segment.payload or flags & (SYN | FIN)) and self._resets.take(now):
            reply = tcp_packet(local, remote, waiting.nxt, waiting.rcv_nxt, ACK, 0)
            self._replies.append((remote[0], reply))
        return False

    def expire_time_wait(self, now: float) -> None:
        time_wait = self.time_wait
        while time_wait:
            key, record = next(iter(time_wait.items()))
            if record.expires > now:
                return
            del time_wait[key]
        time_wait.clear()  # gives the table's memory back, which deleting entries does not

    def next_time_wait(self) -> float:
        return next(iter(self.time_wait.values())).expires if self.time_wait else math.inf
