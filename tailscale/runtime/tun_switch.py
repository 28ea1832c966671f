"""Puts a TUN device beside the stack and takes it away again, while packets go by.

Owns which overlay stands above the engine, and what all TUN devices of one Device have counted. Refuses to know how
one is made and what it does with packets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from tailscale.runtime.dataplane import Dataplane
from ts_dataplane.overlay import Overlay
from ts_netstack.stack import Stack


class TunStatistics(NamedTuple):
    """What went through a TUN device, in packets; `up` is 1 while there is one."""

    up: int
    read: int
    written: int
    waiting: int
    drops: dict[str, int]


class Both(Overlay, Protocol):
    """An overlay of the stack and a TUN device."""

    def take_back(self, looped: list[bytes]) -> list[bytes]: ...
    def statistics(self) -> TunStatistics: ...


class TunSwitch:
    """One per Device."""

    def __init__(self, stack: Stack, dataplane: Dataplane) -> None:
        self._stack, self._dataplane = stack, dataplane
        self._both: Both | None = None
        self._read = self._written = 0
        self.drops: Counter[str] = Counter()

    @contextmanager
    def turned(self, both: Both) -> Iterator[None]:
        """While the block runs, what no socket of ours waits for is the kernel's."""
        self._both = both
        self._stack.share_loop(both.take_back)
        self._dataplane.use_overlay(both)
        try:
            yield
        finally:
            self._both = None
            self._stack.share_loop()
            self._dataplane.use_overlay(self._stack)
            counted = both.statistics()
            self._read += counted.read
            self._written += counted.written
            self.drops.update(counted.drops)

    def statistics(self) -> TunStatistics:
        now = self._both.statistics() if self._both is not None else TunStatistics(0, 0, 0, 0, {})
        drops = dict(self.drops + Counter(now.drops))
        return TunStatistics(now.up, self._read + now.read, self._written + now.written, now.waiting, drops)
