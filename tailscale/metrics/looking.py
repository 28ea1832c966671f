"""One look at a device for those who watch it: the terminal interface, the status page, readers of the daemon's stream.

Owns what is shown and how much of it: plain values for JSON, bounded whatever the tailnet's size. Counters are told as
they are; who watches makes rates of two looks. Knows no screen.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.status import ExitNode, PeerStatus, Status

PEERS_SHOWN, FLOWS_SHOWN, EXITS_SHOWN, TRANSFERS_SHOWN = 500, 200, 500, 100
SOCKETS = {"tcp": "stack.tcp.connections", "udp": "stack.udp.ports", "listeners": "stack.tcp.listeners"}


def view(device: Device) -> dict[str, Any]:
    """Everything worth showing, at this moment.

    ```python
    from tailscale.metrics import view

    print(view(device)["peers"])
    ```
    """
    status = device.status()
    exits = device.exit_nodes
    offers = {one.node.stable_id for one in exits}
    wanted = device.preferences.exit_node or ""
    peers = sorted(status.peers, key=_prominence)
    return {
        "at": time.time(),
        **_ourselves(status),
        "exit_node": wanted,
        "health": [warning.to_dict() for warning in status.health],
        "received": {path: traffic.bytes for path, traffic in status.counters.received.items()},
        "sent": {path: traffic.bytes for path, traffic in status.counters.sent.items()},
        "drops": dict(status.drops),
        "open": {word: status.counters.levels.get(name, 0) for word, name in SOCKETS.items()},
        "count": _counts(status),
        "peers": [_peer(peer, offers) for peer in peers[:PEERS_SHOWN]],
        "flows": [flow.to_dict() for flow in device.flows(FLOWS_SHOWN)],
        "transfers": [one.to_dict() for one in device.transfers[:TRANSFERS_SHOWN]],
        "exits": [_exit(one, wanted) for one in exits[:EXITS_SHOWN]],
    }


def _ourselves(status: Status) -> dict[str, Any]:
    node = status.node
    return {
        "state": status.state,
        "name": node.name if node else "",
        "hostname": node.hostname if node else "",
        "addresses": list(node.addresses) if node else [],
        "user": node.user if node else "",
        "tags": list(node.tags) if node else [],
        "key_expiry": node.key_expiry.isoformat() if node and node.key_expiry else None,
        "tailnet": status.tailnet,
        "control_url": status.control_url,
        "relay": status.relay,
        "udp_port": status.udp_port,
        "endpoints": list(status.endpoints),
    }


def _counts(status: Status) -> dict[str, int]:
    kinds = Counter(peer.path.kind for peer in status.peers if peer.handshake_age is not None)
    return {
        "peers": len(status.peers),
        "online": sum(peer.node.online is True for peer in status.peers),
        "direct": kinds["direct"],
        "relay": kinds["relay"],
        "peer relay": kinds["peer relay"],
    }


def _exit(exit_node: ExitNode, wanted: str) -> dict[str, Any]:
    node = exit_node.node
    is_used = wanted in (node.stable_id, node.hostname, node.name, *node.addresses)
    return exit_node.to_dict() | {"id": node.stable_id, "is_used": is_used}


def _prominence(peer: PeerStatus) -> tuple[bool, bool, int, str]:
    """Those that were spoken with first, by what they carried; then who is online; then the rest."""
    carried = peer.bytes_received + peer.bytes_sent
    return peer.handshake_age is None, not peer.node.online, -carried, peer.node.name


def _peer(peer: PeerStatus, offers: set[str]) -> dict[str, Any]:
    node = peer.node
    return {
        "id": node.stable_id,
        "name": node.name,
        "hostname": node.hostname,
        "address": node.ipv4 or node.ipv6 or "",
        "online": node.online,
        "expired": node.expired,
        "os": node.os,
        "owner": ", ".join(node.tags) or node.user,
        "routes": len(node.routes),
        "is_exit": node.stable_id in offers,
        "has_spoken": peer.handshake_age is not None,
        "kind": peer.path.kind,
        "path": str(peer.path),
        "latency": peer.latency,
        "received": peer.bytes_received,
        "sent": peer.bytes_sent,
    }
