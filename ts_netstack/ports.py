"""Port numbers: which may be asked for, which are given to who asks for any, and when one is taken.

Refuses to know what is bound. RFC 6056.
"""

from __future__ import annotations

from collections.abc import Mapping

FIRST_PORT, LAST_PORT = 16384, 65535
PORTS = LAST_PORT - FIRST_PORT + 1

Bound = tuple[int, bytes | None]  # a port, and the one own address it is for or None for all


def check_port(port: int, lowest: int = 0) -> None:
    if not lowest <= port <= 65535:
        raise ValueError(f"not a port number: {port}")


def numbered(place: int) -> int:
    """One of the ports we choose from."""
    return FIRST_PORT + place % PORTS


def is_taken(table: Mapping[Bound, object], port: int, host: bytes | None) -> bool:
    """Whether binding `port` on `host` would meet somebody."""
    if (port, None) in table or (port, host) in table:
        return True
    return host is None and any(taken == port for taken, _ in table)
