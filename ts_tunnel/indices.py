"""Which of our 32-bit indices means what: one table for sessions, one for initiations that wait for a response.

Owns allocation and release, so that no index outlives what it names. An initiation's index becomes its session's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ts_base.who import PeerId
from ts_tunnel.handshake import Initiation
from ts_tunnel.peer import Peer
from ts_tunnel.session import Session
from ts_tunnel.wire import transport_prefix


class Indices:
    __slots__ = ("_entropy", "pending", "sessions")

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self.sessions: dict[bytes, Session] = {}  # by the first eight bytes of the datagrams it opens
        self.pending: dict[int, Peer] = {}

    def allocate(self) -> int:
        """Random, unused, and not zero, which other implementations take for "none"."""
        while True:
            index = int.from_bytes(self._entropy(4), "big")
            if index and index not in self.pending and transport_prefix(index) not in self.sessions:
                return index

    def owner_of(self, index: int) -> PeerId | None:
        """The peer of the session or initiation that has this index."""
        session = self.sessions.get(transport_prefix(index))
        if session is not None:
            return session.peer
        peer = self.pending.get(index)
        return None if peer is None else peer.id

    def add(self, session: Session) -> None:
        self.sessions[session.inbound_prefix] = session

    def remove(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            del self.sessions[session.inbound_prefix]

    def set_pending(self, peer: Peer, initiation: Initiation) -> None:
        """A peer has at most one; the one before it stops being answerable."""
        self.clear_pending(peer)
        peer.pending = initiation
        self.pending[initiation.index] = peer

    def clear_pending(self, peer: Peer) -> None:
        if peer.pending is not None:
            del self.pending[peer.pending.index]
            peer.pending = None
