"""One snapshot of everything that is counted, out of what each machine says of itself.

Owns the rule by which numbers are read: in the statistics of a machine, however deep, a field `drops` counts drops by
reason, and every other whole number is a level. Refuses to know the machines; `_assembly.py` lists them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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

    def take(self) -> Counters:
        """The counters now."""
        drops: Counter[str] = Counter()
        levels: dict[str, int] = {}
        for name, one in self._counted.items():
            _read(name, one.statistics(), drops, levels)
        return Counters(_traffic(self._received), _traffic(self._sent), dict(+drops), levels)


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
