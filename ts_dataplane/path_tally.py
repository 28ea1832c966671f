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

    __slots__ = ("_bytes", "_datagrams")

    def __init__(self) -> None:
        self._datagrams = dict.fromkeys((*DIRECT, BY_RELAY, *BY_PEER), 0)
        self._bytes = dict.fromkeys(self._datagrams, 0)

    def add(self, runs: Sequence[PathRun]) -> None:
        datagrams_by, bytes_by = self._datagrams, self._bytes
        for path, datagrams in runs:
            place = path[0]
            if isinstance(place, int):
                label = BY_RELAY
            else:
                label = (DIRECT if len(path) == 2 else BY_PEER)[":" in place]
            datagrams_by[label] += len(datagrams)
            bytes_by[label] += sum(map(len, datagrams))

    def statistics(self) -> dict[PathLabel, PathCount]:
        return {label: PathCount(count, self._bytes[label]) for label, count in self._datagrams.items()}
