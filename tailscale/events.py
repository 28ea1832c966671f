"""What `device.events()` yields: typed facts for programs that want to follow along."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Self

import trio

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.status import PathInfo

QUEUE_LIMIT = 256
LAGGED = "events.reader_lagged"


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class LoginNeeded(Event):
    """Somebody has to open this address to approve the device. It is a secret until then, so it is not in the repr."""

    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class StateChanged(Event):
    """The control session moved: connecting, registering, running, offline, expired, ..."""

    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class PeerUp(Event):
    """A node appeared in the tailnet, or came online."""

    node: Node


@dataclass(frozen=True, slots=True)
class PeerDown(Event):
    """A node went offline, or left the tailnet."""

    node: Node


@dataclass(frozen=True, slots=True)
class PeerChanged(Event):
    """Something users can see about a node changed: name, addresses, tags, routes, expiry."""

    before: Node
    node: Node


@dataclass(frozen=True, slots=True)
class PathChanged(Event):
    """Packets to a peer travel another way now."""

    node: Node
    path: PathInfo
    latency: float
    reason: str = ""
    """With several uplinks: `first`, `better`, `silent`, `error`, `lost`, `strategy` or `network`."""
    gap: float | None = None
    """Seconds in which nothing had been heard of the peer; None where nothing failed."""


@dataclass(frozen=True, slots=True)
class UplinkChanged(Event):
    """An uplink came or went, or has other addresses."""

    uplink: str
    up: bool
    why: str


@dataclass(frozen=True, slots=True)
class RelayChanged(Event):
    """Our home relay became another one, or its connection came or went."""

    relay: str
    connected: bool


@dataclass(frozen=True, slots=True)
class NetworkChecked(Event):
    """A look at the network around us found whether UDP works, and so whether direct paths can be hoped for."""

    udp: bool


@dataclass(frozen=True, slots=True)
class HealthChanged(Event):
    """The set of active warnings changed; `device.health` has them all."""

    code: str
    active: bool


@dataclass(frozen=True, slots=True)
class KeyExpiring(Event):
    """Our own node key expires soon: `await device.login()` renews it."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Lagged(Event):
    """The reader was too slow and this many events were dropped here."""

    missed: int


class EventStream:
    """One reader's events, from the moment it was asked for: bounded, and honest about what it dropped.

    Ends when the device is closed. It may be left at any time: nothing has to be closed.
    """

    def __init__(self, drops: Counter[str] | None = None) -> None:
        self._drops = Counter() if drops is None else drops
        self._waiting: deque[Event] = deque()
        self._missed = 0
        self._lot = trio.lowlevel.ParkingLot()
        self._closed = False

    def put(self, event: Event) -> None:
        if len(self._waiting) >= QUEUE_LIMIT:
            self._waiting.popleft()
            self._missed += 1
            self._drops[LAGGED] += 1
        self._waiting.append(event)
        self._lot.unpark_all()

    def close(self) -> None:
        """End the iteration once what has happened is read."""
        self._closed = True
        self._lot.unpark_all()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        await trio.lowlevel.checkpoint()
        while not self._waiting and not self._missed:
            if self._closed:
                raise StopAsyncIteration
            await self._lot.park()
        if self._missed:
            missed, self._missed = self._missed, 0
            return Lagged(missed)
        return self._waiting.popleft()
