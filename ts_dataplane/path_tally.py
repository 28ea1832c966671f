"""How much WireGuard went by each kind of path: datagrams and bytes, one addition per run.

Owns the kinds. Refuses to know peers, and what a socket makes of what it is handed: that is counted as a drop there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ts_base.who import PathRun

# The label `path` of upstream's tailscaled_inbound_bytes_total and its three sisters.
PathLabel = Literal["direct_ipv4", "direct_ipv6", "derp", "peer_relay_ipv4", "peer_relay_ipv6"]
BY_RELAY: PathLabel = "derp"
DIRECT: tuple[PathLabel, PathLabel] = ("direct_ipv4", "direct_ipv6")
BY_PEER: tuple[PathLabel, PathLabel] = ("peer_relay_ipv4", "peer_relay_ipv6")


class PathCount(NamedTuple):
    """Without the framing below WireGuard: UDP's, DERP's, Geneve's."""

    datagrams: int
    bytes: int


class PathTally:
    """One direction's."""

    __slots__ = ("_by_peer", "_by_relay", "_direct")

    def __init__(self) -> None:
        # Datagrams and bytes; where there are two, of IPv4 and of IPv6.
        self._by_relay = [0, 0]
        self._direct = [0, 0], [0, 0]
        self._by_peer = [0, 0], [0, 0]

    def add(self, runs: Sequence[PathRun]) -> None:
        for path, datagrams in runs:
            place = path[0]
            if isinstance(place, int):
                count = self._by_relay
            else:
                count = (self._direct if len(path) == 2 else self._by_peer)[":" in place]
            if len(datagrams) == 1:  # small things are many
                count[0] += 1
                count[1] += len(datagrams[0])
            else:
                count[0] += len(datagrams)
                count[1] += sum(map(len, datagrams))

    def statistics(self) -> dict[PathLabel, PathCount]:
        labels = (*DIRECT, BY_RELAY, *BY_PEER)
        counts = (*self._direct, self._by_relay, *self._by_peer)
        return {label: PathCount(*count) for label, count in zip(labels, counts, strict=True)}
