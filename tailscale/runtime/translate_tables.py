"""Control's netmap as the plain tuples that packets are routed and judged by.

The only place where control's wire types meet the filter and the routes. Owns the last pair of both, so that a delta of
a few peers costs those few peers. Refuses to know when netmaps come and who uses the tables.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from functools import lru_cache

import msgspec

from tailscale._config import Preferences
from tailscale.nodes import named
from tailscale.runtime.forward_guard import near
from ts_base.ip import Prefix
from ts_control.netmap import NetMap, peers_changed
from ts_control.services import addresses_in
from ts_control.wire import CapMap, FilterRule, Node
from ts_dataplane.claims import PeerRoutes
from ts_dataplane.filter import Grant, Rule
from ts_dataplane.tables import NO_SUCH_PEER, Tables, compile_tables_steps

DELTA_LIMIT = 500  # more changed peers than this are compiled afresh, in steps
ADVERTS_SINCE = 144  # capability version that reads disco keys inside the tunnel


class TablesCompiler:
    """Turns netmaps into Tables, and remembers the last pair so that a delta costs what changed."""

    def __init__(self) -> None:
        self._last: tuple[NetMap, Preferences, Tables] | None = None
        self._near: frozenset[Prefix] = frozenset()

    def set_near(self, interfaces: frozenset[Prefix]) -> None:
        """Networks of this machine that a default route of ours does not lead to: the next snapshot is made whole."""
        self._near, self._last = interfaces, None

    def steps(self, netmap: NetMap, preferences: Preferences) -> Generator[None, None, Tables]:
        """The next snapshot as the return value; pauses where a checkpoint belongs."""
        delta = self._delta(netmap, preferences)
        if delta is not None and self._last is not None:
            tables = self._last[2].with_peers(*delta) if any(delta) else self._last[2]
        else:
            tables = yield from compile_tables_steps(
                own=netmap.self_node.addresses,
                peers=(peer_routes(p) for p in netmap.peers.values()),
                rules=map(filter_rule, netmap.packet_filters),
                local=served_routes(netmap.self_node),
                accept_routes=preferences.accept_routes,
                exit_node=find_exit_node(netmap, preferences.exit_node),
                shields_up=preferences.shields_up,
                near=near(self._near),
            )
        self._last = netmap, preferences, tables
        return tables

    def _delta(self, netmap: NetMap, preferences: Preferences) -> tuple[list[PeerRoutes], list[int]] | None:
        """The peers that changed, if nothing else did and they are few."""
        if self._last is None:
            return None
        before, wanted, _ = self._last
        is_same = (
            wanted == preferences
            and netmap.packet_filters == before.packet_filters
            and netmap.self_node.addresses == before.self_node.addresses
            and served_routes(netmap.self_node) == served_routes(before.self_node)
            and find_exit_node(netmap, preferences.exit_node) == find_exit_node(before, preferences.exit_node)
        )
        if not is_same:
            return None
        changed, removed = peers_changed(before, netmap)
        if len(changed) > DELTA_LIMIT:
            return None
        return [peer_routes(netmap.peers[peer]) for peer in changed], removed


def peer_routes(node: Node) -> PeerRoutes:
    """One peer, as far as packets are concerned."""
    return PeerRoutes(
        peer=node.id,
        addresses=node.addresses,
        allowed=node.allowed_ips,
        capabilities=_capability_set(tuple(node.cap_map)),
        expired=node.expired,
        reachable=bool(node.home_derp or node.is_wireguard_only or not node.disco_key.is_zero),
        jailed=node.is_jailed,
        masquerade4=node.self_node_v4_masq_addr_for_this_peer,
        masquerade6=node.self_node_v6_masq_addr_for_this_peer,
        takes_adverts=node.cap >= ADVERTS_SINCE,
        unsigned=node.unsigned_peer_api_only,
    )


@lru_cache(maxsize=256)
def _capability_set(names: tuple[str, ...]) -> frozenset[str]:
    """Thousands of peers hold the same few capabilities: one set for all of them."""
    return frozenset(names)


def filter_rule(rule: FilterRule) -> Rule:
    return Rule(
        sources=rule.src_ips,
        destinations=tuple((d.ip, d.ports.first, d.ports.last) for d in rule.dst_ports),
        protocols=rule.ip_proto,
        grants=tuple(Grant(g.dsts, _capability_texts(g.cap_map, g.caps)) for g in rule.cap_grant),
    )


def _capability_texts(cap_map: CapMap, bare: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    texts: dict[str, tuple[str, ...]] = dict.fromkeys(bare, ())
    for name, values in cap_map.items():
        texts[name] = tuple(msgspec.json.encode(value).decode() for value in values or ())
    return texts


def served_routes(node: Node) -> tuple[str, ...]:
    """The subnets control lets us serve: what it allows beyond our own addresses."""
    own = set(node.addresses)
    return tuple(prefix for prefix in node.allowed_ips or () if prefix not in own)


def service_addresses(node: Node) -> tuple[bytes, ...]:
    """Where the stack answers for the services we host."""
    return tuple(address for addresses in addresses_in(node.cap_map).values() for address in addresses)


def find_exit_node(netmap: NetMap, wanted: str | None) -> int | None:
    """The peer that a user chose to go out by."""
    if not wanted:
        return None
    peer = named(wanted, netmap.peers.values())
    return peer.id if peer is not None else NO_SUCH_PEER
