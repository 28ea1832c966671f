"""Folding map messages: every delta, keys that run out by the clock, and the same end as one full map."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_base.keys import DiscoPublic, NodePublic
from ts_control.gojson import from_unix_time
from ts_control.netmap import EXPIRED_KEY_PREFIX, NetMap, normalise, peers_changed
from ts_control.wire import (
    DERPHomeParams,
    DERPMap,
    DERPRegion,
    DisplayMessage,
    DNSConfig,
    FilterRule,
    MapResponse,
    Node,
    PeerChange,
    UserProfile,
)

from control_scripts import NOW, first_map, make_node  # isort: skip


def started(*numbers: int, **fields: Any) -> NetMap:
    return NetMap.empty().apply(first_map(*numbers, **fields), NOW)


def rule(source: str) -> FilterRule:
    return FilterRule(src_ips=(source,))


def test_the_first_message_must_say_who_we_are() -> None:
    with pytest.raises(BadPacket):
        NetMap.empty().apply(MapResponse(domain="x"), NOW)
    assert NetMap.empty().apply(MapResponse(keep_alive=True), NOW) is NetMap.empty()


def test_an_empty_peer_list_changes_nothing_and_a_full_one_replaces() -> None:
    netmap = started(2, 3)
    assert netmap.apply(MapResponse(domain="x"), NOW).peers is netmap.peers
    assert set(netmap.apply(MapResponse(peers=(make_node(9),)), NOW).peers) == {9}


def test_a_full_list_precludes_the_other_peer_deltas_of_its_message() -> None:
    message = MapResponse(peers=(make_node(9),), peers_removed=(9,), online_change={9: True})
    peer = started(2).apply(message, NOW).peers[9]
    assert peer.online is None


def test_deltas_for_unknown_peers_are_ignored() -> None:
    netmap = started(2)
    message = MapResponse(
        peers_removed=(77,),
        online_change={78: True},
        peer_seen_change={79: True},
        peers_changed_patch=(PeerChange(node_id=80, derp_region=4), None),
    )
    assert netmap.apply(message, NOW).peers == netmap.peers


def test_duplicate_ids_end_as_the_last_one() -> None:
    twice = (make_node(2), make_node(2, name="other."))
    assert started().apply(MapResponse(peers=twice), NOW).peers[2].name == "other."


def test_patch_sets_only_what_it_carries() -> None:
    key, disco = NodePublic(b"\1" * 32), DiscoPublic(b"\2" * 32)
    patch = PeerChange(node_id=2, derp_region=7, cap=99, endpoints=(), key=key, disco_key=disco, online=False)
    before = started(2)
    peer = before.apply(MapResponse(peers_changed_patch=(patch,)), NOW).peers[2]
    assert (peer.home_derp, peer.cap, peer.endpoints, peer.key, peer.disco_key) == (7, 99, (), key, disco)
    assert (peer.name, peer.online) == ("node-2.rig.test.", False)
    assert before.peers[2].home_derp == 0


def test_seen_and_online_changes_reach_their_peers() -> None:
    netmap = started(2, 3).apply(MapResponse(peer_seen_change={2: True, 3: False}, online_change={3: True}), NOW)
    assert netmap.peers[2].last_seen == from_unix_time(NOW)
    assert (netmap.peers[3].last_seen, netmap.peers[3].online) == (None, True)


def test_unchanged_peers_are_shared_with_the_next_snapshot() -> None:
    before = started(*range(2, 50))
    after = before.apply(MapResponse(online_change={7: True}, peers_removed=(8,), peers_changed=(make_node(99),)), NOW)
    assert peers_changed(before, after) == ([7, 99], [8])
    assert after.peers[9] is before.peers[9]
    later = after.apply(MapResponse(online_change={7: False, 1000: True}, peers_removed=(99, 8)), NOW)
    assert peers_changed(after, later) == ([7], [99])
    assert peers_changed(before, later) == ([7], [8])  # a snapshot was skipped: all are compared
    assert peers_changed(later, before) == ([7, 8], [])


def test_filters_are_named_ordered_and_cleared_by_a_star() -> None:
    a, b, c = rule("a"), rule("b"), rule("c")
    netmap = started(packet_filters={"z": (a,), "base": (b,)})
    assert netmap.packet_filters == (b, a)
    netmap = netmap.apply(MapResponse(packet_filters={"z": None, "k": (c,)}), NOW)
    assert netmap.packet_filters == (b, c)
    assert netmap.apply(MapResponse(packet_filter=(a,)), NOW).packet_filters == (a, c)
    assert netmap.apply(MapResponse(packet_filters={"*": None, "n": (a,)}), NOW).packet_filters == (a,)
    assert netmap.apply(MapResponse(packet_filters={"base": ()}), NOW).packet_filters == (c,)


def test_display_messages_follow_the_same_rule() -> None:
    one, two = DisplayMessage(title="1"), DisplayMessage(title="2")
    netmap = started(display_messages={"a": one, "b": two})
    assert netmap.apply(MapResponse(display_messages={"a": None}), NOW).display_messages == {"b": two}
    assert netmap.apply(MapResponse(display_messages={"*": None, "c": one}), NOW).display_messages == {"c": one}


def test_health_is_kept_until_a_list_even_an_empty_one_comes() -> None:
    netmap = started(health=("broken",))
    assert netmap.apply(MapResponse(domain="x"), NOW).health == ("broken",)
    assert netmap.apply(MapResponse(health=()), NOW).health == ()


def test_derp_map_nulls_keep_and_null_regions_go() -> None:
    one, two = DERPRegion(region_id=1), DERPRegion(region_id=2)
    netmap = started(
        derp_map=DERPMap(home_params=DERPHomeParams(region_score={1: 0.5}), regions={1: one, 2: two, 3: None})
    )
    assert netmap.derp_map.regions == {1: one, 2: two}
    kept = netmap.apply(MapResponse(derp_map=DERPMap(home_params=DERPHomeParams())), NOW).derp_map
    assert (kept.regions, kept.home_params) == ({1: one, 2: two}, DERPHomeParams(region_score={1: 0.5}))
    assert netmap.apply(MapResponse(derp_map=DERPMap(regions={2: two})), NOW).derp_map.regions == {2: two}


def test_user_profiles_are_merged_and_dns_is_replaced() -> None:
    netmap = started(user_profiles=(UserProfile(id=1),), dns_config=DNSConfig(proxied=True, domains=("a",)))
    netmap = netmap.apply(MapResponse(user_profiles=(UserProfile(id=2),), dns_config=DNSConfig(domains=("b",))), NOW)
    assert set(netmap.user_profiles) == {1, 2}
    assert netmap.dns == DNSConfig(domains=("b",))


def test_older_spellings_are_normalised() -> None:
    node = normalise(Node(addresses=("a",), legacy_derp="127.3.3.40:5", capabilities=("cap",), cap_map={"other": [1]}))
    assert (node.allowed_ips, node.home_derp, node.cap_map) == (("a",), 5, {"cap": None, "other": [1]})
    assert normalise(Node(addresses=("a",), allowed_ips=())).allowed_ips == ()
    assert normalise(Node(addresses=("a",), allowed_ips=("a", "b"), unsigned_peer_api_only=True)).allowed_ips == ("a",)


def test_a_peer_whose_key_runs_out_becomes_unreachable_at_that_second() -> None:
    peer = make_node(2, key_expiry=from_unix_time(NOW + 100), endpoints=("192.0.2.1:1",), home_derp=9)
    netmap = started(3).apply(MapResponse(peers_changed=(peer,)), NOW)
    assert netmap.next_expiry() == NOW + 100
    assert netmap.expire(NOW + 99).peers[2].key == peer.key
    expired = netmap.expire(NOW + 100)
    assert expired.next_expiry() == math.inf
    broken = expired.peers[2]
    assert (broken.expired, broken.endpoints, broken.home_derp) == (True, (), 0)
    assert broken.key.raw == EXPIRED_KEY_PREFIX + peer.key.raw[6:]
    assert expired.expire(NOW + 101) is expired


def test_a_renewed_key_expiry_brings_the_peer_back_whole() -> None:
    peer = make_node(2, key_expiry=from_unix_time(NOW - 1), endpoints=("192.0.2.1:1",))
    netmap = started().apply(MapResponse(peers=(peer,)), NOW)
    assert netmap.peers[2].expired
    patch = PeerChange(node_id=2, key_expiry=from_unix_time(NOW + 50))
    back = netmap.apply(MapResponse(peers_changed_patch=(patch,)), NOW).peers[2]
    assert (back.expired, back.endpoints, back.key) == (False, ("192.0.2.1:1",), peer.key)


def test_our_own_expiry_is_flagged_and_timed() -> None:
    netmap = started().apply(MapResponse(node=make_node(1, key_expiry=from_unix_time(NOW + 5))), NOW)
    assert netmap.next_expiry() == NOW + 5
    assert netmap.expire(NOW + 5).self_node.expired
    assert not netmap.self_node.expired


@pytest.mark.parametrize(("theirs", "offset"), [(NOW + 30, 0.0), (NOW - 60, 0.0), (NOW + 3600, 3600.0)])
def test_controls_clock_counts_only_beyond_a_minute(theirs: float, offset: float) -> None:
    netmap = started(control_time=from_unix_time(theirs))
    assert netmap.clock_offset == offset
    peer = make_node(2, key_expiry=from_unix_time(NOW + 3500))
    assert netmap.apply(MapResponse(peers_changed=(peer,)), NOW).peers[2].expired == (offset > 3500)


fields = st.fixed_dictionaries(
    {},
    optional={
        "online": st.booleans(),
        "derp_region": st.integers(1, 5),
        "cap": st.integers(1, 5),
        "endpoints": st.sampled_from([(), ("192.0.2.1:1",)]),
        "key": st.binary(min_size=32, max_size=32).map(NodePublic),
        "key_expiry": st.sampled_from([from_unix_time(NOW - 5), from_unix_time(NOW + 5), from_unix_time(0.0)]),
    },
)
numbers = st.integers(2, 6)
steps = st.one_of(
    st.tuples(st.just("add"), numbers, st.text(max_size=3)),
    st.tuples(st.just("remove"), numbers, st.none()),
    st.tuples(st.just("patch"), numbers, fields),
    st.tuples(st.just("online"), numbers, st.booleans()),
)


@settings(max_examples=100)
@given(st.lists(st.lists(steps, max_size=4), max_size=8))
def test_deltas_equal_the_full_map_they_stand_for(messages: list[list[tuple[str, int, Any]]]) -> None:
    """The model is a dict of plain field dicts; at every step a fresh full map of it must equal the folded deltas."""
    netmap = started(2, 3)
    model = {number: _plain(make_node(number)) for number in (2, 3)}
    for message in messages:
        for kind, number, value in message:  # one message each: order inside a message is upstream's, not ours
            netmap = netmap.apply(_delta(kind, number, value), NOW)
            _model_step(model, kind, number, value)
        full = tuple(Node(**plain) for plain in model.values())
        if full:
            assert netmap.peers == NetMap.empty().apply(MapResponse(node=make_node(1), peers=full), NOW).peers
        assert set(netmap.peers) == set(model)


def _plain(node: Node) -> dict[str, Any]:
    return {name: getattr(node, name) for name in Node.__struct_fields__}


def _delta(kind: str, number: int, value: Any) -> MapResponse:
    if kind == "add":
        return MapResponse(peers_changed=(make_node(number, name=value),))
    if kind == "remove":
        return MapResponse(peers_removed=(number,))
    if kind == "online":
        return MapResponse(online_change={number: value})
    return MapResponse(peers_changed_patch=(PeerChange(node_id=number, **value),))


def _model_step(model: dict[int, dict[str, Any]], kind: str, number: int, value: Any) -> None:
    if kind == "add":
        model[number] = _plain(make_node(number, name=value))
    elif kind == "remove":
        model.pop(number, None)
    elif number in model and kind == "online":
        model[number]["online"] = value
    elif number in model:
        model[number].update({"home_derp" if name == "derp_region" else name: v for name, v in value.items()})
