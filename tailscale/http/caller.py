"""Who is calling: the tailnet's word on it, never the client's.

The identity goes into the ASGI scope, and into the one header that apps behind `tailscale serve` already read; whatever
a client itself says in headers of that family is removed.
"""

from __future__ import annotations

from email.header import Header
from typing import TYPE_CHECKING, Any

from tailscale.errors import NameNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tailscale.device import Device
    from tailscale.sockets.socket_device import Address

Headers = list[tuple[bytes, bytes]]


async def describe_caller(device: Device, address: Address) -> dict[str, Any] | None:
    """Plain values about the node at `address`; None for a host behind a subnet router, which is nobody's identity."""
    try:
        identity = await device.whois(address)
    except NameNotFound:
        return None
    node = identity.node
    if address[0] not in node.addresses:
        return None
    return {
        "id": node.stable_id,
        "node": node.name,
        "hostname": node.hostname,
        "addresses": list(node.addresses),
        "user": None if node.tags else identity.user or None,
        "tags": list(node.tags),
        "capabilities": identity.capabilities,
    }


def trusted_headers(headers: Iterable[tuple[bytes, bytes]], caller: dict[str, Any] | None) -> Headers:
    """The client's headers without those only we may set; underscores count, for CGI and WSGI make them dashes."""
    kept = [(n, v) for n, v in headers if not n.replace(b"_", b"-").startswith(b"tailscale-")]
    if caller is not None and caller["user"]:
        kept.append((b"tailscale-user-login", _header_text(caller["user"])))
    return kept


def _header_text(text: str) -> bytes:
    """ASCII as it is, anything else as RFC 2047 has it."""
    clean = "".join(c for c in text if c.isprintable())
    return clean.encode() if clean.isascii() else Header(clean, "utf-8", maxlinelen=10_000).encode().encode()
