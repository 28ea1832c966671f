"""Which local ports are given away to who asks for none, and the search for one that is free (RFC 6056).

Owns the range. Refuses to know what makes a port free: TCP and UDP each say so.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_PORT, LAST_PORT = 16384, 65535
PORTS = LAST_PORT - FIRST_PORT + 1


def free_port(start: int, is_free: Callable[[int], bool]) -> int:
    """The first free port from the `start`-th on, once around; 0 when all are taken."""
    for step in range(PORTS):
        port = FIRST_PORT + (start + step) % PORTS
        if is_free(port):
            return port
    return 0
