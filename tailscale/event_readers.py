"""Everybody who reads the events of one object, each at a pace of their own.

Owns the streams, as long as somebody else holds them. Refuses to know what the events are.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple
from weakref import WeakSet

from tailscale.events import Event, EventStream


class ReaderStatistics(NamedTuple):
    readers: int
    drops: dict[str, int]


class Readers:
    """What one of them is too slow for is counted in `drops`."""

    def __init__(self, drops: Counter[str] | None = None) -> None:
        self.drops: Counter[str] = Counter() if drops is None else drops
        self._streams: WeakSet[EventStream] = WeakSet()  # a reader that is forgotten costs nothing more

    def __len__(self) -> int:
        return len(self._streams)

    def open_stream(self) -> EventStream:
        """One more reader, which hears everything from now on."""
        stream = EventStream(self.drops)
        self._streams.add(stream)
        return stream

    def put(self, event: Event) -> None:
        for stream in list(self._streams):
            stream.put(event)

    def close(self) -> None:
        for stream in list(self._streams):
            stream.close()

    def statistics(self) -> ReaderStatistics:
        return ReaderStatistics(len(self._streams), dict(self.drops))
