"""Which files arrive at once, and from whom: a place is claimed before anything is opened, and given back at the end.

A sender that begins a file anew while an older attempt of its own has been silent for a while takes that one's place:
the attempt was killed, and its connection does not know it yet. Owns the bounds. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

PER_SENDER = 4  # files at once
IN_ALL = 16
SILENT = 5.0  # seconds without a byte, after which an attempt may be replaced by its own sender


@dataclass(eq=False)
class Claim:
    """A file that is arriving."""

    sender: str
    name: str
    moved_at: float
    left: int = 0
    """Bytes that are still to come, as far as its sender said."""

    def move(self, size: int, now: float) -> None:
        """So many bytes came."""
        self.left = max(self.left - size, 0)
        self.moved_at = now


class Crowded(Exception):
    """There is no place; `is_name` if it is this one file that is arriving already."""

    def __init__(self, *, is_name: bool) -> None:
        self.is_name = is_name
        super().__init__("the same file is arriving already" if is_name else "as many files as may are arriving")


class Claims:
    """Of one inbox."""

    def __init__(self) -> None:
        self._claims: dict[tuple[str, str], Claim] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def find(self, sender: str, name: str) -> Claim | None:
        """The attempt under way of this file."""
        return self._claims.get((sender, name))

    def is_silent(self, claim: Claim, now: float) -> bool:
        """Whether its sender may begin anew."""
        return now - claim.moved_at >= SILENT

    def take(self, sender: str, name: str, now: float) -> Claim:
        """A place for a file. Raises Crowded."""
        if (sender, name) in self._claims:
            raise Crowded(is_name=True)
        theirs = sum(claim.sender == sender for claim in self._claims.values())
        if theirs >= PER_SENDER or len(self._claims) >= IN_ALL:
            raise Crowded(is_name=False)
        claim = self._claims[sender, name] = Claim(sender, name, now)
        return claim

    def give_back(self, claim: Claim) -> None:
        if self._claims.get((claim.sender, claim.name)) is claim:
            del self._claims[claim.sender, claim.name]

    def expected(self) -> int:
        """Bytes that are still to come, of all of them."""
        return sum(claim.left for claim in self._claims.values())
