"""What is carried for one peer, and where datagrams reach us.

Owns no counter. What is counted over all peers is in `counters.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import trio

from tailscale.runtime.dataplane import Dataplane
from ts_base.who import PeerId
from ts_tunnel.endpoint import Endpoint


class PeerTraffic(NamedTuple):
    """What WireGuard counted with one peer."""

    bytes_received: int
    bytes_sent: int
    handshake_age: float | None
    unanswered_for: float | None


class Traffic:
    """One per device; everything here is a question."""

    def __init__(self, dataplane: Dataplane, endpoint: Endpoint) -> None:
        self._dataplane = dataplane
        self._endpoint = endpoint

    @property
    def udp_port(self) -> int:
        """Where datagrams reach us; 0 where no UDP socket could be opened."""
        udp = self._dataplane.underlay.udp
        return udp.local_port if udp is not None else 0

    def with_peer(self, peer: PeerId) -> PeerTraffic:
        counted = self._endpoint.peer_statistics(peer)
        now, asking_since = trio.current_time(), self._endpoint.silence_of(peer).asking_since
        age = None if counted.handshake_at is None else max(0.0, now - counted.handshake_at)
        unanswered = None if math.isinf(asking_since) else max(0.0, now - asking_since)
        return PeerTraffic(counted.bytes_in, counted.bytes_out, age, unanswered)
