"""Listening: a compact record per half-open connection, cookies when there are too many, a queue of accepted ones.

A listener stays listening whatever is in flight, and no peer can fill it against the others. Owns the SYN-ACK, its
retransmission and what a cookie can carry; refuses to know how connections are kept. RFC 9293 section 3.10.7.2,
RFC 4987 section 3.6 (SYN cookies).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque

from ts_base.ip_headers import ACK, SYN
from ts_base.who import Hop
from ts_netstack.arrivals import Arrival
from ts_netstack.ledger import Ledger, Socket
from ts_netstack.path_sizes import SegmentLimits, offered_segment_size
from ts_netstack.tcp import TcpConnection
from ts_netstack.tcp_inbound import WINDOW_SHIFT
from ts_netstack.tcp_states import Handshake
from ts_netstack.tcp_timing import INITIAL_TIMEOUT
from ts_netstack.wire import MASK32, Address, Segment, Sizes, syn_options, tcp_packet

DEFAULT_BACKLOG = 1024  # accepted connections nobody has asked for yet
HALF_OPEN_LIMIT = 1024
HALF_OPEN_LIMIT_PER_HOST = 128
SYN_ACK_RETRIES = 5
COOKIE_MSS = (536, 1024, 1220, 1240, 1300, 1360, 1440, 1460)
COOKIE_PERIOD = 64.0
COOKIE_STAMP_MASK = 0x3F  # low bits of TSval that carry the options: 4 of scale, one of SACK


class TcpListen(Socket):
    """`host` None listens on every own address.

    Established connections wait in a queue for each address they came from, and the addresses take turns in `accept`.
    None may have more waiting than there is room left for others (Choudhury and Hahne's dynamic threshold): alone it
    gets half of the backlog, and there is always room for a newcomer.
    """

    __slots__ = ("_ledger", "_waiting", "backlog", "host", "is_closed", "port", "waiting")

    def __init__(self, ledger: Ledger, port: int, host: bytes | None, backlog: int) -> None:
        super().__init__()
        self._ledger = ledger
        self.port, self.host, self.backlog = port, host, max(backlog, 1)
        self._waiting: OrderedDict[bytes, deque[TcpConnection]] = OrderedDict()
        self.waiting = 0
        self.is_closed = False

    def accept(self) -> TcpConnection | None:
        """The next established connection, or None."""
        if not self.waiting:
            return None
        host, queue = self._waiting.popitem(last=False)
        self.waiting -= 1
        connection = queue.popleft()
        if queue:
            self._waiting[host] = queue
        return connection

    @property
    def readable(self) -> bool:
        return self.waiting > 0

    @property
    def is_full(self) -> bool:
        return self.waiting >= self.backlog

    def has_room_for(self, host: bytes) -> bool:
        """Whether one more connection from `host` may wait here."""
        return len(self._waiting.get(host, ())) < self.backlog - self.waiting

    def offer(self, connection: TcpConnection) -> None:
        self._waiting.setdefault(connection.remote[0], deque()).append(connection)
        self.waiting += 1
        self._ledger.changed[self] = None

    def close(self) -> None:
        """Stop listening; connections nobody accepted are reset. The stack forgets the port at once."""
        self.is_closed = True
        while (connection := self.accept()) is not None:
            connection.abort(0.0)
        self._ledger.closed.append(self)
        self._ledger.changed[self] = None

    def __repr__(self) -> str:
        return f"TcpListen({self.port})"


class HalfOpen:
    """SYN-RECEIVED without a connection: what the SYN said and when to answer it again.

    The answer is written when it first leaves: only then is known what the way to the peer carries.
    """

    __slots__ = (
        *("agreed", "deadline", "key", "large", "listener", "local", "mss", "remote", "reply", "sent_at", "stamp"),
        "tries",
    )

    def __init__(self, arrival: Arrival, listener: TcpListen, agreed: Handshake, stamp: int, now: float) -> None:
        self.key, self.local, self.remote = arrival.key, arrival.local, arrival.remote
        self.listener = listener
        self.agreed, self.stamp, self.mss = agreed, stamp, arrival.mss
        self.large = 0  # what we offered beside the MSS
        self.reply = b""
        self.sent_at = now
        self.tries = 0
        self.deadline = now + INITIAL_TIMEOUT

    def answer(self, limits: SegmentLimits | None) -> tuple[Hop, bytes]:
        """The SYN-ACK, the same each time."""
        hop = (self.remote[0], 0)
        if not self.reply:
            if limits is not None and self.agreed.large:
                self.large = offered_segment_size(hop, limits)
            sizes = Sizes(self.mss, self.large)
            self.reply = syn_ack(self.local, self.remote, self.agreed, sizes, self.stamp)
        return hop, self.reply


def syn_ack(local: Address, remote: Address, agreed: Handshake, sizes: Sizes, stamp: int) -> bytes:
    """The answer that says what we take and what of the peer's offers we use."""
    shift = None if agreed.peer_shift is None else WINDOW_SHIFT
    is_stamped = agreed.stamp is not None
    text = syn_options(sizes, shift, agreed.selective, stamp if is_stamped else None, agreed.stamp or 0)
    return tcp_packet(local, remote, agreed.iss, agreed.irs + 1, SYN | ACK, 65535, text)


class Cookies:
    """State that travels with the peer: a sequence number only we could have chosen, options inside the timestamp."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _hash(self, key: bytes, irs: int, counter: int) -> int:
        text = key + (irs & MASK32).to_bytes(4, "big") + counter.to_bytes(8, "big")
        return int.from_bytes(hashlib.blake2s(text, key=self._secret, digest_size=3).digest(), "big")

    def make(self, key: bytes, segment: Segment, now: float) -> int:
        """An initial sequence number: 24 bits of keyed hash, 5 of a minute counter, 3 of an MSS."""
        counter = int(now / COOKIE_PERIOD)
        offered = segment.options.mss or COOKIE_MSS[0]
        index = max((i for i, mss in enumerate(COOKIE_MSS) if mss <= offered), default=0)
        return self._hash(key, segment.seq, counter) << 8 | (counter & 31) << 3 | index

    def stamp(self, segment: Segment, stamp: int) -> int:
        """A TSval just below `stamp` whose low bits remember window scale and SACK."""
        scale = segment.options.scale
        bits = (15 if scale is None else scale) | (32 if segment.options.sack_permitted else 0)
        return (stamp & ~COOKIE_STAMP_MASK | bits) - (COOKIE_STAMP_MASK + 1) & MASK32

    def open(self, key: bytes, segment: Segment, now: float) -> Handshake | None:
        """The handshake this ACK completes, if the cookie is ours and fresh."""
        iss, irs = segment.ack - 1 & MASK32, segment.seq - 1 & MASK32
        newest = int(now / COOKIE_PERIOD)
        for counter in (newest, newest - 1):
            if counter >= 0 and counter & 31 == iss >> 3 & 31 and self._hash(key, irs, counter) == iss >> 8:
                break
        else:
            return None
        stamps = segment.options.stamps
        if stamps is None:
            return Handshake(iss, irs, COOKIE_MSS[iss & 7], None, False, None, 0.0, False)
        bits = stamps[1] & COOKIE_STAMP_MASK
        scale = None if bits & 15 == 15 else bits & 15
        return Handshake(iss, irs, COOKIE_MSS[iss & 7], scale, bool(bits & 32), stamps[0], 0.0, False)
