"""Spreading over several uplinks: every datagram by the paths its peer's strategy names, flow by flow where that asks.

Owns what each flow has sent lately, and the path it keeps; counts what each path carries. The choice itself is
`strategies.choose`; which paths are how good is in `peer_ways.py`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping

from ts_base.who import Path, PathRun, PeerId, PeerRun, is_relayed
from ts_dataplane.peer_ways import PeerWays
from ts_dataplane.spread import FlowRun
from ts_dataplane.strategies import Redundant, Spread, Strategy, Stripe

FLOWS_LIMIT = 4096
SIZE_WINDOW = 1.0


class _Flow:
    __slots__ = ("began", "path", "size")

    def __init__(self, now: float) -> None:
        self.began = now
        self.size = 0
        self.path: Path | None = None


class FlowSpread:
    """A policy of `spread.py`. `ways` and `paths` are the path finder's, and always of this moment."""

    def __init__(self, paths: Mapping[PeerId, tuple[Path, ...]], ways: Mapping[PeerId, PeerWays]) -> None:
        self._paths = paths
        self._ways = ways
        self._flows: OrderedDict[tuple[PeerId, bytes], _Flow] = OrderedDict()
        self.divides = False  # whether any strategy in force asks for flows
        self.sent: Counter[str] = Counter()  # bytes by each uplink; relays are ""
        self.copies = 0  # datagrams that left once more

    def divide(self, runs: list[PeerRun], now: float) -> tuple[list[PeerRun], list[FlowRun]]:
        whole: list[PeerRun] = []
        divided: list[FlowRun] = []
        for peer, packets in runs:
            ways = self._ways.get(peer)
            if ways is None or not divides(ways.selection.strategy) or len(ways.ways) < 2:
                whole.append((peer, packets))
            else:
                divided += self._divided(peer, packets, ways, now)
        return whole, divided

    def _divided(self, peer: PeerId, packets: list[bytes], ways: PeerWays, now: float) -> list[FlowRun]:
        by_flow: dict[bytes, list[bytes]] = {}
        for packet in packets:
            # Protocol, addresses and ports, wherever they stand; of what has none, some bytes that are always the same.
            key = packet[9:10] + packet[12:24] if packet[0] >> 4 == 4 else packet[6:7] + packet[8:44]
            by_flow.setdefault(key, []).append(packet)
        by_paths: dict[tuple[Path, ...], list[bytes]] = {}
        for key, of_flow in by_flow.items():
            flow = self._flow((peer, key), now)
            flow.size += sum(map(len, of_flow))
            by_paths.setdefault(self._paths_of(flow, key, ways, now), []).extend(of_flow)
        return [FlowRun(peer, of_paths, paths) for paths, of_paths in by_paths.items()]

    def _flow(self, key: tuple[PeerId, bytes], now: float) -> _Flow:
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(now)
            if len(self._flows) > FLOWS_LIMIT:
                self._flows.popitem(last=False)
        else:
            self._flows.move_to_end(key)
        elapsed = now - flow.began
        if elapsed >= SIZE_WINDOW:
            flow.began = now
            flow.size = flow.size // 2 if elapsed < 2 * SIZE_WINDOW else 0
        return flow

    def _paths_of(self, flow: _Flow, key: bytes, ways: PeerWays, now: float) -> tuple[Path, ...]:
        if isinstance(ways.selection.strategy, Redundant):
            return ways.selection.choice(now=now, flow=key, size=flow.size)
        kept = ways.ways.get(flow.path) if flow.path is not None and not is_relayed(flow.path) else None
        if kept is not None and kept.is_usable and not kept.is_doubted and ways.selection.allows(kept):
            return (kept.path,)
        chosen = ways.selection.choice(now=now, flow=key, size=flow.size)
        if kept is None or not kept.is_usable or not ways.selection.allows(kept):
            flow.path = chosen[0] if chosen else None
        elif chosen and kept.path not in chosen:
            chosen = (kept.path, *chosen)  # in doubt: it goes on there, with a copy
        return chosen

    def spread(self, peer: PeerId, datagrams: list[bytes], now: float) -> list[PathRun]:
        return self._counted(peer, self._paths.get(peer, ()), datagrams, now)

    def spread_flow(self, run: FlowRun, datagrams: list[bytes], now: float) -> list[PathRun]:
        return self._counted(run.peer, run.paths, datagrams, now)

    def _counted(self, peer: PeerId, paths: tuple[Path, ...], datagrams: list[bytes], now: float) -> list[PathRun]:
        ways = self._ways.get(peer)
        if ways is not None and paths:
            count = sum(map(len, datagrams))
            for path in paths:
                self.sent[ways.on_carried(path, count, now)] += count
            if len(paths) > 1:
                self.copies += (len(paths) - 1) * len(datagrams)
        return [(path, datagrams) for path in paths]


def divides(strategy: Strategy) -> bool:
    """Whether flows to one peer may go by different paths."""
    return isinstance(strategy, Spread | Stripe) or (isinstance(strategy, Redundant) and not strategy.bulk)
