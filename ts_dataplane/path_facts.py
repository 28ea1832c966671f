"""One path to a peer as it is told: the same shape with several uplinks and without.

Owns the shape. Refuses to know where its numbers come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ts_base.ip import TUNNEL_MTU
from ts_base.who import Path
from ts_dataplane.path_messages import PathReport

StateName = Literal["unknown", "good", "degraded", "suspect", "dead"]


@dataclass(frozen=True, slots=True)
class PathFacts:
    """Times in seconds, sizes in bytes; None where nothing was measured."""

    path: Path
    state: StateName
    rtt: float | None = None
    rtt_var: float | None = None
    rtt_min: float | None = None
    loss: float = 0.0
    rate: float | None = None
    mtu: int = 0
    sent: int = 0
    received: int = 0
    since: float = 0.0
    why: str = ""


def plain_facts(report: PathReport, now: float) -> list[PathFacts]:
    """Where the system chooses the way: the path in use, the addresses that answered, the relay."""
    found: dict[Path, PathFacts] = {}
    for place, latency in report.candidates:
        if math.isfinite(latency):
            state: StateName = "dead" if place in report.blocked else "good"
            found[place] = PathFacts(place, state, rtt=latency, why="it answered a ping")
        else:
            found[place] = PathFacts(place, "unknown", why="it has not answered")
    if report.best is not None:
        rtt = report.latency if math.isfinite(report.latency) else None
        state = "good" if report.is_trusted else "suspect"
        found[report.best] = PathFacts(report.best, state, rtt=rtt, mtu=TUNNEL_MTU, why="it is in use")
    if report.relay is not None:
        found[report.relay] = PathFacts(report.relay, "good", mtu=TUNNEL_MTU, why="relays are always there")
    return list(found.values())
