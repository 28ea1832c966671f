"""Rates out of counters: what two looks differ by, and the last minute of it. No clock, no screen.

Owns the bound: only what the newest look still has is remembered, and so many looks of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any

LENGTH = 120  # looks
LONGEST_GAP = 30.0  # seconds; after more, a rate would be an average over who knows what

Key = tuple[Hashable, ...]
IN, OUT = "in", "out"


class History:
    """Feed it looks; ask for rates in bytes per second."""

    def __init__(self) -> None:
        self._counters: dict[Key, float] = {}
        self._series: dict[Key, deque[float]] = {}
        self._at = 0.0

    def feed(self, view: dict[str, Any]) -> None:
        """One look. A counter that shrank belongs to another life and begins anew."""
        passed = view["at"] - self._at
        counters = dict(_counters(view))
        series: dict[Key, deque[float]] = {}
        for key, count in counters.items():
            before = self._counters.get(key)
            rate = 0.0
            if before is not None and 0 < passed <= LONGEST_GAP:
                rate = max(0.0, count - before) / passed
            series[key] = self._series.get(key) or deque(maxlen=LENGTH)
            series[key].append(rate)
        self._counters, self._series, self._at = counters, series, view["at"]

    def rate(self, *key: Hashable) -> float:
        """The newest; 0 for what is not there."""
        series = self._series.get(key)
        return series[-1] if series else 0.0

    def series(self, *key: Hashable) -> list[float]:
        """Oldest first."""
        return list(self._series.get(key, ()))


def flow_key(flow: dict[str, Any]) -> Key:
    """What makes a flow the same one in two looks."""
    return flow["protocol"], *flow["local"], *(flow["remote"] or ())


def service_key(flow: dict[str, Any]) -> Key:
    """Flows that are told in one line: of one peer, to one port, in one direction."""
    return flow["peer"] or (flow["remote"] or [""])[0], flow["protocol"], flow["port"], flow["is_inbound"]


def _counters(view: dict[str, Any]) -> Iterator[tuple[Key, float]]:
    """Every counter of a look that is worth a rate."""
    yield ("total", IN), sum(view["received"].values())
    yield ("total", OUT), sum(view["sent"].values())
    for label, count in view["received"].items():
        yield ("path", label, IN), count
    for label, count in view["sent"].items():
        yield ("path", label, OUT), count
    for peer in view["peers"]:
        yield ("peer", peer["id"], IN), peer["received"]
        yield ("peer", peer["id"], OUT), peer["sent"]
        yield ("peer", peer["id"]), peer["received"] + peer["sent"]
    for flow in view["flows"]:
        yield ("flow", flow_key(flow), IN), flow["bytes_received"] or 0
        yield ("flow", flow_key(flow), OUT), flow["bytes_sent"] or 0
