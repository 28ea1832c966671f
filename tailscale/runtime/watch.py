"""From bus messages to public events: what changed between two netmaps, in the words of `tailscale.events`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from tailscale.events import (
    Event,
    KeyExpiring,
    PeerChanged,
    PeerDown,
    PeerUp,
)
from tailscale.nodes import node_from_wire
from ts_control.netmap import NetMap

EXPIRY_NOTICE = timedelta(days=7)


def events_between(before: NetMap | None, after: NetMap) -> list[Event]:
    """What a user could notice. Unchanged peers are the same objects in both maps, so this costs what changed."""
    events: list[Event] = []
    old_peers = before.peers if before is not None else {}
    for number, peer in after.peers.items():
        old = old_peers.get(number)
        if old is peer:
            continue
        node = node_from_wire(peer, after)
        if old is None:
            events.append(PeerUp(node))
            continue
        previous = node_from_wire(old, before or after)
        if previous.online is not node.online and node.online is not None and previous.online is not None:
            events.append(PeerUp(node) if node.online else PeerDown(node))
        elif previous != node:
            events.append(PeerChanged(previous, node))
    for number, peer in old_peers.items():
        if number not in after.peers:
            events.append(PeerDown(node_from_wire(peer, before or after)))
    return events


def expiry_notice(netmap: NetMap, already: datetime | None, wall_clock: Callable[[], float]) -> KeyExpiring | None:
    """Tell once per expiry date, a week ahead."""
    expiry = netmap.self_node.key_expiry
    if expiry.year <= 1 or expiry == already:
        return None
    now = datetime.fromtimestamp(wall_clock(), UTC)
    return KeyExpiring(expiry) if now < expiry <= now + EXPIRY_NOTICE else None
