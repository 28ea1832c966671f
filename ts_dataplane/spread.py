"""Which of a peer's paths carry which datagrams. Asked once for each peer and run.

Owns that choice and nothing else: which paths there are, and which of them are good, is the path finder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ts_base.who import Path, PathRun, PeerId


class Spread(Protocol):
    """A policy for all peers."""

    def spread(self, peer: PeerId, datagrams: list[bytes], now: float) -> list[PathRun]:
        """The datagrams by path; nothing where `peer` has no path, and then the caller keeps them."""


class EveryPath:
    """A copy on each path in use. The finder names two only while it tries one out: nothing is lost if that fails."""

    def __init__(self, paths: Mapping[PeerId, tuple[Path, ...]]) -> None:
        self._paths = paths

    def spread(self, peer: PeerId, datagrams: list[bytes], now: float) -> list[PathRun]:
        return [(path, datagrams) for path in self._paths.get(peer, ())]
