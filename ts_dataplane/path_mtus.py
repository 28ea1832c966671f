"""How large a packet each direct path carries beyond the tunnel's MTU: asked by pings of that size, believed as long as
such pings are answered.

Owns the sizes that are asked, when, and what follows. Refuses to know who may be sent large packets: it asks for
whoever is wanted (`large_segments.py`), and knows no TCP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ts_base.timers import Timers
from ts_base.who import Direct, PeerId, is_direct
from ts_dataplane.disco import UNPADDED_PING
from ts_dataplane.path_keeping import WIREGUARD_OVERHEAD, PathKeeper
from ts_dataplane.peer_paths import PeerState
from ts_dataplane.ping_ledger import Outstanding

# Theory of operation
#
# Path MTU discovery by the packetization layer (RFC 8899), one way at a time. A ping as large as the datagram that
# would carry the packet, which nobody may fragment, either comes through or does not; its small pong comes back anyhow.
# So a pong proves that one size in our direction and nothing else, and each side asks for itself: a path may well take
# more one way than the other. ICMP has no say: not the peer's, inside the tunnel, nor the network's, which the sockets
# ignore. What anybody forges can therefore raise nothing, and lower nothing below the tunnel's MTU, which is the floor
# and is never asked about.
#
# A path is asked when a connection that may use large packets has much to send. The sizes are those of networks that
# there are, upwards, each until its pong or until TRIES of them are lost; the last proven one holds. In use it is asked
# again every VERIFY seconds: routers change. When TRIES of those are lost in a row, the path carries the tunnel's MTU
# until it was measured anew, from the smallest size; TCP has noticed sooner, by its own timeout, and meanwhile cuts
# small segments (`segment_sizes.py`). A path without any larger size rests for REST, and above a proven one the next is
# tried every CLIMB_AGAIN seconds. Searches end with the path, or when nobody sends any more.

LINKS = (4000, 8000, 8896, 9000, 16_000, 32_768, 65_535)  # MTUs: Azure's and others', Google's, jumbo frames, loopback
IP4_UDP, IP6_UDP = 28, 48
TRIES = 2
LEAST_PATIENCE = 0.5
VERIFY = 3.0
REST = 60.0
CLIMB_AGAIN = 600.0
MAX_SEARCHES = 256
LARGEST = LINKS[-1] - IP4_UDP - WIREGUARD_OVERHEAD  # packet inside the tunnel that one UDP datagram can carry


def carried_by(link: int, path: Direct) -> int:
    """The largest packet inside the tunnel that a link of this MTU carries."""
    return link - (IP6_UDP if ":" in path[0] else IP4_UDP) - WIREGUARD_OVERHEAD


class PathMtuStatistics(NamedTuple):
    searches: int
    raised: int  # times a larger size was proven
    withdrawn: int  # times a proven one was no longer answered


@dataclass(slots=True)
class _Search:
    """One path being asked. `asked` is the size of the pings under way, 0 where none is."""

    path: Direct
    proven: int = 0
    asked: int = 0
    tries: int = 0
    climb_at: float = -math.inf

    def next_size(self) -> int:
        """The smallest above what is proven; 0 at the end."""
        return next((size for size in (carried_by(link, self.path) for link in LINKS) if size > self.proven), 0)


class PathMtus:
    """One per device. `carried` and `wanted` are shared with the engine."""

    def __init__(self, keeper: PathKeeper) -> None:
        self.carried: dict[Direct, int] = {}
        """The packets that each path carries, 0 where only the usual ones; a path that is missing was never asked."""
        self.wanted: set[PeerId] = set()
        """Whose path somebody would like to use for large packets, and which was never asked."""
        self._keeper = keeper
        self._searches: dict[PeerId, _Search] = {}
        self._due = Timers[PeerId]()  # what follows in each search
        self._raised = self._withdrawn = 0

    def statistics(self) -> PathMtuStatistics:
        return PathMtuStatistics(len(self._searches), self._raised, self._withdrawn)

    def begin(self, now: float) -> bool:
        """Take up what is wanted; True when a search has begun."""
        begun = False
        for peer in self.wanted:
            state = self._keeper.states.get(peer)
            if state is None or not state.is_direct(now) or len(self._searches) >= MAX_SEARCHES:
                continue
            assert state.best is not None
            path = state.best.path
            search = self._searches.get(peer)
            if is_direct(path) and (search is None or search.path != path):
                self._end(peer)
                self._searches[peer] = _Search(path)
                self._due.set(peer, now)
                self.carried[path] = 0
                begun = True
        self.wanted.clear()
        if begun:
            self.handle_timer(now)
        return begun

    def on_pong(self, ping: Outstanding, now: float) -> None:
        """A ping of ours was answered by whom it was sent to."""
        search = self._searches.get(ping.peer)
        if search is None or not search.asked or search.path != ping.path or search.asked != ping.mtu:
            return
        if search.proven != search.asked:
            self._raised += 1
        search.proven = self.carried[search.path] = search.asked
        search.asked = search.tries = 0
        self._due.set(ping.peer, now if now >= search.climb_at and search.next_size() else now + VERIFY)

    def on_network_changed(self) -> None:
        """No path is what it was."""
        for peer in list(self._searches):
            self._end(peer)

    def _end(self, peer: PeerId) -> None:
        self._due.clear(peer)
        search = self._searches.pop(peer, None)
        if search is not None:
            self.carried.pop(search.path, None)

    def next_timer(self) -> float:
        return self._due.next()

    def handle_timer(self, now: float) -> None:
        for peer in self._due.pop_due(now):
            search, state = self._searches[peer], self._keeper.states.get(peer)
            if state is None or state.best is None or state.best.path != search.path or not state.is_awake:
                self._end(peer)
                continue
            waits_until = self._give_up(search, now) if search.asked and search.tries >= TRIES else now
            self._due.set(peer, waits_until if waits_until > now else self._go_on(state, search, now))

    def _go_on(self, state: PeerState, search: _Search, now: float) -> float:
        """Ask once more. When that is to be followed up."""
        if not search.asked:
            search.asked = (search.next_size() if now >= search.climb_at else 0) or search.proven
        if not search.asked:
            return search.climb_at
        assert state.best is not None
        search.tries += 1
        padding = search.asked + WIREGUARD_OVERHEAD - UNPADDED_PING
        self._keeper.ping(state, search.path, now, padding=padding, mtu=search.asked)
        return now + LEAST_PATIENCE + 2 * state.best.latency

    def _give_up(self, search: _Search, now: float) -> float:
        """Nobody answered pings of this size: it is too large, or what was proven holds no more. When to ask again."""
        asked, search.asked, search.tries = search.asked, 0, 0
        if asked <= search.proven:
            self._withdrawn += 1
            search.proven = self.carried[search.path] = 0
            search.climb_at = now
            return now
        search.climb_at = now + (CLIMB_AGAIN if search.proven else REST)
        return now + VERIFY if search.proven else search.climb_at
