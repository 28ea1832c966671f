"""What can go wrong between the devices of one app. A failed dial stays what it is for the Device."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tailscale.errors import TailscaleError

if TYPE_CHECKING:
    from tailscale.mesh.peers import MeshPeer


class MeshError(TailscaleError):
    """Base of what only a mesh can raise."""


class NotInMesh(MeshError, LookupError):
    """No member has this name, address or id; `suggestions` are close ones."""

    def __init__(self, who: str, app: str, names: Iterable[str] = ()) -> None:
        self.who = who
        self.suggestions: Sequence[str] = tuple(difflib.get_close_matches(who, list(names), 3, 0.5))
        meant = f"; did you mean {' or '.join(map(repr, self.suggestions))}?" if self.suggestions else ""
        super().__init__(
            f"no device {who!r} in the mesh {app!r}: it has to run the same app, and peers must be allowed to see "
            f"each other; mesh.peer(..., timeout=) waits for one{meant}"
        )


class AmbiguousPeer(MeshError, LookupError):
    """Several members are meant by this; `candidates` are they."""

    def __init__(self, who: str, candidates: Sequence[MeshPeer]) -> None:
        self.candidates = tuple(candidates)
        names = ", ".join(sorted(peer.node.name for peer in candidates))
        super().__init__(f"{who!r} means several devices: use one of {names}")


class PeerGone(MeshError, ConnectionError):
    """The peer left the mesh, or is another process now than the one that was asked."""


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


class TransferRefused(MeshError):
    """The peer does not want these files; `reason` is what it said."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the peer refused the transfer: {reason}")


class TransferFailed(MeshError, OSError):
    """A transfer began and did not end well."""
