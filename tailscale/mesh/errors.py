"""What can go wrong between the devices of one app. A failed dial stays what it is for the Device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from tailscale.errors import TailscaleError
from tailscale.files import errors
from tailscale.nodes import Node


class Member(Protocol):
    """A `MeshPeer`."""

    @property
    def node(self) -> Node: ...


class MeshError(TailscaleError):
    """Base of what only a mesh can raise."""


class NotInMesh(MeshError, LookupError):
    """No member has this name, address or id; `suggestions` are close ones."""

    def __init__(self, who: str, app: str, names: Iterable[str] = ()) -> None:
        import difflib  # who asks for members that exist needs none of it

        self.who = who
        self.suggestions: Sequence[str] = tuple(difflib.get_close_matches(who, list(names), 3, 0.5))
        meant = f"; did you mean {' or '.join(map(repr, self.suggestions))}?" if self.suggestions else ""
        super().__init__(
            f"no device {who!r} in the mesh {app!r}: it has to run the same app, and peers must be allowed to see "
            f"each other; mesh.peer(..., timeout=) waits for one{meant}"
        )


class AmbiguousPeer(MeshError, LookupError):
    """Several members are meant by this; `candidates` are they."""

    def __init__(self, who: str, candidates: Sequence[Member]) -> None:
        self.candidates = tuple(candidates)
        names = ", ".join(sorted(peer.node.name for peer in candidates))
        super().__init__(f"{who!r} means several devices: use one of {names}")


class PeerGone(MeshError, ConnectionError):
    """The peer left the mesh, or is another process now than the one that was asked."""


class TooManySessions(MeshError, ConnectionError):
    """As many sessions as this mesh allows are open; one of them has to end first."""

    def __init__(self, peer: str, most: int) -> None:
        super().__init__(f"no session with {peer}: {most} are open, as many as MeshLimits(sessions=) allows")


class NobodyListens(MeshError):
    """The peer's program has not subscribed to this namespace, and serves no requests in it."""

    def __init__(self, namespace: str, peer: str) -> None:
        self.namespace = namespace
        super().__init__(f"nobody on {peer} listens to {namespace!r}: subscribe there, or serve requests there")


class MessageTooLarge(MeshError, ValueError):
    """A message is larger than one end allows."""


class WrongShape(MeshError, ValueError):
    """A payload does not fit the type that its reader asked for; `path` says where, if we know."""

    def __init__(self, path: str, detail: str) -> None:
        self.path = path
        super().__init__(detail)


class RemoteError(MeshError):
    """The handler at the other end raised; `kind` is the name of its exception."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        self.message = message
        super().__init__(f"{kind}: {message}" if message else kind)


class TransferRefused(MeshError, errors.TransferRefused):
    """The peer does not take, or does not give, what was asked for; `reason` is its word for why."""

    def __init__(self, reason: str, peer: str = "the peer") -> None:
        super().__init__(reason, f"{peer} refused the transfer: {REFUSALS.get(reason, reason)}")


REFUSALS = {
    "declined": "declined: its Inbox(accept=...) does not want these files",
    "exists": "exists: it has a file of that name already; Inbox(exists=) says whether that may be replaced",
    "too-large": "too-large: more bytes or files than it takes at once; see Inbox(largest=)",
    "no-space": "no-space: its disk is full",
    "busy": "busy: too many transfers, or somebody sends the same file; try again later",
    "not-allowed": "not-allowed: it takes no files (Mesh(receive=)) or shares none of that name (Mesh(share=))",
    "not-found": "not-found: there is nothing of that name below what it shares",
    "unsupported": "unsupported: it does not speak this protocol",
}


class TransferFailed(MeshError, errors.TransferFailed):
    """Files did not arrive whole. `failed` says of each by its name why; what did arrive is kept and not sent again."""
