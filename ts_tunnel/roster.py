"""Who may talk to us: the peer set, by id and by key, and a `Peer` for each that was ever talked to.

Owns the rule that a key belongs to one peer and is never our own: who brings such a key is passed over until it is
free. Refuses to know sessions and time; whoever is dropped here is handed back, so that the endpoint lets go of it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from ts_base.keys import KEY_LENGTH
from ts_base.who import PeerId
from ts_tunnel.peer import Peer


class Roster:
    """A peer that was never talked to costs two dict entries."""

    __slots__ = ("_ids", "_keys", "_passed_over", "active")

    def __init__(self) -> None:
        self._keys: dict[PeerId, bytes] = {}
        self._ids: dict[bytes, PeerId] = {}
        self._passed_over: dict[PeerId, bytes] = {}  # their key is another peer's, or our own
        self.active: dict[PeerId, Peer] = {}  # those talked to; stays the same dict

    def __len__(self) -> int:
        return len(self._keys)

    def missing_from(self, peers: Container[PeerId]) -> list[PeerId]:
        return [peer_id for peer_id in (*self._keys, *self._passed_over) if peer_id not in peers]

    def change(self, changed: Mapping[PeerId, bytes], removed: Iterable[PeerId], *, own: bytes) -> list[Peer]:
        """Costs no more than what is said. Returns the peers dropped, those among them whose key is a new one."""
        if any(len(public) != KEY_LENGTH for public in changed.values()):
            raise ValueError(f"a node key has {KEY_LENGTH} bytes")
        keys, ids = self._keys, self._ids
        dropped: list[Peer] = []
        for peer_id in removed:
            self._passed_over.pop(peer_id, None)
            if peer_id in keys:
                dropped += self._drop(peer_id)
        for peer_id, public in changed.items():
            if keys.get(peer_id, public) != public:
                dropped += self._drop(peer_id)
        waiting = {**self._passed_over, **changed} if self._passed_over else changed
        self._passed_over = {}
        for peer_id, public in waiting.items():
            if peer_id in keys:
                continue
            if public in ids or public == own:
                self._passed_over[peer_id] = public
            else:
                keys[peer_id] = public
                ids[public] = peer_id
        return dropped

    def drop_key(self, public: bytes) -> list[Peer]:
        """Nobody has this key any more: it is our own now."""
        return self._drop(self._ids[public]) if public in self._ids else []

    def _drop(self, peer_id: PeerId) -> list[Peer]:
        del self._ids[self._keys.pop(peer_id)]
        peer = self.active.pop(peer_id, None)
        return [] if peer is None else [peer]

    def peer(self, peer_id: PeerId) -> Peer | None:
        """The peer, active from now on; None when nobody has that id."""
        peer = self.active.get(peer_id)
        if peer is None and peer_id in self._keys:
            peer = self.active[peer_id] = Peer(peer_id, self._keys[peer_id])
        return peer

    def peer_with_key(self, public: bytes) -> Peer | None:
        peer_id = self._ids.get(public)
        return None if peer_id is None else self.peer(peer_id)
