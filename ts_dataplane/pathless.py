"""Sealed datagrams for peers that nobody knows a way to yet: a handshake must not wait for a retry when one is found.

Owns the bounds on them. Refuses to know paths: whoever does asks for what was held when one appears.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ts_base.who import Path, PeerId, PeerRun

HELD_PEERS, HELD_DATAGRAMS = 256, 8
NO_PATH = "engine.no_path"


class Pathless:
    """The newest few for the peers that were sent to last."""

    def __init__(self, drops: Counter[str]) -> None:
        self.held: dict[PeerId, list[bytes]] = {}
        self._drops = drops

    def hold(self, peer: PeerId, datagrams: list[bytes]) -> None:
        waiting = self.held.pop(peer, []) + datagrams
        if len(waiting) > HELD_DATAGRAMS:
            self._drops[NO_PATH] += len(waiting) - HELD_DATAGRAMS
        self.held[peer] = waiting[-HELD_DATAGRAMS:]
        if len(self.held) > HELD_PEERS:
            self._drops[NO_PATH] += len(self.held.pop(next(iter(self.held))))

    def release(self, paths: Mapping[PeerId, tuple[Path, ...]]) -> list[PeerRun]:
        """What was held for peers that have a path now."""
        return [(peer, self.held.pop(peer)) for peer in list(self.held) if paths.get(peer)]
