"""One snapshot of everything that is counted, out of what each machine says of itself.

Owns the rule by which numbers are read: in the statistics of a machine, however deep, a field `drops` counts drops by
reason, and every other whole number is a level. Refuses to know the machines; `_assembly.py` lists them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Protocol

from tailscale.status import Counters, PathTraffic
from ts_dataplane.path_tally import PathTally


class Counted(Protocol):
    """A machine, or whoever else counts: its statistics are a NamedTuple."""

    def statistics(self) -> object: ...


class CountersTaker:
    """One per device."""

    def __init__(self, received: PathTally, sent: PathTally, counted: Mapping[str, Counted]) -> None:
        self._received = received
        self._sent = sent
        self._counted = counted
        self._guests: list[tuple[str, Counted]] = []
        self._left: Counter[str] = Counter()  # drops of guests that are gone: what only grows does not shrink with them

    @contextmanager
    def include(self, name: str, one: Counted) -> Iterator[None]:
        """Count a guest too, while the block lasts. Guests of one name are told as their sum."""
        entry = (name, one)
        self._guests.append(entry)
        try:
            yield
        finally:
            self._guests = [each for each in self._guests if each is not entry]
            _read(name, one.statistics(), self._left, {})

    def take(self) -> Counters:
        """The counters now."""
        drops = Counter(self._left)
        levels: Counter[str] = Counter()
        for name, one in (*self._counted.items(), *self._guests):
            told: dict[str, int] = {}
            _read(name, one.statistics(), drops, told)
            for level, value in told.items():
                levels[level] += value  # and not `update`: a level of nothing is told as well
        return Counters(_traffic(self._received), _traffic(self._sent), dict(+drops), dict(levels))


def _traffic(tally: PathTally) -> dict[str, PathTraffic]:
    return {label: PathTraffic(count.datagrams, count.bytes) for label, count in tally.statistics().items()}


def _read(name: str, value: object, drops: Counter[str], levels: dict[str, int]) -> None:
    if isinstance(value, int):
        levels[name] = int(value)  # yes and no count as 1 and 0
        return
    parts: Mapping[object, object] = {}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        parts = value._asdict()
    elif isinstance(value, Mapping):
        parts = value
    for key, part in parts.items():
        if key == "drops" and isinstance(part, Mapping):
            drops.update(part)
        else:
            word = key.name.lower() if isinstance(key, Enum) else key
            _read(f"{name}.{word}", part, drops, levels)
