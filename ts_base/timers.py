"""Deadlines by name: a heap with lazy deletion, for rooms that keep many timers.

`next()` is exact; setting and clearing cost O(log n). Knows no clock: `now` is an argument.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


class Timers(Generic[Name]):
    """At most one deadline per name; setting a name again replaces its deadline."""

    __slots__ = ("_deadlines", "_heap", "_order")

    def __init__(self) -> None:
        self._deadlines: dict[Name, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, Name]] = []
        self._order = itertools.count()  # ties pop in the order they were set, and names need no ordering

    def set(self, name: Name, deadline: float) -> None:
        current = self._deadlines.get(name)
        if current is not None and current[0] == deadline:
            return
        ticket = next(self._order)
        self._deadlines[name] = (deadline, ticket)
        heapq.heappush(self._heap, (deadline, ticket, name))
        # Lazy deletion must not let a timer that is moved for ever grow the heap.
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._deadlines):
            self._heap = [(at, order, key) for key, (at, order) in self._deadlines.items()]
            heapq.heapify(self._heap)

    def clear(self, name: Name) -> None:
        self._deadlines.pop(name, None)

    def get(self, name: Name) -> float:
        """The deadline of `name`, or infinity."""
        entry = self._deadlines.get(name)
        return math.inf if entry is None else entry[0]

    def next(self) -> float:
        """The earliest deadline, or infinity."""
        heap, deadlines = self._heap, self._deadlines
        while heap:
            at, ticket, name = heap[0]
            if deadlines.get(name) == (at, ticket):
                return at
            heapq.heappop(heap)
        return math.inf

    def pop_due(self, now: float) -> list[Name]:
        """Remove and return every name whose deadline has come, earliest first."""
        due: list[Name] = []
        while self.next() <= now:
            name = heapq.heappop(self._heap)[2]
            del self._deadlines[name]
            due.append(name)
        return due

    def __len__(self) -> int:
        return len(self._deadlines)

    def __contains__(self, name: object) -> bool:
        return name in self._deadlines
