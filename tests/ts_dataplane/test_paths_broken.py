"""Paths that die, lie, lose or swallow: how soon the relay carries, and when it may rest again."""

from __future__ import annotations

from path_scripts import DATA, REGION, World, changes, lan, paths_of, settled

from ts_base.who import is_relayed
from ts_dataplane import disco


def test_dead_path_is_mirrored_within_a_heartbeat_and_a_second_and_comes_back():
    world, a, b = settled()
    cut_at = world.now
    world.blocked = lambda host, path, datagram: True
    mirrored_at = None
    while mirrored_at is None:
        world.talk(a, b, 0.05, every=0.05)
        if len(a.paths_to(b)) == 2:
            mirrored_at = world.now
    assert 1.0 < mirrored_at - cut_at <= 4.2
    world.talk(a, b, 5.0)
    assert a.paths_to(b) == ((REGION, b.key),)
    assert len([t for t, _, path in b.data if t > mirrored_at + 0.2 and is_relayed(path)]) >= 45
    world.talk(a, b, 20.0, every=0.5)
    world.blocked = lambda host, path, datagram: False
    assert world.time_to_direct(a, b, limit=35.0, every=0.1) <= 6.0
    assert changes(a, b) == [b.address, None, b.address]


def test_one_lost_ping_is_asked_again_and_mirrored_for_a_round_trip_only():
    world, a, b = settled()
    lost = []

    def lose_one(host, path, datagram):
        is_disco = datagram.startswith(disco.MAGIC) and not is_relayed(path)
        if host is a and is_disco and not lost:
            lost.append(world.now)
            return True
        return False

    world.blocked = lose_one
    mirrored = 0
    for _ in range(600):
        world.talk(a, b, 0.02, every=0.02)
        mirrored += len(a.paths_to(b)) == 2
    assert lost
    assert 1 <= mirrored <= 10  # of 20 ms each
    assert a.is_direct(b)


def test_trusted_path_alone_carries_data():
    world, a, b = settled()
    before = len(b.data)
    world.talk(a, b, 5.0)
    assert {path for _, _, path in b.data[before:]} == {a.address}


def test_two_equal_addresses_do_not_flap():
    world, a, b = settled()
    other = ("192.0.2.77", 41641)
    state = paths_of(a, b)
    state.best = state.best._replace(latency=0.010)
    first = state.best.path
    for second in range(40):
        paths_of(a, b).candidates.setdefault(other, type(next(iter(state.candidates.values())))())
        now = world.now + second / 10
        assert not state.credit(state.best._replace(path=other, latency=0.0100 if second % 2 else 0.01005), now)
        state.credit(state.best._replace(latency=0.01005 if second % 2 else 0.0100), now)
    assert state.best.path == first


def test_one_way_path_is_never_trusted():
    world, a, b = lan()
    world.blocked = lambda host, path, datagram: host is b
    world.talk(a, b, 20.0)
    assert not a.is_direct(b)
    assert a.finder.report(b.number, world.now).best is None


def test_path_that_swallows_the_tunnel_is_left_for_the_relay():
    world, a, b = settled()
    world.blocked = lambda host, path, datagram: datagram == DATA
    world.talk(a, b, 5.0)
    assert a.is_direct(b)  # disco alone cannot tell
    a.finder.on_silence(b.number, world.now)
    assert a.paths_to(b) == ((REGION, b.key),)
    before = len(b.data)
    world.talk(a, b, 30.0)
    assert len(b.data) - before >= 290
    assert not a.is_direct(b)
    world.blocked = lambda host, path, datagram: False
    world.talk(a, b, 45.0)
    assert a.is_direct(b)


def test_silence_without_any_relay_changes_nothing():
    world = World()
    a, b = (world.host((f"192.0.2.{n}", 41641), home=0) for n in (1, 2))
    world.meet()
    assert world.time_to_direct(a, b) < 1.0
    a.finder.on_silence(b.number, world.now)
    assert a.is_direct(b)


def test_path_that_swallows_full_size_datagrams_is_not_used():
    world, a, b = lan()
    world.blocked = lambda host, path, datagram: len(datagram) > 1000
    world.talk(a, b, 3.0)
    assert len(a.paths_to(b)) == 2  # in doubt: the relay has a copy of everything
    world.talk(a, b, 10.0)
    assert a.paths_to(b) == ((REGION, b.key),)
    assert a.finder.drops["paths.black_hole"] == 1
    world.blocked = lambda host, path, datagram: False
    world.talk(a, b, 70.0)
    assert a.is_direct(b)


def test_send_error_drops_the_path_at_once():
    world, a, b = settled()
    a.finder.on_send_failed(b.address, world.now)
    assert a.paths_to(b) == ((REGION, b.key),)


def test_relay_that_lost_the_peer_gives_way_to_one_that_heard_it():
    world, a, b = lan()
    a.finder.on_relay_gone(REGION, b.key, world.now)
    assert a.paths_to(b) == ((REGION, b.key),)  # nothing better is known
    a.finder.on_data_heard([(b.number, (5, b.key))], world.now)
    assert a.paths_to(b) == ((5, b.key),)
    a.finder.on_data_heard([(b.number, (REGION, b.key))], world.now)
    assert a.paths_to(b) == ((REGION, b.key),)
