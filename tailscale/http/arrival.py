"""How a connection arrived at a server: its two addresses, and what is known of it besides."""

from __future__ import annotations

from typing import NamedTuple

from tailscale.sockets.socket_device import Address


class Arrival(NamedTuple):
    """Where a connection came from and to, and how."""

    remote_address: Address
    local_address: Address
    is_secure: bool = False
    is_tailnets: bool = True
    """Whether the first is an address of the tailnet: one from elsewhere is nobody's identity."""
    name: str = ""
    """The name that TLS was asked for, where certificates are chosen by it."""
    service: str = ""
    """The Service, `svc:web`, whose address it came to."""
