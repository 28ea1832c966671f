"""Listening: a compact record per half-open connection, cookies when there are too many, a queue of accepted ones.

A listener stays listening whatever is in flight. Owns the SYN-ACK, its retransmission and what a cookie can carry;
refuses to know how connections are kept. RFC 9293 section 3.10.7.2, RFC 4987 section 3.6 (SYN cookies).
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any

from ts_base.ip_headers import ACK, SYN
from ts_netstack.ledger import Ledger
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


class TcpListen:
    """`host` None listens on every own address. `owner` is the holder's slot."""

    __slots__ = ("_ledger", "accepted", "backlog", "host", "is_closed", "owner", "port", "waiting")

    def __init__(self, ledger: Ledger, port: int, host: bytes | None, backlog: int) -> None:
        self._ledger = ledger
        self.port, self.host, self.backlog = port, host, max(backlog, 1)
        self.waiting: deque[TcpConnection] = deque()
        self.owner: Any = None
        self.is_closed = False

    def accept(self) -> TcpConnection | None:
        """The next established connection, or None."""
        return self.waiting.popleft() if self.waiting else None

    @property
    def readable(self) -> bool:
        return bool(self.waiting)

    @property
    def is_full(self) -> bool:
        return len(self.waiting) >= self.backlog

    def offer(self, connection: TcpConnection) -> None:
        self.waiting.append(connection)
        self._ledger.changed[self] = None

    def close(self) -> None:
        """Stop listening; connections nobody accepted are reset. The stack forgets the port at once."""
        self.is_closed = True
        while self.waiting:
            self.waiting.popleft().abort(0.0)
        self._ledger.closed.append(self)
        self._ledger.changed[self] = None

    def __repr__(self) -> str:
        return f"TcpListen({self.port})"


class HalfOpen:
    """SYN-RECEIVED without a connection: what the SYN said and when to answer it again."""

    __slots__ = ("agreed", "deadline", "key", "listener", "local", "remote", "reply", "sent_at", "tries")

    def __init__(
        self,
        key: bytes,
        listener: TcpListen,
        local: Address,
        remote: Address,
        agreed: Handshake,
        reply: bytes,
        now: float,
    ) -> None:
        self.key, self.listener, self.local, self.remote = key, listener, local, remote
        self.agreed, self.reply = agreed, reply
        self.sent_at = now
        self.tries = 0
        self.deadline = now + INITIAL_TIMEOUT


def answer_syn(
    segment: Segment, local: Address, remote: Address, iss: int, sizes: Sizes, stamp: int
) -> tuple[Handshake, bytes]:
    """What a SYN offered met with what we offer, and the SYN-ACK that says so."""
    options = segment.options
    stamps = options.stamps
    if not options.large:
        sizes = Sizes(sizes.mss)
    agreed = Handshake(
        *(iss, segment.seq, options.mss, options.scale, options.sack_permitted),
        *(stamps[0] if stamps else None, 0.0, False, options.large),
    )
    shift = None if options.scale is None else WINDOW_SHIFT
    text = syn_options(sizes, shift, options.sack_permitted, stamp if stamps else None, stamps[0] if stamps else 0)
    return agreed, tcp_packet(local, remote, iss, segment.seq + 1, SYN | ACK, 65535, text)


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
