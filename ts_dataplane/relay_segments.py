"""How large a packet may be: the tunnel's MTU everywhere, more where a relay carries it all the way.

A relay's price is per frame and a frame holds 64 KiB, so two nodes of this make send each other larger packets through
relays (docs/performance.md). Owns which destinations are told so and which ways carry it. Refuses to know TCP.
"""

from __future__ import annotations

from ts_base.who import Hop
from ts_dataplane.engine import Engine
from ts_dataplane.tables import PeerId

# With WireGuard's and the relay's headers around it, two TLS records.
RELAYED_MTU = 32_688


class Widths:
    """What ts_netstack.stack.Stack asks while it transmits."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def offered_to(self, hop: Hop) -> int:
        return 0 if self._peer_at(hop) is None else RELAYED_MTU

    def carried_to(self, hop: Hop) -> int:
        """While a path is tried out beside the relay, the same packets travel both: the smaller counts."""
        peer = self._peer_at(hop)
        paths = () if peer is None else self._engine.paths.get(peer, ())
        return RELAYED_MTU if paths and all(type(path[0]) is int for path in paths) else 0

    def _peer_at(self, hop: Hop) -> PeerId | None:
        """Only at a peer's own addresses: who answers there has no network of its own behind it."""
        destination, via = hop
        if via:
            return None
        tables = self._engine.tables
        peer = tables.peer_for(destination)
        known = None if peer is None else tables.peers.get(peer)
        return peer if known is not None and destination in known.addresses else None
