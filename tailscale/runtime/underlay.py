"""Where datagrams leave the process: straight to UDP, wrapped for a peer relay, or through a relay connection.

One synchronous `send` for everybody, which returns where the host turned out to have no route to. Knows the three
shapes of a path and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tailscale.runtime.network import UdpUnderlay
from tailscale.runtime.udp import HostUdpStatistics
from ts_base.who import Direct, DirectRun, PathRun, RelayedRun, endpoint_of, is_direct, is_relayed
from ts_dataplane import geneve

Runs = list[PathRun]


class RelaySender(Protocol):
    """What the underlay needs of the relay connections."""

    def send(self, runs: list[RelayedRun]) -> None: ...


class UnderlayStatistics(NamedTuple):
    udp: HostUdpStatistics | None
    drops: dict[str, int]


class Underlay:
    """Dispatches runs by the shape of their path. Without a UDP socket everything direct is dropped and counted."""

    def __init__(self, udp: UdpUnderlay | None, relays: RelaySender) -> None:
        self.udp = udp
        self.drops: Counter[str] = Counter()
        self._relays = relays

    def send(self, runs: Sequence[PathRun]) -> list[Direct]:
        """Never blocks. Returns the addresses that the host has no route to."""
        direct: list[DirectRun] = []
        relayed: list[RelayedRun] = []
        for path, datagrams in runs:
            if is_relayed(path):
                relayed.append((path, datagrams))
            elif is_direct(path):
                direct.append((path, datagrams))
            else:  # through a peer relay, disco and data alike
                direct.append((endpoint_of(path), geneve.encapsulate(path[2], datagrams)))
        unreachable: list[Direct] = []
        if direct and self.udp is not None:
            self.udp.send_many(direct)
            unreachable = self.udp.take_unreachable()
        elif direct:
            self.drops["underlay.no_socket"] += sum(len(datagrams) for _, datagrams in direct)
        if relayed:
            self._relays.send(relayed)
        return unreachable

    def statistics(self) -> UnderlayStatistics:
        return UnderlayStatistics(None if self.udp is None else self.udp.statistics(), dict(self.drops))
