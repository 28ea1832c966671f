"""Nodes as users see them: who a peer is, made from the netmap and never stale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ts_base.ip import format_prefix, parse_prefix

if TYPE_CHECKING:
    from ts_control import wire
    from ts_control.netmap import NetMap


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the tailnet."""

    id: int
    stable_id: str
    name: str
    """The full MagicDNS name, without a trailing dot."""
    hostname: str
    """The first label of the name: what `tcp_connect` takes."""
    addresses: tuple[str, ...]
    online: bool | None
    """None when the control server does not say."""
    last_seen: datetime | None
    os: str
    user: str
    """The owner's login name; "tagged-devices" for tagged nodes."""
    tags: tuple[str, ...]
    expired: bool
    key_expiry: datetime | None
    routes: tuple[str, ...]
    """Subnets this node routes for others."""
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    """Capabilities granted to the node (or, from `whois`, granted to the caller towards us)."""

    @property
    def ipv4(self) -> str | None:
        return next((a for a in self.addresses if ":" not in a), None)

    @property
    def ipv6(self) -> str | None:
        return next((a for a in self.addresses if ":" in a), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "id": self.stable_id,
            "name": self.name,
            "hostname": self.hostname,
            "ipv4": self.ipv4,
            "ipv6": self.ipv6,
            "addresses": list(self.addresses),
            "online": self.online,
            "last_seen": self.last_seen.isoformat() if self.last_seen else None,
            "os": self.os,
            "user": self.user,
            "tags": list(self.tags),
            "expired": self.expired,
            "key_expiry": self.key_expiry.isoformat() if self.key_expiry else None,
            "routes": list(self.routes),
            "capabilities": sorted(self.capabilities),
        }
