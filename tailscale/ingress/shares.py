"""How many connections one name or one source may have at a time. Owns the counts, and nothing of whose they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ts_base.errors import BadPacket
from ts_base.ip import format_address, parse_address


class Shares:
    """Counts of what is open, by whose it is; nothing is kept of those who have nothing open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.open: dict[str, int] = {}

    @contextlib.contextmanager
    def one(self, who: str) -> Iterator[bool]:
        """One more of theirs while the block lasts; False where they have their share."""
        count = self.open.get(who, 0)
        if count >= self._limit:
            yield False
            return
        self.open[who] = count + 1
        try:
            yield True
        finally:
            self.open[who] -= 1
            if not self.open[who]:
                del self.open[who]


def network_of(host: str) -> str:
    """Whose an address is, as far as it tells: IPv6 is given out by networks of 64 bits."""
    try:
        address = parse_address(host)
    except BadPacket:
        return ""
    return format_address(address if len(address) == 4 else address[:8] + bytes(8))
