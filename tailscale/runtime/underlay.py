"""Where datagrams leave the process: straight to UDP, wrapped for a peer relay, or through a relay connection.

One synchronous `send` for everybody. Knows the three shapes of a path and nothing else; where the host has no route to
is told to `on_unreachable`, plugged in by the finder's owner.
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
        self.on_unreachable: Callable[[Path], None] = _ignore
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
            else:  # through a peer relay, disco and data alike
                direct.append((path[:2], geneve.encapsulate(path[2], run[1])))
        if direct and self.udp is not None:
            self.udp.send_many(direct)
            for path in self.udp.take_unreachable():
                self.on_unreachable(path)
        if relayed:
            self.send_relayed(relayed)


def _drop(runs: Runs) -> None:
    """Before the relays exist there is nothing to send through; WireGuard and disco both retry."""


def _ignore(path: Path) -> None:
    """Before a path finder listens, nobody chooses between paths."""
