"""How the datagrams to a peer are laid on its paths: the values users write, and the one function that obeys them.

Owns the choice among paths that are ranked already. Refuses to know how a path's state came about (`path_states.py`),
and what is inside a datagram: a flow is some bytes that tell it from others.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2s
from typing import Protocol

from ts_base.who import Path, is_relayed

SMALL_FLOW = 64 << 10  # bytes sent in the last second, below which a flow is small
COMPANION_DELAY = 0.1  # a copy that comes this much later than the first helps nobody
DEFAULT_WEIGHT = 1.0


@dataclass(frozen=True, slots=True)
class Best:
    """All by one path, the best; another one takes over when it fails, or is clearly better for two seconds."""


@dataclass(frozen=True, slots=True)
class Backup:
    """All by the first of these uplinks that works; those not named come last, metered ones after all others."""

    order: tuple[str, ...] = ()

    def __init__(self, order: Sequence[str] = ()) -> None:
        if isinstance(order, str):
            raise TypeError(f'Backup takes a list of uplinks, such as ["wlan0", "wwan0"], not the text {order!r}')
        object.__setattr__(self, "order", tuple(order))


@dataclass(frozen=True, slots=True)
class Redundant:
    """Copies by several uplinks at once; the peer takes the first of each and drops the others.

    Flows that send less than 64 KiB a second, and whatever opens or ends one, are copied; with `bulk` everything is.
    """

    copies: int = 2
    bulk: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.copies <= 4:
            raise ValueError(f"Redundant sends 2 to 4 copies, each by an uplink of its own, not {self.copies}")


@dataclass(frozen=True, slots=True)
class Spread:
    """Flow by flow over all good paths, by what they carry; a flow keeps its path until that dies."""


@dataclass(frozen=True, slots=True)
class Stripe:
    """One flow over several paths whose round trips differ by less than `spread` seconds.

    This version lays whole flows on paths, as `Spread` does: packets of one flow are not divided yet.
    """

    spread: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.spread <= 10 and math.isfinite(self.spread)):
            raise ValueError(f"the spread of Stripe is seconds, more than 0 and at most 10, not {self.spread!r}")


Strategy = Best | Backup | Redundant | Spread | Stripe
STRATEGIES = (Best, Backup, Redundant, Spread, Stripe)
EVERYBODY = "*"


@dataclass(frozen=True, slots=True)
class Wishes:
    """Which strategy for which peer, by name; `EVERYBODY` is for all that are not named."""

    default: Strategy = field(default_factory=Best)
    by_name: Mapping[str, Strategy] = field(default_factory=dict)


class Ranked(Protocol):
    """A path as the choice sees it, the one in use first, then the best to take its place."""

    @property
    def path(self) -> Path: ...
    @property
    def uplink(self) -> str: ...
    @property
    def is_good(self) -> bool:
        """Answers, and carries datagrams of full size."""

    @property
    def is_usable(self) -> bool:
        """Better than nothing."""

    @property
    def is_doubted(self) -> bool:
        """In use, while it may be dead: what is sent here is sent on the next one too."""

    @property
    def rtt(self) -> float | None: ...
    @property
    def weight(self) -> float:
        """What this path should carry, compared with others; zero for none."""


def choose(records: Sequence[Ranked], strategy: Strategy, flow: Hashable, size: int, now: float) -> tuple[Path, ...]:
    """Where the datagrams of a flow go that has sent `size` bytes in the last second; copies where it names several.

    `flow` is None for what belongs to none: handshakes, keepalives.
    """
    usable = [record for record in records if record.is_usable]
    if not usable:
        return tuple(record.path for record in records[:1])
    if isinstance(strategy, Redundant) and (strategy.bulk or flow is None or size < SMALL_FLOW):
        return _safely(_copied(usable, strategy.copies), usable)
    if isinstance(strategy, Spread | Stripe) and flow is not None:
        good = [record for record in usable if record.is_good and record.weight > 0 and not is_relayed(record.path)]
        if good:
            return _safely((_drawn(good, flow),), usable)
    return _safely((usable[0],), usable)


def _safely(chosen: tuple[Ranked, ...], usable: Sequence[Ranked]) -> tuple[Path, ...]:
    """With a copy by the best other path while all that were chosen are in doubt."""
    if all(record.is_doubted for record in chosen):
        spare = next((record for record in usable if record not in chosen and not record.is_doubted), None)
        spare = spare or next((record for record in usable if record not in chosen), None)
        if spare is not None:
            chosen = (*chosen, spare)
    return tuple(record.path for record in chosen)


def _copied(usable: Sequence[Ranked], copies: int) -> tuple[Ranked, ...]:
    """The first of each uplink that is nearly as fast as the fastest: two copies on one wire share its fate."""
    latest = min((record.rtt or 0.0 for record in usable if record.is_good), default=math.inf) + COMPANION_DELAY
    found: dict[str, Ranked] = {}
    for record in usable:
        if len(found) < copies and record.uplink not in found and (not found or (record.rtt or 0.0) <= latest):
            if not found or record.is_good or record.is_doubted:
                found[record.uplink] = record
    return tuple(found.values())


def _drawn(good: Sequence[Ranked], flow: Hashable) -> Ranked:
    """Rendezvous hashing with weights: a path that goes moves its own flows only, a new one takes its share of each."""

    def score(record: Ranked) -> float:
        digest = blake2s(repr((flow, record.path)).encode(), digest_size=8).digest()
        drawn = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
        return -record.weight / math.log(drawn)

    return max(good, key=score)
