"""Peers as a table: the same in `status` and in the demo."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tailscale.cli.screen import Cell, Screen, in_time
from tailscale.figures import in_bytes

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.status import PeerStatus

HEADER = ("NAME", "ADDRESS", "STATE", "PATH", "LATENCY", "user", "os", "received", "sent")


def show_peers(screen: Screen, peers: Iterable[PeerStatus], indent: str = "") -> None:
    screen.table(HEADER, [_row(peer) for peer in peers], indent=indent)


def _row(peer: PeerStatus) -> tuple[Cell, ...]:
    node = peer.node
    return (
        (node.hostname, "bold"),
        node.ipv4 or node.ipv6 or "-",
        presence(node),
        (peer.path if has_spoken(peer) else "") or "-",
        in_time(peer.latency) if has_spoken(peer) and peer.latency is not None else "-",
        ", ".join(node.tags) or node.user or "-",
        node.os or "-",
        in_bytes(peer.bytes_received) if peer.bytes_received else "-",
        in_bytes(peer.bytes_sent) if peer.bytes_sent else "-",
    )


def has_spoken(peer: PeerStatus) -> bool:
    """Whether this device has exchanged anything with it; before that a path is a guess."""
    return peer.handshake_age is not None


def presence(node: Node) -> Cell:
    if node.expired:
        return "key expired", "red"
    if node.online is None:
        return "-"
    if node.online:
        return "online", "green"
    return f"offline since {node.last_seen:%Y-%m-%d %H:%M}" if node.last_seen else "offline", "dim"
