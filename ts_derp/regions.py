"""Relay regions as the client sees them, and which of them is home.

Owns the typed view of a DERP map and the choice of a home with hysteresis, as in net/netcheck/netcheck.go.
Refuses to know the wire form of the map, probing and connections: latencies and the times of relay frames are told.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

DEFAULT_PORT = 443
DEFAULT_HTTP_PORT = 3340
DEFAULT_STUN_PORT = 3478

HISTORY_SPAN = 300.0  # a region is ranked by the best it has shown in this long
HISTORY_LIMIT = 64  # reports kept
FRESH_FRAME = 8.0  # a relay frame this young proves that home is reachable
ABSOLUTE_GAIN = 0.010  # moving home must save this much ...
RELATIVE_GAIN = 2 / 3  # ... and leave at most this share of the old latency


class RelayNode(NamedTuple):
    """One server of a region. An empty address means DNS; any text that is no address switches the family off."""

    name: str
    host_name: str
    cert_name: str = ""
    ipv4: str = ""
    ipv6: str = ""
    stun_port: int = 0  # 0 = 3478, -1 = no STUN
    stun_only: bool = False
    derp_port: int = 0  # 0 = 443
    insecure_for_tests: bool = False
    stun_test_ip: str = ""


class RelayRegion(NamedTuple):
    """Servers that know each other's clients, in order of preference."""

    id: int
    code: str = ""
    name: str = ""
    nodes: tuple[RelayNode, ...] = ()
    no_measure_no_home: bool = False

    @property
    def relays(self) -> tuple[RelayNode, ...]:
        """The nodes that relay, not only answer STUN."""
        return tuple(node for node in self.nodes if not node.stun_only)


@dataclass(frozen=True, slots=True)
class RelayMap:
    regions: Mapping[int, RelayRegion] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)  # latency multipliers; below 1 attracts

    @property
    def home_candidates(self) -> tuple[int, ...]:
        """Regions that may be home, ascending; those marked otherwise only when there is nothing else."""
        usable = sorted(number for number, region in self.regions.items() if region.relays)
        wanted = tuple(number for number in usable if not self.regions[number].no_measure_no_home)
        return wanted or tuple(usable)


class HomeChooser:
    """Remembers what the regions have shown, and moves home only for a gain worth the move."""

    def __init__(self, relay_map: RelayMap, *, seed: bytes = b"") -> None:
        self._map = relay_map
        # Without measurements every device should settle somewhere, always the same, but not all in one place.
        self._seed = int.from_bytes(seed, "big")
        self._history: deque[tuple[float, Mapping[int, float]]] = deque(maxlen=HISTORY_LIMIT)
        self._heard: dict[int, float] = {}
        self.home = 0

    def set_map(self, relay_map: RelayMap) -> None:
        self._map = relay_map
        self._heard = {number: at for number, at in self._heard.items() if number in relay_map.regions}
        if self.home not in relay_map.regions:
            self.home = 0

    def heard(self, region: int, now: float) -> None:
        """A relay frame came from `region`."""
        if region in self._map.regions:
            self._heard[region] = now

    def fallback(self) -> int:
        """The home of a device that could measure nothing; 0 when the map has no relay."""
        candidates = self._map.home_candidates
        return candidates[self._seed % len(candidates)] if candidates else 0

    def choose(self, latencies: Mapping[int, float], now: float, *, began: float | None = None) -> int:
        """Take one report (region -> seconds, what answered since `began`) and say which region is home."""
        candidates = self._map.home_candidates
        report = {r: s for r, s in latencies.items() if r in candidates and 0 <= s < math.inf}
        self._history.append((now, report))
        while self._history and self._history[0][0] < now - HISTORY_SPAN:
            self._history.popleft()
        if self.home not in candidates:
            self.home = 0
        if report:
            self.home = self._best_of(report, now, now if began is None else began)
        elif not self.home:
            # With a home and no answer we stay: peers look for us where they were told.
            self.home = self.fallback()
        return self.home

    def _best_of(self, report: Mapping[int, float], now: float, began: float) -> int:
        best = min(report, key=lambda region: (self._best_shown(region), region))
        if not self.home or best == self.home:
            return best
        heard_at = self._heard.get(self.home, -math.inf)
        if self.home not in report and heard_at < min(began, now - FRESH_FRAME):
            return best
        # A home known only by its frames has no latency to compare: it is alive, so it stays.
        current = report.get(self.home, 0.0) * self._weight(self.home)
        gain = current - self._best_shown(best)
        worth_it = gain >= ABSOLUTE_GAIN and self._best_shown(best) <= RELATIVE_GAIN * current
        return best if worth_it else self.home

    def _best_shown(self, region: int) -> float:
        return min(report[region] for _, report in self._history if region in report) * self._weight(region)

    def _weight(self, region: int) -> float:
        weight = self._map.scores.get(region, 1.0)
        return weight if weight > 0 else 1.0
