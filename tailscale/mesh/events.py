"""What `mesh.events()` yields, and the readers of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakSet

from tailscale.events import Event, EventStream

if TYPE_CHECKING:
    from tailscale.mesh.peers import MeshPeer


@dataclass(frozen=True, slots=True)
class PeerJoined(Event):
    """A device became a member: it announces the app, or said hello to us."""

    peer: MeshPeer


@dataclass(frozen=True, slots=True)
class PeerLeft(Event):
    """A device is no member any more. When it comes back, it is another `MeshPeer`."""

    peer: MeshPeer


@dataclass(frozen=True, slots=True)
class PeerRenamed(Event):
    """A member has another name now."""

    peer: MeshPeer
    before: str


@dataclass(frozen=True, slots=True)
class PeerConnected(Event):
    """A session with a member stands."""

    peer: MeshPeer


@dataclass(frozen=True, slots=True)
class PeerDisconnected(Event):
    """The session with a member ended; what is under way waits for the next."""

    peer: MeshPeer
    reason: str


@dataclass(frozen=True, slots=True)
class TransferDone(Event):
    """A transfer ended, either way: `error` is None where all is in place."""

    peer: MeshPeer
    name: str
    error: Exception | None


class Readers:
    """Everybody who reads `mesh.events()`."""

    def __init__(self, drops: Counter[str]) -> None:
        self._drops = drops
        self._streams: WeakSet[EventStream] = WeakSet()  # a reader that is forgotten costs nothing more

    def open_stream(self) -> EventStream:
        stream = EventStream(self._drops)
        self._streams.add(stream)
        return stream

    def put(self, event: Event) -> None:
        for stream in list(self._streams):
            stream.put(event)

    def close(self) -> None:
        for stream in list(self._streams):
            stream.close()
