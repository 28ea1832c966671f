"""Which of a peer's paths carry which datagrams. Asked once for each peer and run.

Owns that choice and nothing else: which paths there are, and which of them are good, is the path finder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ts_base.who import Path, PathRun, PeerId, PeerRun


class FlowRun(NamedTuple):
    """Packets of one peer's that take the same paths."""

    peer: PeerId
    packets: list[bytes]
    paths: tuple[Path, ...]


class Spread(Protocol):
    """A policy for all peers."""

    @property
    def divides(self) -> bool:
        """Whether flows of some peer go by different paths, so that `divide` has to be asked before they are sealed."""

    def divide(self, runs: list[PeerRun], now: float) -> tuple[list[PeerRun], list[FlowRun]]:
        """The runs of peers to whom all goes the same way, and those of the others, by the paths that they take."""

    def spread(self, peer: PeerId, datagrams: list[bytes], now: float) -> list[PathRun]:
        """The datagrams by path; nothing where `peer` has no path, and then the caller keeps them."""

    def spread_flow(self, run: FlowRun, datagrams: list[bytes], now: float) -> list[PathRun]:
        """What a run that `divide` made has become, by its paths."""


class EveryPath:
    """A copy on each path in use. The finder names two only while it tries one out: nothing is lost if that fails."""

    divides = False

    def __init__(self, paths: Mapping[PeerId, tuple[Path, ...]]) -> None:
        self._paths = paths

    def spread(self, peer: PeerId, datagrams: list[bytes], now: float) -> list[PathRun]:
        return [(path, datagrams) for path in self._paths.get(peer, ())]

    def divide(self, runs: list[PeerRun], now: float) -> tuple[list[PeerRun], list[FlowRun]]:
        return runs, []

    def spread_flow(self, run: FlowRun, datagrams: list[bytes], now: float) -> list[PathRun]:
        return [(path, datagrams) for path in run.paths]
