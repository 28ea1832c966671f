"""Every way into the embedded tailnet and out of it, as dialogues without a socket."""

from __future__ import annotations

import pytest
from control_scripts import NOW
from server_scripts import Member, World, past

from ts_control.directory import DirectoryError
from ts_control.gojson import from_unix_time
from ts_control.server_login import MAX_LOGINS, Parked
from ts_control.wire_register import RegisterResponse


def refusal(answer: RegisterResponse | Parked) -> str:
    assert isinstance(answer, RegisterResponse)
    return answer.error


def accepted(answer: RegisterResponse | Parked) -> RegisterResponse:
    assert isinstance(answer, RegisterResponse)
    assert not answer.error
    assert answer.machine_authorized
    return answer


def test_addresses_and_names_are_given_in_order() -> None:
    world = World()
    a, b = world.member("web"), world.member("web")
    nodes = [member.full().self_node for member in (a, b)]
    assert [node.name for node in nodes] == ["web.tailnet.test.", "web-1.tailnet.test."]
    assert nodes[0].addresses == ("100.64.0.1/32", "fd7a:115c:a1e0::1/128")
    assert nodes[1].addresses == ("100.64.0.2/32", "fd7a:115c:a1e0::2/128")


def test_one_shot_key_lets_one_device_in_and_the_same_device_again() -> None:
    world = World()
    key = world.server.create_auth_key()
    a, b = Member(world, "a"), Member(world, "b")
    accepted(a.register(key))
    accepted(a.register(key))  # a restart: the same machine and node key
    assert refusal(b.register(key)) == "authkey already used"


@pytest.mark.parametrize("spoil", ["expire", "revoke", "invent"])
def test_key_that_is_of_no_use_is_refused_with_the_reason(spoil: str) -> None:
    world = World()
    key = world.server.create_auth_key(reusable=True, lifetime=60)
    if spoil == "expire":
        world.at(61)
    elif spoil == "revoke":
        world.server.find_auth_key(key).revoked = True
    else:
        key = key[:-1] + ("0" if key[-1] != "0" else "1")
    expected = {"expire": "authkey expired", "revoke": "authkey revoked", "invent": "invalid auth key"}[spoil]
    assert refusal(Member(world, "a").register(key)).startswith(expected)
    assert not list(world.server.directory)


def test_auth_key_secret_is_in_no_repr() -> None:
    world = World()
    key = world.server.create_auth_key()
    assert key not in repr(world.server.find_auth_key(key))


def test_tags_come_from_the_key_or_from_an_owner_who_asks() -> None:
    policy = {"tagOwners": {"tag:ci": ["alice@example.com"]}}
    world = World()
    world.do("set_policy", policy)
    tagged = Member(world, "a")
    accepted(tagged.register(world.server.create_auth_key(tags=["tag:ci"])))
    assert tagged.full().self_node.tags == ("tag:ci",)
    asking = Member(world, "b", request_tags=("tag:ci",))
    accepted(asking.register(world.server.create_auth_key("alice@example.com")))
    assert asking.full().self_node.tags == ("tag:ci",)
    stranger = Member(world, "c", request_tags=("tag:ci",))
    answer = stranger.register(world.server.create_auth_key("bob@example.com"))
    assert refusal(answer) == "requested tags [tag:ci] are invalid or not permitted"


def test_login_waits_for_a_human_and_then_lets_in() -> None:
    world = World()
    a = Member(world, "a")
    first = a.register()
    assert isinstance(first, RegisterResponse)
    assert first.auth_url.startswith("http://control.test/register/")
    waiting = a.register(followup=first.auth_url)
    assert isinstance(waiting, Parked)
    world.do("approve_login", first.auth_url, user="alice@example.com")
    assert world.server.take_ready() == [a]
    assert waiting.response is not None
    assert accepted(waiting.response).login.login_name == "alice@example.com"
    a.stream()


def test_login_approved_before_the_followup_is_answered_at_once() -> None:
    world = World()
    a = Member(world, "a")
    first = a.register()
    assert isinstance(first, RegisterResponse)
    world.do("approve_login", first.auth_url)
    accepted(a.register(followup=first.auth_url))


def test_login_rejected_or_forgotten() -> None:
    world = World()
    a = Member(world, "a")
    first = a.register()
    assert isinstance(first, RegisterResponse)
    waiting = a.register(followup=first.auth_url)
    world.do("reject_login", first.auth_url)
    assert isinstance(waiting, Parked)
    assert waiting.response is not None
    assert waiting.response.error == "the login was rejected"
    again = a.register(followup=first.auth_url)
    assert isinstance(again, RegisterResponse)
    assert again.auth_url not in {"", first.auth_url}
    world.at(16 * 60)
    with pytest.raises(DirectoryError):
        world.do("approve_login", again.auth_url)


def test_reauthentication_keeps_id_and_addresses_and_peers_hear_the_new_key() -> None:
    world = World()
    a, b = world.member("a"), world.member("b")
    world.at(0.5)
    b.hear()
    before = a.full().self_node
    old_key = a.key
    world.at(1)
    a.new_key()
    accepted(a.register(world.server.create_auth_key(), old_node_key=old_key))
    (message,) = b.hear()
    (patch,) = message.peers_changed_patch or message.peers_changed
    assert patch is not None
    after = a.full().self_node
    assert (after.id, after.addresses, after.name) == (before.id, before.addresses, before.name)
    assert b.netmap.peers[before.id].key == a.key != old_key


def test_logout_expires_the_device_and_removes_an_ephemeral_one() -> None:
    world = World()
    a, b, watcher = world.member("a"), world.member("b", ephemeral=True), world.member("w")
    for member in (a, b):
        answer = member.register(expiry=past())
        assert isinstance(answer, RegisterResponse)
        assert answer.node_key_expired
    world.at(1)
    assert watcher.peer_names() == {"a"}
    (peer,) = watcher.netmap.peers.values()
    assert peer.expired
    answer = a.register()
    assert isinstance(answer, RegisterResponse)
    assert answer.node_key_expired


def test_key_lifetime_ends_by_itself_and_login_begins_anew() -> None:
    world = World(key_lifetime=3600.0)
    a, b = world.member("a"), world.member("b")
    assert a.full().self_node.key_expiry == from_unix_time(NOW + 3600)
    world.at(3601)
    assert all(peer.expired for peer in b.full().peers.values())
    assert isinstance(answer := a.register(), RegisterResponse)
    assert answer.node_key_expired
    old = a.key
    a.new_key()
    accepted(a.register(world.server.create_auth_key(), old_node_key=old))
    assert not a.full().self_node.expired


def test_node_key_of_another_machine_is_refused() -> None:
    world = World()
    a, thief = world.member("a"), Member(world, "thief")
    thief.key = a.key
    assert refusal(thief.register(world.server.create_auth_key())) == "node exists with a different machine key"
    with pytest.raises(DirectoryError, match="node not found"):
        thief.request(stream=True)


def test_machine_of_another_user_becomes_another_device() -> None:
    world = World()
    a = Member(world, "a")
    accepted(a.register(world.server.create_auth_key("alice@example.com")))
    first = a.id
    a.new_key()
    accepted(a.register(world.server.create_auth_key("bob@example.com")))
    assert a.id != first
    assert [device.login for device in world.server.directory] == ["bob@example.com"]
    assert a.full().self_node.name == "a.tailnet.test."


def test_ephemeral_device_vanishes_after_its_last_stream() -> None:
    world = World()
    a, b = world.member("a"), world.member("b", ephemeral=True)
    b.leave()
    world.at(3)
    assert a.peer_names() == {"b"}
    assert not a.netmap.peers[b.id].online
    world.at(130)
    assert a.peer_names() == set()


def test_many_strangers_who_begin_a_login_do_not_fill_memory() -> None:
    world = World()
    stranger = Member(world, "x")
    for _ in range(MAX_LOGINS + 10):
        stranger.register()
    assert len(world.server.pending_logins) == MAX_LOGINS


def test_machine_that_waits_for_approval_sees_nobody_and_is_not_seen() -> None:
    world = World()
    a = world.member("a")
    a.stream()
    world.server.ask_for_approval()
    b = Member(world, "b")
    answer = b.register(world.server.create_auth_key())
    assert isinstance(answer, RegisterResponse)
    assert (answer.error, answer.machine_authorized) == ("", False)
    b.stream()
    assert (b.netmap.self_node.machine_authorized, b.peer_names()) == (False, set())
    assert a.peer_names() == set()
    world.do("authorize", b.netmap.self_node.id)
    world.at(world.now + 1)
    assert b.peer_names() == {"a"}
    assert b.netmap.self_node.machine_authorized
    assert a.peer_names() == {"b"}
    world.server.authorize(b.netmap.self_node.id, world.now, approved=False)
    world.at(world.now + 1)
    assert (a.peer_names(), b.peer_names()) == (set(), set())
    assert a.netmap.peers == a.full().peers
