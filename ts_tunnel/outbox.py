"""What one turn leaves for the shell to take: datagrams by peer, in the order they were made, and messages.

Owns the bound on messages that nobody takes. Refuses to know what is inside a datagram, and when one is due.
"""

from __future__ import annotations

from collections import Counter

from ts_base.who import PeerId
from ts_tunnel.drops import MESSAGES_FULL
from ts_tunnel.messages import Message
from ts_tunnel.params import MESSAGES_LIMIT
from ts_tunnel.peer import Peer


class Outbox:
    """Emptied by the endpoint, which swaps both containers for new ones."""

    __slots__ = ("_drops", "datagrams", "messages")

    def __init__(self, drops: Counter[str]) -> None:
        self._drops = drops
        self.datagrams: dict[PeerId, list[bytes]] = {}  # the shell takes them in the same turn
        self.messages: list[Message] = []

    def add(self, peer: Peer, datagrams: list[bytes]) -> None:
        """Data and keepalives, which are counted for the peer. The list is the outbox's from now on."""
        peer.packets_out += len(datagrams)
        peer.bytes_out += sum(map(len, datagrams))
        waiting = self.datagrams.get(peer.id)
        if waiting is None:
            self.datagrams[peer.id] = datagrams
        else:
            waiting += datagrams

    def add_handshake(self, peer: Peer, datagram: bytes) -> None:
        self.datagrams.setdefault(peer.id, []).append(datagram)

    def discard(self, peer_id: PeerId) -> None:
        self.datagrams.pop(peer_id, None)

    def tell(self, message: Message) -> None:
        if len(self.messages) >= MESSAGES_LIMIT:
            self._drops[MESSAGES_FULL] += 1
        else:
            self.messages.append(message)
