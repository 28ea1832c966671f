"""Pings that wait for their pong.

Owns transaction ids and the five seconds after which a ping is forgotten; what an answer or a silence means is
decided in `path_keeping.py`. All pings live equally long, so the oldest is always the next to expire.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

from ts_base.who import Path, PeerId

PING_TIMEOUT = 5.0
MAX_OUTSTANDING = 8192


class Outstanding(NamedTuple):
    peer: PeerId
    disco_key: bytes  # only this key may answer
    path: Path
    sent_at: float
    mtu: int  # the tunnel packet this ping was as large as, 0 for a small one
    token: int  # of the user's ping, 0 for our own


class PingLedger:
    def __init__(self) -> None:
        self._pings: OrderedDict[bytes, Outstanding] = OrderedDict()

    def add(self, transaction: bytes, ping: Outstanding) -> Outstanding | None:
        """Remember a ping; returns the one that had to make room, if any."""
        self._pings[transaction] = ping
        if len(self._pings) > MAX_OUTSTANDING:
            return self._pings.popitem(last=False)[1]
        return None

    def answered(self, transaction: bytes, disco_key: bytes) -> Outstanding | None:
        ping = self._pings.get(transaction)
        if ping is None or ping.disco_key != disco_key:
            return None
        del self._pings[transaction]
        return ping

    def pop_expired(self, now: float) -> list[Outstanding]:
        expired: list[Outstanding] = []
        while self._pings and self.next_timer() <= now:
            expired.append(self._pings.popitem(last=False)[1])
        return expired

    def forget(self, peer: PeerId | None = None) -> list[Outstanding]:
        """Drop the pings of one peer, or of all; returns them."""
        gone = {key: ping for key, ping in self._pings.items() if peer is None or ping.peer == peer}
        for key in gone:
            del self._pings[key]
        return list(gone.values())

    def next_timer(self) -> float:
        for ping in self._pings.values():
            return ping.sent_at + PING_TIMEOUT
        return math.inf

    def __len__(self) -> int:
        return len(self._pings)
