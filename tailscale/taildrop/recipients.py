"""Whom this device may send files to, and where their peer API is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tailscale.errors import NameNotFound
from tailscale.files.errors import TransferRefused
from tailscale.nodes import Node, named, node_from_wire, peerapi_of
from tailscale.taildrop.wire import SHARING_ENABLED, TARGET_GRANTED, WITHOUT_FILES

if TYPE_CHECKING:
    from tailscale.device import Device
    from ts_control import wire

# ipnstate.TaildropTargetStatus of upstream.
AVAILABLE, NO_NETMAP, NOT_ENABLED, OFFLINE, WRONG_SYSTEM, NO_PEERAPI, OTHER_USER = 1, 2, 4, 5, 7, 8, 9
WHY_NOT = {
    NO_NETMAP: "the control server has not said yet who is there",
    NOT_ENABLED: "Taildrop is not enabled for this tailnet: its admin does that in the settings",
    OFFLINE: "it is offline",
    WRONG_SYSTEM: "its system takes no files",
    NO_PEERAPI: "it answers no peers: it does not run a peer API",
    OTHER_USER: (
        "it belongs to somebody else: the policy there has to grant "
        f"{TARGET_GRANTED} from it to us, and https://tailscale.com/cap/file-send from us to it"
    ),
}


class Target(NamedTuple):
    """A device that files can be sent to, and where it takes them."""

    node: Node
    address: str
    port: int

    @property
    def url(self) -> str:
        """Of its peer API."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}"


def targets(device: Device) -> tuple[Node, ...]:
    """The devices that files can be sent to, by name; those that are offline too.

    They are the other devices of our user, and those whom the policy makes targets. That a device is listed does not
    mean that it takes files: one with tags asks for a grant.

    ```python
    for node in taildrop.targets(device):
        print(node.hostname, node.os, node.presence)
    ```
    """
    return tuple(target.node for target in all_targets(device))


def all_targets(device: Device) -> list[Target]:
    """As `targets`, with where each takes files."""
    netmap = device.netmap
    if netmap is None:
        return []
    found = []
    for peer in netmap.peers.values():
        where = peerapi_of(peer)
        if where is not None and standing(device, peer) in (AVAILABLE, OFFLINE):
            found.append(Target(node_from_wire(peer, netmap), *where))
    return sorted(found, key=lambda target: target.node.name)


def target_named(device: Device, wanted: str | Node) -> Target:
    """Where the device that is meant takes files. Raises NameNotFound, or TransferRefused with the reason."""
    netmap = device.netmap
    name = wanted.stable_id if isinstance(wanted, Node) else wanted
    peer = named(name, netmap.peers.values()) if netmap is not None else None
    if netmap is None or peer is None:
        raise NameNotFound(name, device.peers.close_to(name), detail="no device of this tailnet is called that")
    node = node_from_wire(peer, netmap)
    status, where = standing(device, peer), peerapi_of(peer)
    if where is None or status not in (AVAILABLE, OFFLINE):  # whether it is really offline, a dial tells
        raise TransferRefused("not-a-target", f"files cannot be sent to {node.hostname}: {WHY_NOT[status]}")
    return Target(node, *where)


def standing(device: Device, peer: wire.Node) -> int:
    """Whether a peer is a target, in upstream's numbers."""
    netmap = device.netmap
    if netmap is None:
        return NO_NETMAP
    own = netmap.self_node
    if SHARING_ENABLED not in own.cap_map and SHARING_ENABLED not in own.capabilities:
        return NOT_ENABLED
    if peer.hostinfo.os == WITHOUT_FILES:
        return WRONG_SYSTEM
    if peer.user != own.user and TARGET_GRANTED not in device.granted(node_from_wire(peer, netmap)):
        return OTHER_USER
    if peerapi_of(peer) is None:
        return NO_PEERAPI
    return OFFLINE if peer.online is False else AVAILABLE
