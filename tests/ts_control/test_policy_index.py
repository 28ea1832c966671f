"""Policies applied to one small tailnet: the filter each device gets and whom it sees, as a table; and incremental
membership against building anew."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_base.ip import parse_address, parse_prefix
from ts_control.policy import Policy
from ts_control.policy_index import PolicyIndex, Subject, internet, prefix_text


def subject(number: int, login: str = "", tags: str = "", routes: str = "") -> Subject:
    addresses = (parse_address(f"100.64.0.{number}"), parse_address(f"fd7a:115c:a1e0::{number}"))
    listed = tuple(parse_prefix(route) for route in routes.split())
    return Subject(number, login, frozenset(tags.split()), addresses, listed)


ALICE, LAPTOP, BOB, SERVER, ROUTER, EXIT = (
    subject(1, "alice@example.com"),
    subject(2, "alice@example.com"),
    subject(3, "bob@example.com"),
    subject(4, tags="tag:server"),
    subject(5, tags="tag:router", routes="10.0.0.0/24"),
    subject(6, "bob@example.com", routes="0.0.0.0/0 ::/0"),
)
EVERYBODY = (ALICE, LAPTOP, BOB, SERVER, ROUTER, EXIT)
BASE = {
    "groups": {"group:ops": ["alice@example.com"]},
    "hosts": {"lan": "10.0.0.0/24", "printer": "10.0.0.9"},
    "tagOwners": {"tag:server": ["group:ops"], "tag:router": ["group:ops"]},
}


def ports(rule: dict[str, Any]) -> list[str]:
    return [f"{port['IP']}:{port['Ports']['First']}-{port['Ports']['Last']}" for port in rule.get("DstPorts", [])]


def v4(rule: dict[str, Any]) -> tuple[list[str], list[str], list[int]]:
    """Sources, destinations and protocols, IPv6 twins left out."""
    sources = [text for text in rule["SrcIPs"] if ":" not in text]
    return sources, [text for text in ports(rule) if not text.startswith(("fd", "2"))], rule.get("IPProto", [])


TABLE: list[tuple[str, dict[str, Any], dict[int, list[Any]], dict[int, set[int]]]] = [
    (
        "everything",
        {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]},
        {1: [(["10.0.0.0/24", "100.64.0.0/10"], ["*:0-65535"], [])]},
        {1: {2, 3, 4, 5, 6}},
    ),
    ("nothing", {"acls": []}, {1: [], 5: []}, {1: set(), 4: set()}),
    (
        "group to tag on some ports",
        {"acls": [{"action": "accept", "src": ["group:ops"], "dst": ["tag:server:22,80-90"], "proto": "tcp"}]},
        {4: [(["100.64.0.1", "100.64.0.2"], ["100.64.0.4:22-22", "100.64.0.4:80-90"], [6])], 1: [], 3: []},
        {1: {4}, 2: {4}, 3: set(), 4: {1, 2}},
    ),
    (
        "own devices only",
        {"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]},
        {1: [(["100.64.0.1", "100.64.0.2"], ["100.64.0.1:0-65535"], [])], 4: []},
        {1: {2}, 3: {6}, 4: set()},
    ),
    (
        "a host behind a router",
        {"acls": [{"action": "accept", "src": ["bob@example.com"], "dst": ["printer:631"]}]},
        {5: [(["100.64.0.3", "100.64.0.6"], ["10.0.0.9:631-631"], [])], 4: []},
        {3: {5}, 5: {3, 6}, 1: set()},
    ),
    (
        "from a network behind a router",
        {"acls": [{"action": "accept", "src": ["lan"], "dst": ["tag:server:53"], "proto": "udp"}]},
        {4: [(["10.0.0.0/24"], ["100.64.0.4:53-53"], [17])]},
        {4: {5}, 5: {4}},
    ),
    (
        "the internet through an exit node",
        {"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:internet:443"]}]},
        {1: [], 5: []},
        {1: {6}, 6: {1, 2, 3}, 4: set()},
    ),
    (
        "tagged and members",
        {"grants": [{"src": ["autogroup:tagged"], "dst": ["autogroup:member"], "ip": ["udp:53", "tcp:1-9"]}]},
        {
            1: [
                (["100.64.0.4", "100.64.0.5"], ["100.64.0.1:53-53"], [17]),
                (["100.64.0.4", "100.64.0.5"], ["100.64.0.1:1-9"], [6]),
            ]
        },
        {4: {1, 2, 3, 6}, 1: {4, 5}},
    ),
]


@pytest.mark.parametrize(("name", "policy", "filters", "views"), TABLE, ids=[row[0] for row in TABLE])
def test_policy_gives_filters_and_views(
    name: str, policy: dict[str, Any], filters: dict[int, list[Any]], views: dict[int, set[int]]
) -> None:
    index = PolicyIndex(Policy.parse({**BASE, **policy}), EVERYBODY)
    assert {number: [v4(rule) for rule in index.filter_for(number)] for number in filters} == filters
    assert {number: index.view(number) - {number} for number in views} == views


def test_exit_node_lets_the_internet_and_nothing_private_through() -> None:
    acl = {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:internet:443"]}
    (rule,) = PolicyIndex(Policy.parse({"acls": [acl]}), EVERYBODY).filter_for(6)
    texts = {port["IP"] for port in rule["DstPorts"]}
    assert "2000::/3" in texts
    assert len(texts) == len(internet())
    assert not any(text.startswith(("10.", "192.168.", "100.64.")) for text in texts)


def test_grants_carry_capabilities_towards_own_addresses_and_tell_the_companion() -> None:
    policy = {"grants": [{"src": ["bob@"], "dst": ["tag:server"], "app": {"tailscale.com/cap/relay": [{"x": 1}]}}]}
    index = PolicyIndex(Policy.parse({**BASE, **policy}), EVERYBODY)
    (rule,) = index.filter_for(4)
    grant = {"Dsts": ["100.64.0.4/32", "fd7a:115c:a1e0::4/128"], "CapMap": {"tailscale.com/cap/relay": [{"x": 1}]}}
    assert rule["CapGrant"] == [grant]
    (companion,) = index.filter_for(3)
    assert companion["SrcIPs"] == ["100.64.0.4", "fd7a:115c:a1e0::4"]
    assert companion["CapGrant"][0]["CapMap"] == {"tailscale.com/cap/relay-target": None}


def test_equal_standing_is_the_same_view_object() -> None:
    index = PolicyIndex(Policy.allow_all(), EVERYBODY)
    assert index.view(1) is index.view(6)


def test_prefix_text_leaves_the_length_of_a_single_address_out() -> None:
    assert [prefix_text(parse_prefix(text)) for text in ("10.0.0.1/32", "10.0.0.0/8")] == ["10.0.0.1", "10.0.0.0/8"]


SUBJECTS = st.builds(
    subject,
    st.integers(1, 5),
    st.sampled_from(["alice@example.com", "bob@example.com"]),
    st.sampled_from(["", "", "tag:server"]),
    st.sampled_from(["", "10.0.0.0/24", "0.0.0.0/0 ::/0"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(SUBJECTS, st.integers(1, 5)), max_size=12), st.sampled_from([row[1] for row in TABLE]))
def test_membership_kept_current_equals_membership_built_anew(
    steps: list[Subject | int], policy: dict[str, Any]
) -> None:
    parsed = Policy.parse({**BASE, **policy})
    index = PolicyIndex(parsed)
    present: dict[int, Subject] = {}
    for step in steps:
        if isinstance(step, int):
            index.remove(step)
            present.pop(step, None)
        else:
            index.put(step)
            present[step.id] = step
    anew = PolicyIndex(parsed, present.values())
    for number in present:
        assert index.view(number) == anew.view(number)
        assert index.filter_for(number) == anew.filter_for(number)
        for other in present:
            assert (other in index.view(number)) == (number in index.view(other)), "seeing is mutual"
