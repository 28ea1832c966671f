"""Peers, routers and our own network that change: new keys, addresses, homes, and mappings long forgotten."""

from __future__ import annotations

from path_scripts import DATA, REGION, Router, World, changes, lan, seal, settled

from ts_base.keys import DiscoPrivate
from ts_dataplane import disco
from ts_dataplane.path_messages import NeedStun
from ts_dataplane.paths import PathFinder


def test_peer_whose_router_gave_it_another_port_is_followed_within_a_heartbeat_and_a_second():
    world, a, b = settled()
    world.talk(b, a, 1.0)
    old, moved_at = b.address, world.now
    b.address = (old[0], old[1] + 1)
    while a.finder.report(b.number, world.now).best != b.address:
        world.talk(a, b, 0.05, every=0.05)
        world.talk(b, a, 0.05, every=0.05)
        assert world.now - moved_at < 5.0
    world.talk(a, b, 0.5)
    assert a.paths_to(b) == (b.address,)


def test_idle_hour_behind_routers_ends_in_a_direct_path_soon():
    world = World()
    a = world.host(("10.0.1.2", 41641), Router("203.0.113.1"))
    b = world.host(("10.0.2.2", 41641), Router("203.0.113.2", filtering="none"))
    world.meet()
    assert world.time_to_direct(a, b) < 1.0
    world.run(3600.0)
    assert not a.finder.statistics().standings
    a.router.flush(), b.router.flush()
    a.router.ports, b.router.ports = iter(range(30000, 40000)), iter(range(40000, 50000))
    a.router.owners[41641] = b.router.owners[41641] = "somebody else"
    assert a.paths_to(b) == ((REGION, b.key),)
    assert world.time_to_direct(a, b) <= 2.0


def test_our_own_network_change_starts_everything_anew():
    world, a, b = settled()
    a.address = ("192.0.2.50", 1)
    a.finder.on_network_changed(world.now)
    assert a.paths_to(b) == ((REGION, b.key),)
    world.pump(a)
    assert NeedStun("network changed") in [m for _, m in a.messages]
    assert world.time_to_direct(a, b, limit=15.0) <= 7.0
    world.talk(a, b, 10.0)
    assert b.paths_to(a) == (a.address,)


def test_pong_after_a_network_change_is_ignored():
    world, a, b = lan()
    a.send_data(b)
    world.run(0.045)  # the ping has arrived, its pong is under way
    a.finder.on_network_changed(world.now)
    sent = a.finder.transmit(world.now)
    assert sent  # it starts over at once
    world.run(0.036)
    assert a.finder.report(b.number, world.now).best is None
    assert a.finder.drops["disco.pong_to_no_ping"] == 1


def test_call_waits_for_fresh_endpoints_but_not_for_ever():
    world, a, b = lan()
    world.run(60.0)
    a.messages.clear()
    a.answers_stun = False
    calls = lambda: [t for t, path, d in a.sent if path == (REGION, b.key) and d != DATA and t >= 1060.0]  # noqa: E731
    a.send_data(b)
    assert [m for _, m in a.messages] == [NeedStun("our addresses are stale")]
    assert not calls()
    world.run(0.4)
    assert not calls()
    world.run(0.2)
    assert calls() == [1060.5]
    a.fixed_endpoints = (("203.0.113.99", 5),)
    a.stun()  # late, and different: said again
    assert len(calls()) == 2


def test_peer_that_restarted_with_another_disco_key_heals():
    world, a, b = settled()
    b.disco = DiscoPrivate.generate(bytes(range(1, 33)))
    b.finder = PathFinder(b.disco, b.node.public, entropy=world.rng.randbytes)
    b.address = ("192.0.2.2", 5555)
    b.stun()
    b.finder.set_peers({a.number: a.facts()}, world.now)
    a.finder.set_peers({b.number: b.facts()}, world.now)
    assert len(a.paths_to(b)) == 2  # data keeps flowing both ways until the new key has answered
    assert world.time_to_direct(a, b, limit=15.0) <= 6.0
    world.talk(a, b, 10.0)
    assert a.paths_to(b) == (b.address,)


def test_peer_with_another_node_key_is_another_peer():
    world, a, b = settled()
    facts = b.facts(node_key=bytes(range(32)))
    a.finder.set_peers({b.number: facts}, world.now)
    assert a.paths_to(b) == ((REGION, bytes(range(32))),)
    assert changes(a, b)[-1] == b.address
    assert a.finder.take_messages()[-1].path is None


def test_peer_whose_home_moves_is_reached_there():
    world, a, b = lan()
    a.finder.set_peers({b.number: b.facts(home_region=2)}, world.now)
    assert a.paths_to(b) == ((2, b.key),)


def test_peer_without_a_home_is_answered_where_it_was_heard():
    world, a, b = lan()
    a.finder.set_peers({b.number: b.facts(home_region=0, endpoints=())}, world.now)
    assert a.paths_to(b) == ()
    a.finder.on_data_heard([(b.number, (5, b.key))], world.now)
    assert a.paths_to(b) == ((5, b.key),)
    a.finder.on_relay_gone(5, b.key, world.now)
    assert a.paths_to(b) == ()


def test_expired_and_removed_peers_have_no_path():
    world, a, b = settled()
    a.finder.set_peers({b.number: b.facts(expired=True)}, world.now)
    assert a.paths_to(b) == ()
    a.finder.set_peers({}, world.now)
    assert not a.finder.paths
    a.send_data(b)
    a.finder.receive([(seal(b, a, disco.Ping(bytes(12), b.key)), b.address)], world.now)
    assert not a.finder.statistics().standings
    assert not a.finder._roster.by_disco
    assert not a.finder._roster.by_node
    world.run(20.0)
