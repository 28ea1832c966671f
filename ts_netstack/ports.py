"""Which local ports are given away to who asks for none, the search for a free one, and when a bound one is taken.

Owns the range. Refuses to know what is bound: TCP and UDP each say so. RFC 6056.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

FIRST_PORT, LAST_PORT = 16384, 65535
PORTS = LAST_PORT - FIRST_PORT + 1

Bound = tuple[int, bytes | None]  # a port, and the one own address it is for or None for all


def check_port(port: int, lowest: int = 0) -> None:
    if not lowest <= port <= 65535:
        raise ValueError(f"not a port number: {port}")


def free_port(start: int, is_free: Callable[[int], bool]) -> int:
    """The first free port from the `start`-th on, once around; 0 when all are taken."""
    for step in range(PORTS):
        port = FIRST_PORT + (start + step) % PORTS
        if is_free(port):
            return port
    return 0


def is_taken(
    table: Mapping[Bound, object], port: int, host: bytes | None, apart: frozenset[bytes] = frozenset()
) -> bool:
    """Whether binding `port` on `host` would meet somebody. All addresses do not mean those that are `apart`."""
    if host in apart:
        return (port, host) in table
    if (port, None) in table or (port, host) in table:
        return True
    return host is None and any(taken == port and where not in apart for taken, where in table)
