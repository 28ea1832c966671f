"""Which peers there are, by which keys they are known, and through which relay each is reached.

Owns the indexes and the reply routes: where a peer without a home, or one its home has lost, was last heard. Knows no
paths. Kept small: this is all that an idle peer costs.
"""

from __future__ import annotations

from ts_base.who import PeerId, Relayed
from ts_dataplane.peer_paths import PeerPaths


class PeerRoster(dict[PeerId, PeerPaths]):
    """Control's facts by peer; change them through `put` and `remove` only."""

    def __init__(self) -> None:
        super().__init__()
        self.by_disco: dict[bytes, tuple[PeerId, ...]] = {}
        self.by_node: dict[bytes, PeerId] = {}
        self.relay_servers: dict[PeerId, None] = {}
        self._heard_regions: dict[PeerId, int] = {}  # only where it is not the home region
        self._gone: set[PeerId] = set()  # their home relay says it does not know them

    def put(self, peer: PeerId, facts: PeerPaths) -> None:
        before = self.get(peer)
        if before is not None:
            if before.node_key != facts.node_key:
                self.remove(peer)
            else:
                self._unindex(peer, before)
                if before.home_region != facts.home_region:
                    self._gone.discard(peer)
        self[peer] = facts
        self.by_node[facts.node_key] = peer
        if facts.expired:
            return
        if facts.disco_key is not None:
            self.by_disco[facts.disco_key] = (*self.by_disco.get(facts.disco_key, ()), peer)
        if facts.serves_relay:
            self.relay_servers[peer] = None

    def remove(self, peer: PeerId) -> None:
        facts = self.pop(peer)
        self._unindex(peer, facts)
        if self.by_node.get(facts.node_key) == peer:
            del self.by_node[facts.node_key]
        self._heard_regions.pop(peer, None)
        self._gone.discard(peer)

    def _unindex(self, peer: PeerId, facts: PeerPaths) -> None:
        self.relay_servers.pop(peer, None)
        if facts.disco_key is not None:
            others = tuple(other for other in self.by_disco.get(facts.disco_key, ()) if other != peer)
            if others:
                self.by_disco[facts.disco_key] = others
            else:
                self.by_disco.pop(facts.disco_key, None)

    def who(self, disco_key: bytes, named: object) -> PeerId | None:
        """The peer behind a disco key. Several may share one: then `named`, a node key, decides."""
        peers = self.by_disco.get(disco_key, ())
        peer = self.by_node.get(named) if isinstance(named, bytes) else None
        if peer is not None and peer in peers:
            return peer
        return peers[0] if len(peers) == 1 else None

    def relay(self, peer: PeerId) -> Relayed | None:
        """The path through a relay, if any is known."""
        facts = self[peer]
        region = facts.home_region
        heard = self._heard_regions.get(peer)
        if heard and (not region or peer in self._gone):
            region = heard
        return (region, facts.node_key) if region and not facts.expired else None

    def hear(self, peer: PeerId, region: int) -> bool:
        """A peer's proven datagram came through `region`. True when that may change its relay path."""
        if region == self[peer].home_region:
            was_gone = peer in self._gone
            self._gone.discard(peer)
            return self._heard_regions.pop(peer, None) is not None or was_gone
        if self._heard_regions.get(peer) == region:
            return False
        self._heard_regions[peer] = region
        return True

    def lose(self, peer: PeerId, region: int) -> None:
        """The relay of `region` does not know the peer (any more)."""
        if self._heard_regions.get(peer) == region:
            del self._heard_regions[peer]
        if self[peer].home_region == region:
            self._gone.add(peer)
