"""What an overlay asks and tells of lanes while it transmits: by hop there, by peer here.

Owns the bursts that were made for lanes until the engine takes them. Refuses to know which paths lanes are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ts_base.who import Hop, LaneOffer
from ts_dataplane.spread import Spread
from ts_dataplane.tables import Tables


class HopLanes:
    """`tables` is put in place before each time."""

    def __init__(self, tables: Tables, spread: Spread) -> None:
        self.tables, self.spread = tables, spread
        self._bursts: list[tuple[Hop, int, list[bytes]]] = []

    def offers_to(self, hop: Hop, flow: Hashable, now: float) -> Sequence[LaneOffer]:
        peer = self.tables.peer_for(*hop)
        return () if peer is None else self.spread.lanes(peer, flow, now)

    def send(self, hop: Hop, number: int, packets: list[bytes]) -> None:
        self._bursts.append((hop, number, packets))

    def on_silence(self, hop: Hop, number: int) -> None:
        if (peer := self.tables.peer_for(*hop)) is not None:
            self.spread.on_lane_silent(peer, number)

    def on_lost(self, hop: Hop, number: int, count: int) -> None:
        if (peer := self.tables.peer_for(*hop)) is not None:
            self.spread.on_lane_lost(peer, number, count)

    def on_no_gain(self, hop: Hop, now: float) -> None:
        if (peer := self.tables.peer_for(*hop)) is not None:
            self.spread.on_no_gain(peer, now)

    def take(self) -> list[tuple[Hop, int, list[bytes]]]:
        taken, self._bursts = self._bursts, []
        return taken
