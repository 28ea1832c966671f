"""When each peer was last heard on which path: stamped once per run, after the tunnel's window has accepted it.

Owns the stamps and their bound. Kept only where there are several uplinks; refuses to know what follows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container

from ts_base.who import Path, PeerId, is_relayed, uplink_of

PATHS_LIMIT = 64  # of one peer: its address may be rewritten for every datagram


class Heard:
    """What came by one path."""

    __slots__ = ("at", "bytes", "uplink")

    def __init__(self, path: Path) -> None:
        self.at = -math.inf
        self.bytes = 0
        self.uplink = "" if is_relayed(path) else uplink_of(path)


class HeardOfPeer(dict[Path, Heard]):
    """What one peer said, by path; `at` and `runs` are of all of them."""

    __slots__ = ("at", "runs")

    def __init__(self) -> None:
        super().__init__()
        self.at = -math.inf
        self.runs = 0


class HeardLog(dict[PeerId, HeardOfPeer]):
    """Of every peer that was heard; `received`: the tunnel's bytes by each uplink, for good."""

    def __init__(self) -> None:
        super().__init__()
        self.received: Counter[str] = Counter()

    def note(self, peer: PeerId, path: Path, packets: list[bytes], now: float) -> None:
        of_peer = self.of(peer)
        heard = of_peer.get(path)
        if heard is None:
            if len(of_peer) >= PATHS_LIMIT:
                del of_peer[min(of_peer, key=lambda one: of_peer[one].at)]
            heard = of_peer[path] = Heard(path)
        heard.at = of_peer.at = now
        of_peer.runs += 1
        count = sum(map(len, packets))
        heard.bytes += count
        self.received[heard.uplink] += count

    def of(self, peer: PeerId) -> HeardOfPeer:
        found = self.get(peer)
        if found is None:
            found = self[peer] = HeardOfPeer()
        return found

    def forget_others(self, peers: Container[PeerId]) -> None:
        """Peers come and go."""
        for peer in [peer for peer in self if peer not in peers]:
            del self[peer]
