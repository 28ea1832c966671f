"""What one device knows of another at this moment, so that tests begin when all is told. Waits for nothing itself."""

from __future__ import annotations

from tailscale.device import Device
from tailscale.nodes import Node


def knows(device: Device, other: Device) -> bool:
    """Whether `device` has both a route and a path to `other`: without a path its first packet is lost."""
    node = other.node
    return _is_peer(device, node) and bool(device.peer_status(node).path)


def routes_of(device: Device, router: Device) -> tuple[str, ...]:
    """What `device` knows that `router` carries."""
    node = router.node
    return device.peer_status(node).node.routes if _is_peer(device, node) else ()


def may_use(device: Device, exit_device: Device) -> bool:
    """Whether `device` knows of the exit and what it serves."""
    return any(one.node.id == exit_device.node.id for one in device.exit_nodes)


def _is_peer(device: Device, node: Node) -> bool:
    """One look, not a search: a tailnet of hundreds asks it for every two of them."""
    return device.netmap is not None and node.id in device.netmap.peers
