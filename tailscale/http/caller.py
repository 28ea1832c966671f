"""Who is calling: the tailnet's word on it, never the client's.

The identity goes into the ASGI scope, and into the one header that apps behind `tailscale serve` already read; whatever
a client itself says in headers of that family is removed.
"""

from __future__ import annotations

from email.header import Header
from typing import TYPE_CHECKING, Any

from tailscale.errors import NameNotFound
from tailscale.http1.asgi import Headers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tailscale.device import Device
    from tailscale.sockets.socket_device import Address
    from tailscale.status import Identity

Caller = dict[str, Any]
OURS = b"tailscale-"
PLAIN = bytes(ord(chr(code).lower()) if chr(code).isalnum() and code < 128 else 0x2D for code in range(256))


async def describe_caller(device: Device, address: Address) -> Caller | None:
    """Plain values about the node at `address`; None for a host behind a subnet router, which is nobody's identity."""
    try:
        identity = await device.whois(address)
    except NameNotFound:
        return None
    return describe(identity) if address[0] in identity.node.addresses else None


def describe(identity: Identity) -> Caller:
    """The same of somebody who is known."""
    node = identity.node
    return {
        "id": node.stable_id,
        "node": node.name,
        "hostname": node.hostname,
        "addresses": list(node.addresses),
        "user": None if node.tags else identity.user or None,
        "name": "" if node.tags else identity.display_name,
        "picture": "" if node.tags else identity.picture,
        "tags": list(node.tags),
        "capabilities": identity.capabilities,
    }


def trusted_headers(headers: Iterable[tuple[bytes, bytes]], caller: Caller | None) -> Headers:
    """The client's headers without those only we may set, and with those that are true."""
    return [(n, v) for n, v in headers if not plain_name(n).startswith(OURS)] + identity_headers(caller)


def plain_name(name: bytes) -> bytes:
    """A header's name as the most careless reader takes it: CGI and its kin tell neither case nor signs apart."""
    return name.translate(PLAIN)


def identity_headers(caller: Caller | None) -> Headers:
    """What an app behind `tailscale serve` reads, of people only."""
    if caller is None or not caller["user"]:
        return []
    told = {b"login": caller["user"], b"name": caller["name"], b"profile-pic": caller["picture"]}
    return [(b"tailscale-user-" + key, _header_text(value)) for key, value in told.items() if value]


def _header_text(text: str) -> bytes:
    """ASCII as it is, anything else as RFC 2047 has it."""
    clean = "".join(c for c in text if c.isprintable())
    return clean.encode() if clean.isascii() else Header(clean, "utf-8", maxlinelen=10_000).encode().encode()
