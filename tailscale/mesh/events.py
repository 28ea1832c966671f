"""What `mesh.events()` yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailscale.events import Event

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
