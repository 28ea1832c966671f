"""Control's nodes as the path finder's facts.

Follows snapshots, so that a delta costs what changed. Refuses to know when netmaps come and what paths are good for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from ts_base.errors import BadPacket
from ts_base.ip import parse_prefix
from ts_control.netmap import NetMap, peers_changed
from ts_control.wire import Node
from ts_dataplane.filter import Grant, Rule, compile_filter
from ts_dataplane.peer_paths import PeerPaths

RELAY_TARGET = "tailscale.com/cap/relay-target"
RELAYS_SINCE = 121  # capability version
PEERS_PER_STEP = 500  # of a large netmap, before other tasks get a turn


class PeerTranslator:
    """Control's nodes as the finder's facts; follows snapshots, so that a delta costs what changed."""

    def __init__(self) -> None:
        self._netmap = NetMap.empty()
        self._servers = RelayServers(self._netmap)

    def follow(self, netmap: NetMap) -> tuple[list[int], list[int]]:
        """Which peers must be told to the finder anew, and which are gone."""
        before, self._netmap = self._netmap, netmap
        if netmap.packet_filters is before.packet_filters and netmap.self_node.addresses == before.self_node.addresses:
            return peers_changed(before, netmap)
        old, self._servers = self._servers, RelayServers(netmap)
        if old == self._servers:
            return peers_changed(before, netmap)
        return list(netmap.peers), [peer for peer in before.peers if peer not in netmap.peers]

    def facts(self, peers: Iterable[int]) -> dict[int, PeerPaths]:
        nodes, servers = self._netmap.peers, self._servers
        return {peer: peer_paths(nodes[peer], serves_relay=servers.include(nodes[peer])) for peer in peers}


class RelayServers:
    """Whom control allows us to use as a relay: who holds the capability towards us, as the packet filter reads it."""

    def __init__(self, netmap: NetMap) -> None:
        self._own = _addresses(netmap.self_node)
        self._rules = tuple(
            Rule(rule.src_ips, (), (), (Grant(grant.dsts, {RELAY_TARGET: ()}),))
            for rule in netmap.packet_filters
            for grant in rule.cap_grant
            if RELAY_TARGET in grant.cap_map or RELAY_TARGET in grant.caps
        )
        self._filter = compile_filter(self._rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RelayServers) and (self._own, self._rules) == (other._own, other._rules)

    __hash__ = None  # type: ignore[assignment]

    def include(self, node: Node) -> bool:
        if not self._rules or node.cap < RELAYS_SINCE:
            return False
        granted = self._filter.capabilities
        return any(granted(theirs, own) for theirs in _addresses(node) for own in self._own)


def _addresses(node: Node) -> list[bytes]:
    found = []
    for text in node.addresses:
        with contextlib.suppress(BadPacket):
            found.append(parse_prefix(text)[0])
    return found


def peer_paths(node: Node, *, serves_relay: bool = False) -> PeerPaths:
    return PeerPaths(
        serves_relay=serves_relay,
        node_key=node.key.raw,
        disco_key=None if node.disco_key.is_zero else node.disco_key.raw,
        endpoints=tuple(node.endpoints or ()),
        home_region=node.home_derp,
        wireguard_only=node.is_wireguard_only,
        expired=node.expired,
    )


def restarted(before: Mapping[int, Node], after: Mapping[int, Node], changed: Iterable[int]) -> list[int]:
    """Peers with the old node key and a new disco key: those live as long as a process, so theirs is another one."""
    return [
        number
        for number in changed
        if (old := before.get(number)) is not None
        and old.key == after[number].key
        and not old.disco_key.is_zero
        and old.disco_key != after[number].disco_key
    ]


def batched(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
