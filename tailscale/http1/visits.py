"""Who is connected to a server, and who must make room: no peer shuts the others out.

A connection is silent while no request of it is being answered. Where a peer has its share of connections, or all are
taken, the one that has been silent longest goes first. Owns the counts; knows neither streams nor requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from tailscale.http1.limits import Limits

PATIENCE_WITH_SILENCE = 5.0  # a silent connection is left alone so long, unless its own peer needs its place
PEERS_COUNTED = 1024  # refusals are told apart by so many peers; those of others are counted together
OTHERS = "others"


@dataclass(eq=False, slots=True)
class Visit:
    """One connection."""

    peer: str
    hang_up: Callable[[], object]
    silent_since: float
    has_left: bool = False


@dataclass(slots=True)
class _Peer:
    """One peer's connections; the silent ones in the order in which they fell silent."""

    open: int = 0
    silent: dict[Visit, None] = field(default_factory=dict)


class ServerStatistics(NamedTuple):
    """What a server has done."""

    connections: int
    """Accepted so far."""
    open: int
    hung_up: int
    """Silent ones that made room."""
    refused: dict[str, int]
    """Connections turned away because their peer had its share and all of it was busy, by the peer's stable id."""


class Visits:
    """The connections of one server. Hand one to `serve` to read its `statistics()` meanwhile."""

    def __init__(self) -> None:
        self._peers: dict[str, _Peer] = {}
        self._open = 0
        self._accepted = self._hung_up = 0
        self._refused: Counter[str] = Counter()
        self._left = trio.Event()

    def statistics(self) -> ServerStatistics:
        """Counts so far."""
        return ServerStatistics(self._accepted, self._open, self._hung_up, dict(self._refused))

    async def wait_for_room(self, limits: Limits) -> None:
        """Wait until one more connection may be accepted."""
        await trio.lowlevel.checkpoint()
        while self._open >= limits.connections:
            greediest = max(self._peers.values(), key=lambda peer: len(peer.silent))
            longest = next(iter(greediest.silent), None)
            until = longest.silent_since + PATIENCE_WITH_SILENCE if longest is not None else float("inf")
            if longest is not None and until <= trio.current_time():
                self._hang_up(longest)
                return
            self._left = trio.Event()
            with trio.move_on_at(until):
                await self._left.wait()

    def admit(self, name: str, hang_up: Callable[[], object], limits: Limits) -> Visit | None:
        """A new connection of a peer, silent as yet; None if it cannot have one more."""
        peer = self._peers.setdefault(name, _Peer())
        if peer.open >= limits.connections_per_peer:
            longest = next(iter(peer.silent), None)
            if longest is None:
                self._refused[name if len(self._refused) < PEERS_COUNTED or name in self._refused else OTHERS] += 1
                return None
            self._hang_up(longest)
        visit = Visit(name, hang_up, trio.current_time())
        peer.open += 1
        peer.silent[visit] = None
        self._open += 1
        self._accepted += 1
        return visit

    def on_request(self, visit: Visit) -> None:
        self._peers[visit.peer].silent.pop(visit, None)

    def on_silence(self, visit: Visit) -> None:
        visit.silent_since = trio.current_time()
        self._peers[visit.peer].silent[visit] = None

    def leave(self, visit: Visit) -> None:
        """It is closed, or counted elsewhere from now on."""
        if visit.has_left:
            return
        visit.has_left = True
        peer = self._peers[visit.peer]
        peer.silent.pop(visit, None)
        peer.open -= 1
        if not peer.open:
            del self._peers[visit.peer]
        self._open -= 1
        self._left.set()

    def _hang_up(self, visit: Visit) -> None:
        self._peers[visit.peer].silent.pop(visit)
        self._hung_up += 1
        visit.hang_up()
