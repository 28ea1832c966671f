"""The replay window as a set of every counter ever accepted: slow, forgetful of nothing, plainly right."""

from __future__ import annotations


class GoldenWindow:
    def __init__(self, width: int, limit: int) -> None:
        self._width = width
        self._limit = limit
        self._seen: set[int] = set()

    def accept(self, counter: int) -> bool:
        if counter >= self._limit or counter in self._seen:
            return False
        if self._seen and counter <= max(self._seen) - self._width:
            return False
        self._seen.add(counter)
        return True
