"""The paths of all peers, with several uplinks: what `path_keeping.py` gives to `PeerWays`, and takes from it.

Owns the facts of uplinks, the strategies, and the log of who was heard where. With no uplinks none of it is in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ts_base.ip import TUNNEL_MTU
from ts_base.who import Path, PeerId, is_relayed
from ts_dataplane.flow_spread import FlowSpread, divides
from ts_dataplane.heard_log import HeardLog
from ts_dataplane.path_messages import BestPathChanged, FinderMessage, PathsMoved
from ts_dataplane.path_scoring import PathQuality
from ts_dataplane.path_selection import Ask, Switch
from ts_dataplane.peer_paths import PeerState
from ts_dataplane.peer_ways import PeerWays
from ts_dataplane.strategies import Best, Strategy
from ts_dataplane.uplink_facts import UplinkFacts


class WaysKeeper:
    """What is common to all peers' ways."""

    def __init__(self, uplinks: Iterable[str], paths: Mapping[PeerId, tuple[Path, ...]]) -> None:
        self.names = list(uplinks)  # shared with every peer's candidates, and changed in place
        self.facts: dict[str, UplinkFacts] = {name: UplinkFacts() for name in self.names}
        self.heard = HeardLog()
        self.ways: dict[PeerId, PeerWays] = {}
        self.spread = FlowSpread(paths, self.ways)
        self.switches: Counter[str] = Counter()  # by their reasons
        self.gaps = 0.0  # seconds without a word before them, in all
        self._default: Strategy = Best()
        self._by_peer: dict[PeerId, Strategy] = {}

    def begin(self, peer: PeerId, now: float) -> PeerWays | None:
        if not self.names:
            return None
        made = self.ways[peer] = PeerWays(peer, self.heard.of(peer), self.facts, self.strategy_of(peer), now)
        return made

    def end(self, peer: PeerId) -> None:
        self.ways.pop(peer, None)
        self.spread.striping.forget(peer)

    def strategy_of(self, peer: PeerId) -> Strategy:
        return self._by_peer.get(peer, self._default)

    def set_strategies(self, default: Strategy, by_peer: Mapping[PeerId, Strategy]) -> None:
        self._default, self._by_peer = default, dict(by_peer)
        self.spread.divides = any(map(divides, (default, *by_peer.values())))
        for peer, ways in self.ways.items():
            ways.selection.follow_strategy(self.strategy_of(peer))

    def set_uplinks(self, names: Iterable[str]) -> bool:
        """These are the uplinks from now on; False if they were before."""
        wanted = list(names)
        if wanted == self.names:
            return False
        self.names[:] = wanted
        for name in wanted:
            self.facts.setdefault(name, UplinkFacts())
        for name in self.facts.keys() - set(wanted):
            del self.facts[name]
        return True

    def standings(self) -> Counter[tuple[str, str]]:
        """How many paths of peers in use are in which state, by uplink; relays are ""."""
        return Counter((way.uplink, way.state.value) for ways in self.ways.values() for way in ways.ways.values())

    def qualities(self) -> dict[str, tuple[float, float]]:
        """Seconds of a round trip and the share that is lost, by uplink: the mean of its paths that were measured."""
        found: dict[str, list[tuple[float, float]]] = {}
        for ways in self.ways.values():
            for way in ways.ways.values():
                if way.record.rtt is not None:
                    found.setdefault(way.uplink, []).append((way.record.rtt, way.record.loss))
        return {
            uplink: (sum(rtt for rtt, _ in all_of) / len(all_of), sum(loss for _, loss in all_of) / len(all_of))
            for uplink, all_of in found.items()
        }

    def tend(self, state: PeerState, relay: Path | None, now: float) -> tuple[list[Ask], list[FinderMessage]]:
        """Look after one peer: what to ask, and what became of its paths."""
        ways = state.ways
        assert ways is not None
        paths: list[Path] = [path for path, one in state.candidates.items() if now >= one.blocked_until]
        if ways.peer_relay is not None:
            paths.append(ways.peer_relay)
        if relay is not None:
            paths.append(relay)
        ways.keep(paths, now)
        asks = ways.handle_timer(now)
        messages: list[FinderMessage] = []
        for switch in ways.take_switches():
            self.switches[switch.reason] += 1
            self.gaps += switch.gap or 0.0
            messages += _follow(state, switch, now)
        if ways.take_move():
            messages.append(PathsMoved(state.peer))
        return asks, messages


def _follow(state: PeerState, switch: Switch, now: float) -> list[FinderMessage]:
    path = switch.path
    if path is None or is_relayed(path):
        if state.best is None:
            return []  # by relay it was before
        state.drop_best()
        path = None
    else:
        state.follow(PathQuality(path, switch.latency, TUNNEL_MTU), now)
    return [BestPathChanged(state.peer, path, switch.latency, switch.reason, switch.gap)]
