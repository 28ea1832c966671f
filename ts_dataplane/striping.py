"""Which paths of a peer may carry one stream together, and when it is better left to one of them.

Owns that judgement and its memory. Refuses to know TCP: a lane is the number of a path, and who sends by several says
what became of it. Which lane a burst takes is decided where its window is known, in ts_netstack.

Several carry a stream while their round trips differ by less than the strategy's `spread` and none loses more than
one in twenty for two seconds; after a trial without gain not for a minute. Otherwise a stream keeps to one path, as
with `Spread`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from ts_base.who import LaneOffer, Path, PeerId, is_relayed
from ts_dataplane.path_states import ENOUGH_VERDICTS, LOSSY, SUSPECT, Way
from ts_dataplane.peer_ways import PeerWays
from ts_dataplane.strategies import Spread, Stripe, choose

REST, LOSSY_FOR = 60.0, 2.0

DELAY, LOSS, NO_GAIN = "delay", "loss", "no_gain"


class Striping:
    """Of all peers. `fallbacks` counts how often dividing ended though there were several good paths, and why."""

    def __init__(self, ways: Mapping[PeerId, PeerWays]) -> None:
        self._ways = ways
        self._rests_until: dict[PeerId, float] = {}
        self._divided: set[PeerId] = set()
        self._lossy_since: dict[PeerId, float] = {}
        self.fallbacks: Counter[str] = Counter()

    def offers(self, peer: PeerId, flow: Hashable, now: float) -> Sequence[LaneOffer]:
        """The lanes of a flow, the one in use for everything else first; nothing where nothing is to be divided."""
        ways = self._ways.get(peer)
        if ways is None or not isinstance(ways.selection.strategy, Stripe):
            return ()
        lanes = [way for way in ways.selection.ranked() if way.is_usable and not is_relayed(way.path)]
        abreast = self.abreast(peer, now)
        if not abreast:
            chosen = choose(ways.selection.ranked(), Spread(), flow, 0, now)
            abreast = [way for way in lanes if way.path in chosen[:1]]
        return tuple(LaneOffer(way.order, way.rtt or 0.0, way in abreast) for way in lanes)

    def abreast(self, peer: PeerId, now: float) -> list[Way]:
        """The paths that may carry a stream together, each by an uplink of its own; nothing where one has to do."""
        ways = self._ways[peer]
        strategy = ways.selection.strategy
        by_uplink: dict[str, Way] = {}
        for way in ways.selection.ranked():
            if way.is_good and way.is_full and way.weight > 0 and not is_relayed(way.path):
                by_uplink.setdefault(way.uplink, way)
        good = list(by_uplink.values())
        if not isinstance(strategy, Stripe) or len(good) < 2 or now < self._rests_until.get(peer, now):
            self._divided.discard(peer)
            return []
        trips = [way.record.rtt_min(now) or 0.0 for way in good]
        if max(trips) - min(trips) >= strategy.spread:
            return self._fall_back(peer, DELAY)
        if self._is_lossy(peer, good, now):
            return self._fall_back(peer, LOSS)
        self._divided.add(peer)
        return good

    def _is_lossy(self, peer: PeerId, good: list[Way], now: float) -> bool:
        """For a while: a full queue loses much at once, and little on the whole."""
        if not any(way.record.judged >= ENOUGH_VERDICTS and way.record.loss > LOSSY for way in good):
            self._lossy_since.pop(peer, None)
            return False
        return now - self._lossy_since.setdefault(peer, now) >= LOSSY_FOR

    def _fall_back(self, peer: PeerId, why: str) -> list[Way]:
        if peer in self._divided:
            self._divided.remove(peer)
            self.fallbacks[why] += 1
        return []

    def paths_of(self, peer: PeerId, number: int) -> tuple[Path, ...]:
        """Where what was made for a lane goes: nothing where its path is none any more.

        While that one is in doubt, a copy goes by another.
        """
        ways = self._ways.get(peer)
        if ways is None:
            return ()
        lane = next((way for way in ways.ways.values() if way.order == number), None)
        if lane is None or not lane.is_usable:
            return ()
        if lane.state is not SUSPECT:
            return (lane.path,)
        spare = next((way.path for way in ways.selection.ranked() if way is not lane and way.is_usable), None)
        return (lane.path,) if spare is None else (lane.path, spare)

    def forget(self, peer: PeerId) -> None:
        """Nobody talks to it any more."""
        self._divided.discard(peer)
        self._lossy_since.pop(peer, None)
        self._rests_until.pop(peer, None)

    def on_silence(self, peer: PeerId, number: int) -> None:
        """What left by a lane was not answered for too long: whoever looks after the path asks it."""
        ways = self._ways.get(peer)
        if ways is not None:
            ways.on_lane_silent(number)

    def on_lost(self, peer: PeerId, number: int, count: int) -> None:
        """So many bytes that left by a lane had to leave again."""
        ways = self._ways.get(peer)
        if ways is not None:
            ways.on_lane_lost(number, count)

    def on_no_gain(self, peer: PeerId, now: float) -> None:
        """Several paths together carried less than one would have."""
        if peer in self._divided:
            self._fall_back(peer, NO_GAIN)
            self._rests_until[peer] = now + REST
