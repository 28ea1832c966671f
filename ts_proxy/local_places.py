"""Addresses that mean something else at each machine: a proxy's clients mean theirs, and would get the proxy's.

Loopback, link-local neighbours, and where clouds tell a machine its secrets. A proxy that leads there lets its clients
act as the machine itself. Tables only.
"""

from __future__ import annotations

from ts_base.ip import is_link_local, is_martian_source, parse_address

# Link-local ones need no line of their own: 169.254.169.254 of most clouds, 169.254.170.2 of ECS.
METADATA = frozenset(map(parse_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192")))
METADATA_NAMES = frozenset(("metadata.google.internal", "metadata.goog", "instance-data"))


def is_local(address: bytes) -> bool:
    """Whether only the machine that dials it knows what `address` is."""
    return is_martian_source(address) or is_link_local(address) or address in METADATA


def is_local_name(name: str) -> bool:
    """The same, of a name (RFC 6761, 6.3)."""
    name = name.lower()
    return name == "localhost" or name.endswith(".localhost") or name in METADATA_NAMES
