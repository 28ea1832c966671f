"""The network as control describes it: a frozen snapshot, and the one rule for folding a message into the next one.

Owns: the meaning of every delta (upstream's order), node normalisation, filter-name order, key expiry by the clock.
Refuses to know: JSON, streams, routes. `now` is wall-clock seconds since 1970, because keys expire by the calendar.
A peer's delta costs one dict copy: 10,000 peers, 0.1 ms. Every node that did not change is the same object.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace as change

from ts_base.errors import BadPacket
from ts_base.hosts import check_host_untrusted
from ts_base.keys import NodePublic
from ts_control.gojson import from_unix_time, unix_time
from ts_control.wire import (
    CapMap,
    ClientVersion,
    ControlDialPlan,
    DERPMap,
    DERPNode,
    DERPRegion,
    DisplayMessage,
    DNSConfig,
    FilterRule,
    MapResponse,
    Node,
    PeerChange,
    TKAInfo,
    UserProfile,
    legacy_home_region_untrusted,
)

CLOCK_TOLERANCE = 60.0  # smaller differences between our clock and control's are ignored
LAST_PORT = 65535
COLLECTION_LIMIT = 200_000  # peers, rules or profiles of one tailnet
EXPIRED_KEY_PREFIX = bytes([109, 167, 116, 213, 215, 116])  # what upstream writes over an expired peer's key

NamedFilters = Mapping[str, tuple[FilterRule, ...]]


class PeerTable(dict[int, Node]):
    """Peers by node id, and which table they were made from by what: so that following a delta costs the delta."""

    __slots__ = ("_identity", "_origin", "_touched")

    def __init__(self, before: Mapping[int, Node], touched: Iterable[int]) -> None:
        super().__init__(before)
        self._identity = object()
        self._origin = before._identity if isinstance(before, PeerTable) else None
        self._touched = tuple(sorted(touched))

    def touched_since(self, before: Mapping[int, Node]) -> tuple[int, ...] | None:
        """The ids that alone may differ from `before`; None where this table was not made from it."""
        is_made_from = isinstance(before, PeerTable) and before._identity is self._origin
        return self._touched if is_made_from else None


_NOTHING: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class NetMap:
    """Everything control has said so far on this stream. Make the first with `NetMap.empty().apply(...)`."""

    self_node: Node
    peers: Mapping[int, Node]
    """By node id. Peers whose key has expired are here too: `expired`, unreachable, their key broken."""
    derp_map: DERPMap
    dns: DNSConfig
    packet_filters: tuple[FilterRule, ...]
    """The effective filter: every named list, in the order of the names."""
    named_filters: NamedFilters
    user_profiles: Mapping[int, UserProfile]
    domain: str
    ssh_policy: Mapping[str, Any] | None
    health: tuple[str, ...]
    display_messages: Mapping[str, DisplayMessage]
    collect_services: bool
    clock_offset: float
    """Control's clock minus ours, or 0.0 when they agree to the minute."""
    tka: TKAInfo | None
    """What control says of the tailnet's lock. What is true of it is known where the lock is kept."""
    unvouched: Mapping[int, str]
    """Peers for whose node key the tailnet's lock does not vouch, and why. They look expired; `locked_view.py`."""
    client_version: ClientVersion | None
    dial_plan: ControlDialPlan | None
    _unexpired: Mapping[int, Node] = field(repr=False)
    """What control said of the peers that we ourselves declared expired."""
    _expiry_bound: float = field(repr=False, compare=False)

    def as_told(self, number: int) -> Node:
        """A peer as control described it, its key included, whether or not that has expired since."""
        return self._unexpired.get(number) or self.peers[number]

    @classmethod
    def empty(cls) -> NetMap:
        return _EMPTY

    def apply(self, response: MapResponse, now: float) -> NetMap:
        """The snapshot after `response`. BadPacket when it is a first message that does not say who we are."""
        offset = self.clock_offset
        if response.control_time is not None:
            difference = unix_time(response.control_time) - now
            offset = difference if abs(difference) > CLOCK_TOLERANCE else 0.0
        if response.keep_alive:
            return self if offset == self.clock_offset else replace(self, clock_offset=offset).expire(now)
        if response.node is None and self is _EMPTY:
            raise BadPacket("the first map message does not say who we are")
        changes: dict[str, Any] = {"clock_offset": offset}
        _fold_peers(self, response, now, offset, changes)
        if response.node is not None:
            changes["self_node"] = _flag_expired_self(normalise(response.node), now + offset)
        _fold_rest(self, response, changes)
        _check_size(changes)
        folded: NetMap = replace(self, **changes)
        return folded if folded._expiry_bound > now + offset else folded.expire(now)

    def expire(self, now: float) -> NetMap:
        """The snapshot once `next_expiry()` has come: every node whose key ran out is marked and unreachable."""
        control_now = now + self.clock_offset
        due = [peer for peer in self.peers.values() if not peer.expired and has_expired(peer, control_now)]
        bound = min((_expiry(peer) for peer in self.peers.values() if not peer.expired), default=math.inf)
        self_node = _flag_expired_self(self.self_node, control_now)
        if due:
            peers, unexpired = PeerTable(self.peers, [peer.id for peer in due]), dict(self._unexpired)
            for peer in due:
                unexpired[peer.id] = peer
                peers[peer.id] = make_unreachable(peer)
            bound = min((_expiry(peer) for peer in peers.values() if not peer.expired), default=math.inf)
            return replace(self, peers=peers, _unexpired=unexpired, self_node=self_node, _expiry_bound=bound)
        if self_node is self.self_node and bound == self._expiry_bound:
            return self
        return replace(self, self_node=self_node, _expiry_bound=bound)

    def next_expiry(self) -> float:
        """Our wall-clock second at which to call `expire()` again; never late, infinity when nothing expires."""
        own = math.inf if self.self_node.expired else _expiry(self.self_node)
        return min(own, self._expiry_bound) - self.clock_offset


_EMPTY = NetMap(
    self_node=Node(),
    peers=_NOTHING,
    derp_map=DERPMap(regions={}),
    dns=DNSConfig(),
    packet_filters=(),
    named_filters=_NOTHING,
    user_profiles=_NOTHING,
    domain="",
    ssh_policy=None,
    health=(),
    display_messages=_NOTHING,
    collect_services=False,
    clock_offset=0.0,
    tka=None,
    unvouched=_NOTHING,
    client_version=None,
    dial_plan=None,
    _unexpired=_NOTHING,
    _expiry_bound=math.inf,
)


def peers_changed(before: NetMap, after: NetMap) -> tuple[list[int], list[int]]:
    """Ids of peers new or different in `after`, and ids gone. Identity tells: unchanged nodes are shared."""
    old, new = before.peers, after.peers
    if old is new:
        return [], []
    touched = new.touched_since(old) if isinstance(new, PeerTable) else None
    if touched is not None:
        different = [number for number in touched if number in new and old.get(number) is not new[number]]
        return different, [number for number in touched if number in old and number not in new]
    get = old.get
    return (
        [number for number, peer in new.items() if get(number) is not peer],
        [number for number in old if number not in new],
    )


def normalise(node: Node) -> Node:
    """Older spellings brought to today's: home region, allowed addresses, capabilities."""
    changes: dict[str, Any] = {}
    if node.legacy_derp and not node.home_derp:
        changes["home_derp"] = legacy_home_region_untrusted(node.legacy_derp)
    if node.allowed_ips is None or node.unsigned_peer_api_only:
        changes["allowed_ips"] = node.addresses
    if node.capabilities:
        named: CapMap = dict.fromkeys(node.capabilities)
        changes["cap_map"] = {**named, **node.cap_map}
    return change(node, **changes) if changes else node


def has_expired(node: Node, control_now: float) -> bool:
    return node.expired or _expiry(node) <= control_now


def make_unreachable(peer: Node) -> Node:
    """An expired peer keeps its name and addresses; nothing can be sent to it, and its key opens nothing."""
    broken = NodePublic(EXPIRED_KEY_PREFIX + peer.key.raw[len(EXPIRED_KEY_PREFIX) :])
    return change(peer, expired=True, endpoints=(), home_derp=0, legacy_derp="", key=broken)


def _expiry(node: Node) -> float:
    return unix_time(node.key_expiry) or math.inf


def _flag_expired_self(node: Node, control_now: float) -> Node:
    return change(node, expired=True) if not node.expired and has_expired(node, control_now) else node


def _fold_peers(old: NetMap, response: MapResponse, now: float, offset: float, changes: dict[str, Any]) -> None:
    # A full list precludes every other peer delta of the same message; an empty one cannot be told from none.
    if response.peers:
        _replace_all(response.peers, now + offset, changes)
        return
    touched = _touched_peers(old, response, now)
    if not touched:
        return
    peers, unexpired = PeerTable(old.peers, touched), dict(old._unexpired)
    bound = old._expiry_bound
    for number, peer in touched.items():
        unexpired.pop(number, None)
        if peer is None:
            peers.pop(number, None)
            continue
        peers[number] = _admit(peer, now + offset, unexpired)
        if not peers[number].expired:
            bound = min(bound, _expiry(peer))
    changes.update(peers=peers, _unexpired=unexpired, _expiry_bound=bound)


def _replace_all(nodes: Iterable[Node | None], control_now: float, changes: dict[str, Any]) -> None:
    peers = PeerTable(_NOTHING, ())
    unexpired: dict[int, Node] = {}
    bound = math.inf
    for node in nodes:
        if node is None:
            continue
        unexpired.pop(node.id, None)
        peer = peers[node.id] = _admit(normalise(node), control_now, unexpired)
        if not peer.expired:
            bound = min(bound, _expiry(peer))
    changes.update(peers=peers, _unexpired=unexpired, _expiry_bound=bound)


def _admit(peer: Node, control_now: float, unexpired: dict[int, Node]) -> Node:
    if not has_expired(peer, control_now):
        return peer
    unexpired[peer.id] = peer
    return make_unreachable(peer)


def _touched_peers(old: NetMap, response: MapResponse, now: float) -> dict[int, Node | None]:
    """Every peer a delta names, as control now describes it; None for removed. Unknown ids are ignored."""
    touched: dict[int, Node | None] = {}

    def current(number: int) -> Node | None:
        if number in touched:
            return touched[number]
        return old._unexpired.get(number) or old.peers.get(number)

    for number in response.peers_removed:
        touched[number] = None
    for node in response.peers_changed:
        if node is not None:
            touched[node.id] = normalise(node)
    for number, seen in response.peer_seen_change.items():
        if (peer := current(number)) is not None:
            touched[number] = change(peer, last_seen=from_unix_time(now) if seen else None)
    for number, online in response.online_change.items():
        if (peer := current(number)) is not None:
            touched[number] = change(peer, online=online)
    for patch in response.peers_changed_patch:
        if patch is not None and (peer := current(patch.node_id)) is not None:
            touched[patch.node_id] = patch_peer(peer, patch)
    return touched


_SET_WHEN_NOT_NONE = ("cap_map", "endpoints", "key", "key_signature", "disco_key", "online", "last_seen", "key_expiry")


def patch_peer(peer: Node, patch: PeerChange) -> Node:
    """`peer` with the fields of `patch` that are set."""
    changes = {name: value for name in _SET_WHEN_NOT_NONE if (value := getattr(patch, name)) is not None}
    if patch.derp_region:
        changes["home_derp"] = patch.derp_region
    if patch.cap:
        changes["cap"] = patch.cap
    return change(peer, **changes) if changes else peer


def _fold_rest(old: NetMap, response: MapResponse, changes: dict[str, Any]) -> None:
    if response.user_profiles:
        changes["user_profiles"] = {**old.user_profiles, **{user.id: user for user in response.user_profiles}}
    if response.derp_map is not None:
        changes["derp_map"] = _merge_derp_map(old.derp_map, response.derp_map)
    if response.packet_filter is not None or response.packet_filters is not None:
        named = _merge_filters(old.named_filters, response)
        changes["named_filters"] = named
        changes["packet_filters"] = tuple(rule for name in sorted(named) for rule in named[name])
    if response.display_messages is not None:
        messages = _merge_named(old.display_messages, response.display_messages)
        changes["display_messages"] = messages
    if response.domain:
        changes["domain"] = response.domain
    whole = {
        "dns": response.dns_config,
        "ssh_policy": response.ssh_policy,
        "collect_services": response.collect_services,
        "health": response.health,
        "tka": response.tka_info,
        "client_version": response.client_version,
        "dial_plan": response.control_dial_plan,
    }
    changes.update((name, value) for name, value in whole.items() if value is not None)


def _check_size(changes: dict[str, Any]) -> None:
    """What many small messages add up to is bounded as one large message is."""
    for name in ("peers", "user_profiles", "packet_filters", "display_messages", "named_filters"):
        if len(changes.get(name, ())) > COLLECTION_LIMIT:
            raise BadPacket(f"a map with more than {COLLECTION_LIMIT} {name}")


def _merge_filters(
    old: Mapping[str, tuple[FilterRule, ...]], response: MapResponse
) -> dict[str, tuple[FilterRule, ...]]:
    named = dict(old)
    if response.packet_filter is not None:
        named["base"] = response.packet_filter
    return _merge_named(named, response.packet_filters or {})


def _merge_named(old: Mapping[str, Any], news: Mapping[str, Any]) -> dict[str, Any]:
    """By name: `*` as null forgets all that was, another null forgets that name, the rest is set."""
    named = {} if "*" in news and news["*"] is None else dict(old)
    for name, value in news.items():
        if name == "*":
            continue
        if value is None:
            named.pop(name, None)
        else:
            named[name] = value
    return named


def _merge_derp_map(old: DERPMap, new: DERPMap) -> DERPMap:
    """A null in the new map keeps the old value, except that a region which is null is dropped."""
    home_params = new.home_params
    if home_params is None:
        home_params = old.home_params
    elif home_params.region_score is None and old.home_params is not None:
        home_params = change(home_params, region_score=old.home_params.region_score)
    if new.regions is None:
        return change(old, home_params=home_params)
    return change(usable_relays(new), home_params=home_params)


def usable_relays(told: DERPMap) -> DERPMap:
    """The regions that are there, with those of their nodes that can be dialled."""
    regions = {number: _with_usable_nodes(region) for number, region in told.live_regions().items()}
    return change(told, regions=regions)


def _with_usable_nodes(region: DERPRegion) -> DERPRegion:
    """Without the nodes that cannot be dialled: one careless line must not cost the relays beside it."""
    usable = tuple(node for told in region.nodes if (node := _usable_node(told)) is not None)
    return region if usable == region.nodes else change(region, nodes=usable)


def _usable_node(node: DERPNode) -> DERPNode | None:
    """The node with its host name in ASCII; None when its name or ports are none."""
    has_ports = 0 <= node.derp_port <= LAST_PORT and -1 <= node.stun_port <= LAST_PORT
    if not has_ports or not node.name.isascii() or not node.name.isprintable():  # the name is told to relays
        return None
    try:
        host = check_host_untrusted(node.host_name)
    except BadPacket:
        return None
    return node if host == node.host_name else change(node, host_name=host)
