"""Packets inside the tunnel, for whoever captures: with their peer, the way they went, and why they were dropped.

Owns the words of that, and the list of who watches. Refuses to know files. A packet is shown where the filter and the
routes have decided on it: what the stack behind them drops of a connection is counted, and not told apart here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import trio

from tailscale.foreign_text import for_terminal
from tailscale.runtime.dataplane import Dataplane
from tailscale.runtime.directory import Directory
from tailscale.runtime.reach import Reach
from ts_base.ip import TSMP
from ts_base.who import Path, PeerId
from ts_dataplane.packets import parse, without_padding

COMMENTS_LIMIT = 1024  # sentences remembered; peers and paths are few


class Sighting(NamedTuple):
    """One packet."""

    at: float  # Unix time
    packet: bytes
    is_inbound: bool
    comment: str


Show = Callable[[Sighting], None]


class WatchStatistics(NamedTuple):
    captures: int
    drops: dict[str, int]


class PacketWatch:
    """One per device."""

    def __init__(self, dataplane: Dataplane, directory: Directory, reach: Reach) -> None:
        self.drops: Counter[str] = Counter()
        self._dataplane = dataplane
        self._directory = directory
        self._reach = reach
        self._captures = 0

    def begin(self, show: Show, peer: PeerId = 0) -> Callable[[], None]:
        """Call `show` with every packet from now on, those of one peer if asked; returns what ends it."""
        offset = self._directory.wall_clock() - trio.current_time()
        tap = _Tap(self._directory, self._reach, show, peer, offset)
        engine = self._dataplane.engine
        engine.watch(tap)
        self._captures += 1
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                engine.unwatch(tap)
                self._captures -= 1

        return end

    def flush(self) -> None:
        """What programs have written so far goes by now, so that whoever stops watching next has seen it."""
        self._dataplane.flush(trio.current_time())

    def statistics(self) -> WatchStatistics:
        return WatchStatistics(self._captures, dict(self.drops))


class _Tap:
    """What the engine shows, in words."""

    def __init__(self, directory: Directory, reach: Reach, show: Show, peer: PeerId, offset: float) -> None:
        self._directory = directory
        self._reach = reach
        self._show = show
        self._only = peer
        self._offset = offset
        self._said: dict[tuple[bool, PeerId, tuple[Path, ...], str], str] = {}

    def heard(self, peer: PeerId, path: Path, packet: bytes, reason: str, now: float) -> None:
        if self._only in (0, peer):
            self._tell(True, peer, (path,), packet, reason, now)

    def sent(self, peer: PeerId, paths: tuple[Path, ...], packets: list[bytes], reason: str, now: float) -> None:
        if self._only in (0, peer):
            for packet in packets:
                self._tell(False, peer, paths, packet, reason, now)

    def _tell(
        self, is_inbound: bool, peer: PeerId, paths: tuple[Path, ...], packet: bytes, reason: str, now: float
    ) -> None:
        key = is_inbound, peer, paths, reason
        comment = self._said.get(key)
        if comment is None:
            if len(self._said) >= COMMENTS_LIMIT:
                self._said.clear()
            comment = self._said[key] = self._sentence(*key)
        if without_padding(packet) and parse(packet).protocol == TSMP:  # what is no packet is shown as it came
            comment += "; between the nodes themselves (TSMP)"
        self._show(Sighting(self._offset + now, packet, is_inbound, comment))

    def _sentence(self, is_inbound: bool, peer: PeerId, paths: tuple[Path, ...], reason: str) -> str:
        node = self._directory.node(peer) if peer else None
        name = for_terminal(node.hostname) if node is not None else "nobody" if not peer else f"peer {peer}"
        ways = " and ".join(str(self._reach.describe(path)) for path in paths) or "no path yet"
        said = f"{'from' if is_inbound else 'to'} {name}" + (f" by {ways}" if peer else "")
        return f"{said}; dropped: {reason}" if reason else said
