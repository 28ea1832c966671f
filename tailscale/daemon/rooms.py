"""What a daemon has beside its device and answers for: one file each, and one line here.

A room adds its paths to the socket, upstream's or ours, and runs while a device is usable. It comes after
`localapi.py`, and takes the place of what is refused there until the room is built. Its settings are a section of
`settings.py` and a kind of `parts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tailscale.daemon.answering import Routes
from tailscale.daemon.captures import Captures
from tailscale.daemon.certs import Certificates
from tailscale.daemon.keeper import Keeper
from tailscale.daemon.locks import Locks
from tailscale.device import Device


class Room(Protocol):
    """One of them."""

    def add_to(self, routes: Routes) -> None: ...

    async def run(self, device: Device) -> None:
        """While this device is usable; cancelled at its end."""


ROOMS: tuple[Callable[[Keeper], Room], ...] = (Captures, Locks, Certificates)
