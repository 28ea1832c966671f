"""How large a packet may be: the tunnel's MTU everywhere, more where a relay carries it all the way.

A relay's price is per frame and a frame holds 64 KiB, so two nodes of this make send each other larger packets through
relays (docs/performance.md). Owns which hops are told so and which ways carry it. Refuses to know TCP.
"""

from __future__ import annotations

from collections.abc import Mapping

from ts_base.who import Hop, Path, PeerId, is_relayed
from ts_dataplane.tables import Tables

# With WireGuard's and the relay's headers around it, two TLS records.
RELAYED_MTU = 32_688


class RelaySegments:
    """What an overlay asks while it transmits. `tables` is put in place before each time."""

    def __init__(self, tables: Tables, paths: Mapping[PeerId, tuple[Path, ...]]) -> None:
        self.tables = tables
        self._paths = paths

    def offered_to(self, hop: Hop) -> int:
        return 0 if self._peer_at(hop) is None else RELAYED_MTU

    def carried_to(self, hop: Hop) -> int:
        """While a path is tried out beside the relay, the same packets travel both: the smaller counts."""
        peer = self._peer_at(hop)
        paths = () if peer is None else self._paths.get(peer, ())
        return RELAYED_MTU if paths and all(map(is_relayed, paths)) else 0

    def _peer_at(self, hop: Hop) -> PeerId | None:
        """Only at a peer's own addresses: who answers there has no network of its own behind it."""
        peer = self.tables.peer_for(*hop)
        known = None if peer is None else self.tables.peers.get(peer)
        return peer if known is not None and hop[0] in known.addresses else None
