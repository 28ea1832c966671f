"""What streams are told: deltas in every form, and that they always add up to the full map."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_scripts import Member, World

from ts_control.netmap import NetMap
from ts_control.server import ControlServerStatistics
from ts_control.server_maps import MAX_QUEUED_BYTES
from ts_control.wire import DERPMap, DERPRegion, Hostinfo, MapResponse


def only(messages: list[MapResponse]) -> MapResponse:
    assert len(messages) == 1, messages
    return messages[0]


def quiet(*members: Member) -> None:
    members[0].world.at(members[0].world.now + 5)
    for member in members:
        member.hear()


def test_first_message_says_everything() -> None:
    world = World()
    world.do("set_derp_map", DERPMap(regions={1: DERPRegion(region_id=1, region_code="x")}))
    a = world.member("a")
    b = world.member("b")
    first = b.heard[0]
    assert first.node is not None
    assert first.node.name == "b.tailnet.test."
    assert [peer.name for peer in first.peers if peer] == ["a.tailnet.test."]
    assert first.derp_map is not None
    assert list(first.derp_map.live_regions()) == [1]
    assert first.dns_config is not None
    assert first.dns_config.domains == ("tailnet.test",)
    assert {profile.login_name for profile in first.user_profiles} == {"user@tailnet.test"}
    assert b.netmap.packet_filters[0].src_ips == ("100.64.0.0/10", "fd7a:115c:a1e0::/48")
    quiet(a, b)
    assert a.peer_names() == {"b"}


def test_compressed_stream_says_the_same() -> None:
    world = World()
    a = world.member("a")
    a.stream(compress="zstd")
    assert a.netmap == a.full()


def test_endpoints_home_and_disco_travel_as_patches() -> None:
    world = World()
    a, b = world.member("a"), world.member("b")
    quiet(a, b)
    a.report(endpoints=("192.0.2.1:41641",))
    (patch,) = only(b.hear()).peers_changed_patch
    assert patch is not None
    assert (patch.node_id, patch.endpoints, patch.key) == (a.id, ("192.0.2.1:41641",), None)
    quiet(a, b)
    a.set_home(7)
    (patch,) = only(b.hear()).peers_changed_patch
    assert patch is not None
    assert patch.derp_region == 7


def test_online_travels_alone() -> None:
    world = World()
    a, b = world.member("a"), world.member("b")
    quiet(a, b)
    a.leave()
    world.at(world.now + 1.9)
    assert b.hear() == []
    world.at(world.now + 0.2)
    message = only(b.hear())
    assert message.online_change == {a.id: False}
    assert message.peer_seen_change == {a.id: True}
    a.stream()
    assert only(b.hear()).online_change == {a.id: True}


def test_stream_that_comes_back_at_once_was_never_away() -> None:
    world = World()
    a, b = world.member("a"), world.member("b")
    quiet(a, b)
    a.leave()
    world.at(world.now + 1)
    a.stream()
    world.at(world.now + 30)
    assert b.hear() == []


def test_changes_close_together_are_told_together() -> None:
    world = World()
    a, b = world.member("a"), world.member("b")
    quiet(a, b)
    for number in range(5):
        a.report(endpoints=(f"192.0.2.{number}:1",))
    assert len(b.hear()) == 1
    world.at(world.now + 0.02)
    assert len(b.hear()) == 1
    assert b.netmap.peers[a.id].endpoints == ("192.0.2.4:1",)


def test_who_joins_is_told_of_once_and_with_where_it_is() -> None:
    world = World()
    a = world.member("a")
    quiet(a)
    b = world.member("b")
    b.report(endpoints=("192.0.2.1:1",))
    assert a.hear() == []
    b.set_home(7)
    message = only(a.hear())  # in the same moment
    (peer,) = message.peers_changed
    assert (peer.id, peer.online, peer.home_derp, peer.endpoints) == (b.id, True, 7, ("192.0.2.1:1",))


def test_who_registers_and_says_no_more_is_told_of_a_little_later() -> None:
    world = World()
    a = world.member("a")
    quiet(a)
    b = Member(world, "b")
    b.register(world.server.create_auth_key())
    world.at(world.now + 0.05)
    assert a.hear() == []
    a.set_home(7)  # other news does not wait for it
    world.at(world.now + 0.06)
    assert a.peer_names() == {"b"}
    b.stream()
    c = Member(world, "c")
    c.register(world.server.create_auth_key())
    world.at(world.now + 0.11)
    assert a.peer_names() == {"b", "c"}


def test_same_delta_is_encoded_once_for_all_who_hear_it() -> None:
    world = World()
    members = [world.member(f"m{number}") for number in range(10)]
    quiet(*members)
    members[0].report(endpoints=("192.0.2.1:1",))
    heard = [member.streaming.take() for member in members[1:] if member.streaming]
    assert len({id(chunks[0]) for chunks in heard}) == 1


def test_keep_alives_come_when_nothing_else_does() -> None:
    world = World()
    a = world.member("a")
    quiet(a)
    world.at(49)
    assert a.hear() == []
    world.at(120)
    assert [message.keep_alive for message in a.hear()] == [True, True]


def test_routes_need_approval_and_move_to_who_is_online() -> None:
    world = World()
    first, second, user = (Member(world, name) for name in ("r1", "r2", "u"))
    for router in (first, second):
        router.hostinfo = Hostinfo(hostname=router.hostinfo.hostname, routable_ips=("10.0.0.0/24", "0.0.0.0/0"))
    for member in (first, second, user):
        member.register(world.server.create_auth_key())
        member.stream()

    def carriers(route: str) -> set[int]:
        user.hear()
        return {peer.id for peer in user.netmap.peers.values() if route in (peer.allowed_ips or ())}

    quiet(first, second, user)
    assert carriers("10.0.0.0/24") == set()
    for router in (first, second):
        world.do("approve_routes", router.id, ["10.0.0.0/24", "0.0.0.0/0"])
    quiet(first, second, user)
    assert carriers("10.0.0.0/24") == {first.id}
    assert carriers("0.0.0.0/0") == {first.id, second.id}
    first.leave()
    world.at(world.now + 3)
    assert carriers("10.0.0.0/24") == {second.id}
    first.stream()
    quiet(first, second, user)
    assert carriers("10.0.0.0/24") == {second.id}
    assert user.netmap.peers[second.id].primary_routes == ("10.0.0.0/24",)


def test_policy_change_shows_hides_and_refilters() -> None:
    world = World()
    a, b, c = (world.member(name, user=f"{name}@example.com") for name in "abc")
    quiet(a, b, c)
    world.do("set_policy", {"acls": [{"action": "accept", "src": ["a@"], "dst": ["b@:22"]}]})
    assert (a.peer_names(), b.peer_names(), c.peer_names()) == ({"b"}, {"a"}, set())
    assert b.netmap.packet_filters[0].src_ips == ("100.64.0.1", "fd7a:115c:a1e0::1")
    assert a.netmap.packet_filters == ()
    quiet(a, b, c)
    world.do("set_policy", None)
    assert c.peer_names() == {"a", "b"}


def test_node_attributes_of_the_policy_reach_the_device() -> None:
    world = World()
    a = world.member("a")
    world.do("set_policy", {"nodeAttrs": [{"target": ["*"], "attr": ["example.com/feature"]}]})
    quiet(a)
    assert "example.com/feature" in a.netmap.self_node.cap_map


def test_rename_dns_and_relays_are_pushed() -> None:
    world = World()
    a, b = world.member("a"), world.member("b")
    quiet(a, b)
    world.do("rename", a.id, "db")
    assert b.peer_names() == {"db"}
    quiet(a, b)
    assert a.netmap.self_node.name == "db.tailnet.test."
    a.report()
    assert b.peer_names() == {"db"}, "the hostname of a renamed device no longer counts"
    world.do("set_dns", records=[("x.tailnet.test", "100.64.0.9")], nameservers=["192.0.2.53"])
    world.do("set_derp_map", DERPMap(regions={2: DERPRegion(region_id=2)}))
    quiet(a, b)
    assert [record.name for record in b.netmap.dns.extra_records] == ["x.tailnet.test"]
    assert list(b.netmap.derp_map.live_regions()) == [2]


def test_ping_is_sent_and_its_answer_taken_once() -> None:
    world = World()
    a = world.member("a")
    quiet(a)
    ping = world.do("ping", a.id)
    request = only(a.hear()).ping_request
    assert request is not None
    assert request.url == f"http://control.test/machine/ping-response?id={ping.id}"
    assert world.server.answer_ping(ping.id, b"", world.now)
    assert not world.server.answer_ping(ping.id, b"again", world.now)
    assert ping.answer == b""


def test_statistics_say_what_is_open_and_what_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ts_control.server.MAX_PINGS", 2)
    world = World()
    a = world.member("a")
    answered = world.do("ping", a.id)
    assert world.server.answer_ping(answered.id, b"", world.now)
    for _ in range(3):
        world.do("ping", a.id)
    assert world.server.statistics() == ControlServerStatistics(1, 1, 2, {"control.open_pings_full": 1})


def test_stream_that_is_not_read_is_closed_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ts_control.server_maps.MAX_QUEUED_BYTES", 100)
    assert MAX_QUEUED_BYTES > 100
    world = World()
    a = world.member("a", reusable=True)
    assert a.streaming is not None
    assert a.streaming.closed
    assert world.server.drops["control.map_read_too_slowly"] == 1


POLICIES: list[Any] = [
    None,
    {"acls": [{"action": "accept", "src": ["a@"], "dst": ["b@:22", "tag:x:*"]}], "tagOwners": {"tag:x": ["a@"]}},
    {"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]},
    {"grants": [{"src": ["*"], "dst": ["10.0.0.0/8", "tag:x"], "ip": ["tcp:80"]}], "tagOwners": {"tag:x": ["a@"]}},
    {"acls": []},
]
STEPS = st.one_of(
    st.tuples(st.just("policy"), st.integers(0, len(POLICIES) - 1)),
    st.tuples(
        st.sampled_from(
            ["join", "leave", "return", "rekey", "expire", "revive", "remove", "rename", "tag", "untag", "routes",
             "endpoints", "home", "hostname", "wait"]
        ),
        st.integers(0, 4),
    ),
)  # fmt: skip


def step(world: World, members: list[Member], what: str, number: int) -> None:
    if what == "policy":
        world.do("set_policy", POLICIES[number])
    elif what == "wait":
        world.at(world.now + 10.0**number / 100)
    elif what == "join" or not members:
        members.append(world.member(f"m{number}", user=f"{'ab'[number % 2]}@example.com"))
    else:
        member = members[number % len(members)]
        if what == "remove":
            world.do("remove", member.id)
            members.remove(member)
            return
        hostname = member.hostinfo.hostname
        match what:
            case "leave" if member.streaming and not member.streaming.closed:
                member.leave()
            case "return" if member.streaming and member.streaming.closed:
                member.stream()
            case "rekey":
                member.new_key()
                member.register(world.server.create_auth_key(f"{'ab'[number % 2]}@example.com"))
                if world.server.directory.by_key(member.key) is not None and member.streaming.closed:  # type: ignore[union-attr]
                    member.stream()
            case "expire":
                world.do("expire", member.id)
            case "revive":
                world.do("set_key_expiry", member.id, 0.0)
            case "rename":
                world.do("rename", member.id, f"renamed-{number}")
            case "tag":
                world.do("set_tags", member.id, ["tag:x"])
            case "untag":
                world.do("set_tags", member.id, [])
            case "routes":
                member.hostinfo = Hostinfo(hostname=hostname, routable_ips=("10.0.0.0/24", f"10.{number}.0.0/16"))
                member.report()
                world.do("approve_routes", member.id, ["10.0.0.0/24"])
            case "endpoints":
                member.report(endpoints=(f"192.0.2.{number}:1",))
            case "home":
                member.set_home(number)
            case "hostname":
                member.hostinfo = Hostinfo(hostname=f"h{number}")
                member.report()


def comparable(netmap: NetMap, member: Member) -> Any:
    """Without what legitimately differs: profiles are never taken back, and LastSeen is when one heard of it."""
    peers = {number: msgspec.structs.replace(peer, last_seen=None) for number, peer in netmap.peers.items()}
    own = msgspec.structs.replace(netmap.self_node, last_seen=None)
    return own, peers, netmap.packet_filters, netmap.dns, netmap.derp_map


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_deltas_always_add_up_to_the_full_map(steps: list[tuple[str, int]]) -> None:
    world = World()
    members = [world.member(name, user=f"{name}@example.com") for name in "ab"]
    for what, number in steps:
        step(world, members, what, number)
    world.at(world.now + 1)
    for member in members:
        if member.streaming and not member.streaming.closed:
            member.hear()
            assert comparable(member.netmap, member) == comparable(member.full(), member)


@pytest.mark.slow
def test_ten_thousand_devices_are_streamed_and_a_delta_stays_small() -> None:
    world = World()
    key = world.server.create_auth_key(reusable=True)
    for number in range(10_000):
        Member(world, f"m{number}").register(key)
    world.at(1)
    watchers = [world.member(f"w{number}") for number in range(5)]
    assert all(len(watcher.netmap.peers) >= 10_000 for watcher in watchers)
    quiet(*watchers)
    watchers[0].report(endpoints=("192.0.2.1:1",))
    (message,) = watchers[1].streaming.take()  # type: ignore[union-attr]
    assert len(message) < 200
