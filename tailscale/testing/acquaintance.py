"""What one device knows of another at this moment, so that tests begin when all is told. Waits for nothing itself."""

from __future__ import annotations

from tailscale.device import Device


def knows(device: Device, other: Device) -> bool:
    """Whether `device` has both a route and a path to `other`: without a path its first packet is lost."""
    return any(peer.node.id == other.node.id and peer.path for peer in device.status().peers)


def routes_of(device: Device, router: Device) -> tuple[str, ...]:
    """What `device` knows that `router` carries."""
    return next((peer.node.routes for peer in device.status().peers if peer.node.id == router.node.id), ())


def may_use(device: Device, exit_device: Device) -> bool:
    """Whether `device` knows of the exit and what it serves."""
    return any(one.node.id == exit_device.node.id for one in device.exit_nodes)
