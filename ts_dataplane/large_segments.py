"""How large a packet may be: the tunnel's MTU everywhere, more where a relay or a direct path carries it all the way.

A relay's price is per frame and a frame holds 64 KiB; a direct path is sealed and sent by the datagram, and in data
centres and on one machine those may be large. So two nodes of this make send each other larger packets
(docs/performance.md). Owns which hops are told so and which ways carry it. Refuses to know TCP, and how a path was
measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from ts_base.who import Direct, Hop, Path, PeerId, is_direct, is_relayed
from ts_dataplane.path_mtus import LARGEST
from ts_dataplane.tables import Tables

# With WireGuard's and the relay's headers around it, two TLS records.
RELAYED_MTU = 32_688


class LargeSegments:
    """What an overlay asks while it transmits. `tables` is put in place before each time."""

    def __init__(
        self,
        tables: Tables,
        paths: Mapping[PeerId, tuple[Path, ...]],
        measured: Mapping[Direct, int] | None = None,
        wanted: set[PeerId] | None = None,
    ) -> None:
        """`measured` are the sizes of direct paths; in `wanted` stand the peers whose path should be measured."""
        self.tables = tables
        self._paths = paths
        self._measured = {} if measured is None else measured
        self._wanted = set() if wanted is None else wanted

    def offered_to(self, hop: Hop) -> int:
        return 0 if self._peer_at(hop) is None else LARGEST

    def carried_to(self, hop: Hop) -> int:
        """While a path is tried out beside the relay, the same packets travel both: the smaller counts."""
        peer = self._peer_at(hop)
        paths = () if peer is None else self._paths.get(peer, ())
        return min([self._carried_by(path, peer) for path in paths], default=0) if peer is not None else 0

    def _carried_by(self, path: Path, peer: PeerId) -> int:
        if is_relayed(path):
            return RELAYED_MTU
        if not is_direct(path):
            return 0
        size = self._measured.get(path)
        if size is None:
            self._wanted.add(peer)
        return size or 0

    def _peer_at(self, hop: Hop) -> PeerId | None:
        """Only at a peer's own addresses: who answers there has no network of its own behind it."""
        peer = self.tables.peer_for(*hop)
        known = None if peer is None else self.tables.peers.get(peer)
        return peer if known is not None and hop[0] in known.addresses else None
