"""A private network of the virtual internet: hosts that only its routers can reach.

Owns which addresses it has and who is in it. The routers are Devices with a leg in it; nobody else gets in, so that a
test shows what goes through them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

from tailscale.testing.network import VirtualHost, VirtualNetwork


class VirtualLan:
    """One private network. `Tailnet.lan` makes it, `Tailnet.router` leads into it."""

    def __init__(self, network: VirtualNetwork, prefix: str, make_host: Callable[..., VirtualHost]) -> None:
        self.prefix = str(ipaddress.ip_network(prefix))
        self._network, self._make_host = network, make_host
        self._free: Iterator[str] = map(str, ipaddress.ip_network(prefix).hosts())
        self.members: set[str] = set()
        """Names of the hosts that are in it."""
        network.fence(self.prefix, self.members)

    def host(self, name: str, address: str = "") -> VirtualHost:
        """A plain machine in it, at the next free address, or at this one."""
        if address and ipaddress.ip_address(address) not in ipaddress.ip_network(self.prefix):
            raise ValueError(f"{address} is not in {self.prefix}")
        while not address:
            candidate = next(self._free, None)
            if candidate is None:
                raise ValueError(f"{self.prefix} has no address left")
            address = candidate if not self._network.has(candidate) else ""
        self.members.add(name)
        return self._make_host(name, address)

    def admit(self, host: VirtualHost) -> None:
        """Give a machine a leg in it."""
        self.members.add(host.name)
        host.networks = (*host.networks, self.prefix)
