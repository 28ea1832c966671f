"""Our addresses: which are ours, and which of them speaks to whom.

Refuses to know what is bound to them. RFC 1122 section 3.3.4.3.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ts_base.who import Hop, PeerId


class OwnAddresses:
    """Shared by a stack and those of its sockets that speak without being connected."""

    __slots__ = ("_always", "_source", "all", "apart", "hops", "services")

    def __init__(self, apart: Sequence[bytes] = ()) -> None:
        self._always = self.apart = frozenset(
            apart
        )  # ours whatever comes; `apart` are never the source of what we open
        self.services: frozenset[bytes] = frozenset()  # apart too, and silent where nothing is bound to them
        self._source: dict[int, bytes] = {}  # by address length
        self.all: frozenset[bytes] = self.apart
        self.hops: frozenset[Hop] = frozenset((address, 0) for address in apart)  # to ourselves

    def replace(self, addresses: Sequence[bytes], services: Sequence[bytes] = ()) -> frozenset[bytes]:
        """These are ours now, the first of each family the source of what we open. Returns those that no longer are."""
        self.services = frozenset(services).difference(addresses, self._always)
        self.apart = self._always | self.services
        lost = self.all.difference(addresses, self.apart)
        self.all = self.apart.union(addresses)
        self.hops = frozenset((address, 0) for address in self.all)
        self._source = {len(address): address for address in reversed(addresses)}
        return lost

    def source_for(self, destination: bytes) -> bytes:
        """OSError where we have no address of its family."""
        if destination in self.all:
            return destination
        source = self._source.get(len(destination))
        if source is None:
            raise OSError(errno.EADDRNOTAVAIL, "we have no address of this family")
        return source

    def hop_to(self, destination: bytes, via: PeerId) -> Hop:
        """No peer leads to ourselves."""
        return (destination, 0 if destination in self.all else via)

    def hears_all(self, address: bytes) -> bool:
        """Whether what is bound to all addresses is bound to this one."""
        return address not in self.services

    def check(self, host: bytes | None) -> None:
        """OSError where `host` is not one of ours; None stands for all."""
        if host is not None and host not in self.all:
            raise OSError(errno.EADDRNOTAVAIL, "not one of our addresses")
