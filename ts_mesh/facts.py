"""What the window is given and what it tells: parcels of ours, and facts about them and about what arrived."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from ts_mesh.envelope import Envelope

NOBODY, SHAPE, TOO_LARGE = "nobody", "shape", "too-large"
REASONS = (NOBODY, SHAPE, TOO_LARGE)
GONE, UNREACHED = "gone", "unreached"  # never said on the wire


@dataclass(eq=False, slots=True)
class Parcel:
    """A message of ours on its way. Replies, refusals and cancellations need no credit: nobody queues them."""

    envelope: Envelope
    is_free: bool = False
    sent: bool = False

    @property
    def size(self) -> int:
        return self.envelope.size


class Arrived(NamedTuple):
    """A message for somebody here. Who takes it calls `took`; else `hold` or `refuse`."""

    envelope: Envelope
    life: int


class Settled(NamedTuple):
    """A parcel of ours is delivered (`why` is empty), or refused for this reason."""

    parcel: Parcel
    why: str


class Answered(NamedTuple):
    """The answer to a parcel of ours that asked."""

    parcel: Parcel
    envelope: Envelope


class Cancelled(NamedTuple):
    """The peer no longer wants an answer to its message of this number."""

    n: int


class Restarted(NamedTuple):
    """The peer is another process than before: what the old one had read is lost with it."""


Fact = Arrived | Settled | Answered | Cancelled | Restarted


class WindowStatistics(NamedTuple):
    """One peer's messages so far."""

    sent: int
    resent: int
    received: int
    bytes_sent: int
    bytes_received: int
    unacked: int
    held: int
    drops: dict[str, int]


@dataclass(slots=True)
class Credit:
    """One namespace of ours at the peer: sizes of what it has not taken yet, oldest first."""

    sizes: deque[int] = field(default_factory=deque)
    total: int = 0

    def add(self, size: int) -> None:
        self.sizes.append(size)
        self.total += size

    def pop(self, count: int) -> None:
        for _ in range(min(count, len(self.sizes))):
            self.total -= self.sizes.popleft()

    def remove(self, size: int) -> None:
        if size in self.sizes:
            self.sizes.remove(size)
            self.total -= size
