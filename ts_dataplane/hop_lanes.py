"""What an overlay asks and tells of lanes while it transmits: by hop there, by peer here.

Owns the bursts that were made for lanes until the engine takes them. Refuses to know which paths lanes are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

from ts_base.who import Hop, LaneOffer, PeerId
from ts_dataplane.spread import FlowRun, Spread
from ts_dataplane.tables import Tables


class Routes(Protocol):
    """Who holds the tables."""

    tables: Tables


class HopLanes:
    """`routes` has the tables of this moment, the same from a question to what is sent by the answer."""

    def __init__(self, routes: Routes, spread: Spread) -> None:
        self._routes, self._spread = routes, spread
        self._bursts: list[FlowRun] = []

    def offers_to(self, hop: Hop, flow: Hashable, now: float) -> Sequence[LaneOffer]:
        peer = self._routes.tables.peer_for(*hop)
        return () if peer is None else self._spread.lanes(peer, flow, now)

    def send(self, hop: Hop, number: int, packets: list[bytes]) -> None:
        if (peer := self._routes.tables.peer_for(*hop)) is not None:
            self._bursts.append(FlowRun(peer, packets, self._spread.paths_of_lane(peer, number)))

    def on_silence(self, hop: Hop, number: int) -> None:
        if (peer := self._routes.tables.peer_for(*hop)) is not None:
            self._spread.on_lane_silent(peer, number)

    def on_lost(self, hop: Hop, number: int, count: int) -> None:
        if (peer := self._routes.tables.peer_for(*hop)) is not None:
            self._spread.on_lane_lost(peer, number, count)

    def on_no_gain(self, hop: Hop, now: float) -> None:
        if (peer := self._routes.tables.peer_for(*hop)) is not None:
            self._spread.on_no_gain(peer, now)

    def take(self, sent: set[PeerId], asking: set[PeerId]) -> list[FlowRun]:
        """The bursts; whom they go to is noted in both sets, since a stream that is divided is always answered."""
        taken, self._bursts = self._bursts, []
        if taken:
            peers = {run.peer for run in taken}
            sent |= peers
            asking |= peers
        return taken
