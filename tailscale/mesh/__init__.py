"""Messages, requests and shared state between the devices of one app, found in the tailnet without asking around.

```python no-run: needs a tailnet
from tailscale.mesh import Mesh

async with tailscale.Device("laptop") as device, Mesh(device, "notes") as notes:
    await notes.send("bob", "chat", {"text": "hello"})
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailscale._lazy import lazily, names_of
from ts_base.optional import is_installed

if TYPE_CHECKING:
    from tailscale.events import Lagged as Lagged
    from tailscale.files.transfers import Progress as Progress
    from tailscale.files.transfers import Skipped as Skipped
    from tailscale.files.transfers import TransferReport as TransferReport
    from tailscale.mesh.broadcasting import BroadcastReport as BroadcastReport
    from tailscale.mesh.counting import MeshStatistics as MeshStatistics
    from tailscale.mesh.errors import AmbiguousPeer as AmbiguousPeer
    from tailscale.mesh.errors import MeshError as MeshError
    from tailscale.mesh.errors import MessageTooLarge as MessageTooLarge
    from tailscale.mesh.errors import NobodyListens as NobodyListens
    from tailscale.mesh.errors import NotInMesh as NotInMesh
    from tailscale.mesh.errors import PeerGone as PeerGone
    from tailscale.mesh.errors import RemoteError as RemoteError
    from tailscale.mesh.errors import TooManySessions as TooManySessions
    from tailscale.mesh.errors import TransferFailed as TransferFailed
    from tailscale.mesh.errors import TransferRefused as TransferRefused
    from tailscale.mesh.errors import WrongShape as WrongShape
    from tailscale.mesh.events import PeerConnected as PeerConnected
    from tailscale.mesh.events import PeerDisconnected as PeerDisconnected
    from tailscale.mesh.events import PeerJoined as PeerJoined
    from tailscale.mesh.events import PeerLeft as PeerLeft
    from tailscale.mesh.events import PeerRenamed as PeerRenamed
    from tailscale.mesh.events import TransferDone as TransferDone
    from tailscale.mesh.mesh import Mesh as Mesh
    from tailscale.mesh.peers import Members as Members
    from tailscale.mesh.peers import MeshPeer as MeshPeer
    from tailscale.mesh.stores import Slice as Slice
    from tailscale.mesh.stores import Store as Store
    from tailscale.mesh.subscriptions import Message as Message
    from tailscale.mesh.subscriptions import Subscription as Subscription
    from tailscale.mesh.transfers import Inbox as Inbox
    from tailscale.mesh.transfers import Offer as Offer
    from tailscale.mesh.transfers import Transfer as Transfer
    from ts_mesh.limits import MeshLimits as MeshLimits

_HOMES = {
    "tailscale.events": ("Lagged",),
    "tailscale.files.transfers": ("Progress", "Skipped", "TransferReport"),
    "tailscale.mesh.errors": (
        *("AmbiguousPeer", "MeshError", "MessageTooLarge", "NobodyListens", "NotInMesh", "PeerGone", "RemoteError"),
        *("TooManySessions", "TransferFailed", "TransferRefused", "WrongShape"),
    ),
    "tailscale.mesh.events": (
        *("PeerConnected", "PeerDisconnected", "PeerJoined", "PeerLeft", "PeerRenamed", "TransferDone"),
    ),
    "tailscale.mesh.broadcasting": ("BroadcastReport",),
    "tailscale.mesh.counting": ("MeshStatistics",),
    "tailscale.mesh.mesh": ("Mesh",),
    "tailscale.mesh.peers": ("Members", "MeshPeer"),
    "tailscale.mesh.stores": ("Slice", "Store"),
    "tailscale.mesh.subscriptions": ("Message", "Subscription"),
    "tailscale.mesh.transfers": ("Inbox", "Offer", "Transfer"),
    "ts_mesh.limits": ("MeshLimits",),
}
_HOME_OF = names_of(_HOMES)
_load = lazily(__name__, _HOME_OF)

__all__ = [*_HOME_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "Mesh" and not is_installed("wsproto"):
        raise ImportError("a mesh speaks WebSocket: pip install 'pytailscale[mesh]'")
    return _load(name)
