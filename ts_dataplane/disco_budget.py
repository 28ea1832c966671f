"""How much work strangers may cause with disco datagrams: token buckets, one per sender and lane, one for all.

Owns the buckets only. A key on the envelope proves nothing before it opens, so what comes over a relay (which
vouches for the sender), from the path in use, and from anywhere else never share a bucket.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from ts_base.budget import Budget

SENDER_RATE, SENDER_BURST = 64.0, 256.0
TOTAL_RATE, TOTAL_BURST = 1000.0, 2000.0
MAX_BUCKETS = 4096


class DiscoBudget:
    """May this datagram be opened? Buckets of senders not heard for longest are forgotten first."""

    def __init__(self) -> None:
        self._total = Budget(TOTAL_RATE, TOTAL_BURST)
        self._senders: OrderedDict[Hashable, Budget] = OrderedDict()

    def __len__(self) -> int:
        return len(self._senders)

    def allows(self, sender: Hashable, now: float) -> bool:
        bucket = self._senders.get(sender)
        if bucket is None:
            bucket = self._senders[sender] = Budget(SENDER_RATE, SENDER_BURST)
            if len(self._senders) > MAX_BUCKETS:
                self._senders.popitem(last=False)
        else:
            self._senders.move_to_end(sender)
        return bucket.take(now) and self._total.take(now)
