"""How a connection of a session ends: close codes, and the exception that says so.

Apart from `links.py`, which needs wsproto: its tables take 20 ms to make, and are made with the first session.
"""

from __future__ import annotations

NORMAL, ABNORMAL = 1000, 1006
TRY_LATER = 1013  # among the close codes that IANA keeps for RFC 6455


class LinkLost(Exception):
    """The connection is over; `code` is what the other end said, or ABNORMAL. `is_told`: it is for us to say so."""

    def __init__(self, code: int, reason: str, *, is_told: bool = False) -> None:
        self.code = code
        self.is_told = is_told
        super().__init__(reason)
