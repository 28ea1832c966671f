"""Where datagrams leave the process: straight to UDP, wrapped for a peer relay, or through a relay connection.

One synchronous `send` for everybody. Knows the three shapes of a path and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tailscale.runtime.network import UdpUnderlay
from ts_dataplane import geneve

Path = tuple[Any, ...]
Runs = list[tuple[Path, list[bytes]]]


class Underlay:
    """Dispatches runs by the shape of their path. `send_relayed` is plugged in by the relay actor's owner."""

    def __init__(self, udp: UdpUnderlay | None) -> None:
        self.udp = udp
        self.send_relayed: Callable[[Runs], None] = _drop
        self.bytes_direct = 0
        self.bytes_relayed = 0

    def send(self, runs: Runs) -> None:
        direct: Runs = []
        relayed: Runs = []
        for run in runs:
            path = run[0]
            if type(path[0]) is int:
                relayed.append(run)
            elif len(path) == 2:
                direct.append(run)
            else:  # disco through a peer relay; the engine wraps data itself
                header = geneve.encode_header(geneve.DISCO, path[2])
                direct.append((path[:2], [header + datagram for datagram in run[1]]))
        if direct and self.udp is not None:
            self.udp.send_many(direct)
        if relayed:
            self.send_relayed(relayed)


def _drop(runs: Runs) -> None:
    """Before the relays exist there is nothing to send through; WireGuard and disco both retry."""
