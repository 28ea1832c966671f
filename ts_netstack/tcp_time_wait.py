"""TIME-WAIT: a tiny record of each connection that ended here, for a minute.

Owns their number and lifetime, and which segment opens a new incarnation. Refuses to know connections.
RFC 9293 section 3.10.7.4, RFC 1337, RFC 6191.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from ts_base.ip_headers import ACK, RST, SYN
from ts_base.who import PeerId
from ts_netstack.ledger import Ledger
from ts_netstack.wire import MASK32, Segment, unwrap

TIME_WAIT_SECONDS = 60.0
TIME_WAIT_LIMIT = 65536


class TimeWait:
    """What must be remembered of a connection that ended here."""

    __slots__ = ("expires", "nxt", "rcv_nxt", "stamp", "via")

    def __init__(self, via: PeerId, expires: float, nxt: int, rcv_nxt: int, stamp: int | None) -> None:
        self.via, self.expires, self.nxt, self.rcv_nxt, self.stamp = via, expires, nxt, rcv_nxt, stamp

    def is_reopened_by(self, segment: Segment) -> bool:
        """A SYN beyond what we heard, or with a later stamp, is a new connection on the same ports (RFC 6191)."""
        if self.via or segment.flags & (SYN | ACK | RST) != SYN:  # an exit answers and opens nothing
            return False
        if unwrap(segment.seq, self.rcv_nxt) > self.rcv_nxt:
            return True
        stamps = segment.options.stamps
        return stamps is not None and self.stamp is not None and 0 < (stamps[0] - self.stamp & MASK32) < 0x80000000


class TimeWaits(OrderedDict[bytes, TimeWait]):
    """By connection key, the oldest first. One that went through an exit keeps that in use."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def add(self, key: bytes, numbers: tuple[int, int, int | None], via: PeerId, now: float) -> None:
        if len(self) >= TIME_WAIT_LIMIT:
            self.forget(next(iter(self)))
            self._ledger.drops["tcp.time_wait_full"] += 1
        self[key] = TimeWait(via, now + TIME_WAIT_SECONDS, *numbers)
        self._ledger.enter_exit(via)

    def forget(self, key: bytes) -> None:
        """Its minute is over, or its ports have a new connection."""
        record = self.pop(key, None)
        if record is not None:
            self._ledger.leave_exit(record.via)

    def expire(self, now: float) -> None:
        while self:
            key, record = next(iter(self.items()))
            if record.expires > now:
                return
            self.forget(key)
        self.clear()  # gives the table's memory back, which deleting entries does not

    def next_expiry(self) -> float:
        return next(iter(self.values())).expires if self else math.inf
