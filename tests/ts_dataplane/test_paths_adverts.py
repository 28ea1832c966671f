"""Disco keys that peers tell us inside their tunnels: faster than control, until control says something new."""

from __future__ import annotations

from path_scripts import World

from ts_base.keys import DiscoPrivate, NodePrivate
from ts_dataplane.paths import PathFinder


def restarted_pair() -> tuple:
    world = World()
    a, b = (world.host((f"192.0.2.{n}", 41641)) for n in (1, 2))
    world.meet()
    assert world.time_to_direct(a, b) < 1.0
    stale = b.facts()
    b.disco = DiscoPrivate.generate(bytes(range(1, 33)))
    b.finder = PathFinder(b.disco, b.node.public, entropy=world.rng.randbytes)
    b.stun()
    b.finder.set_peers({a.number: a.facts()}, world.now)
    return world, a, b, stale


def test_an_advertised_key_restores_the_direct_path_before_control_speaks() -> None:
    world, a, b, _ = restarted_pair()
    a.finder.on_disco_key_advertised(b.number, b.disco.public.raw, world.now)
    assert world.time_to_direct(a, b, limit=15.0) <= 6.0


def test_an_advertised_key_outlives_netmaps_that_repeat_the_old_one() -> None:
    world, a, b, stale = restarted_pair()
    a.finder.on_disco_key_advertised(b.number, b.disco.public.raw, world.now)
    a.finder.set_peers({b.number: stale._replace(endpoints=("192.0.2.2:41641", "192.0.2.9:1"))}, world.now)
    assert world.time_to_direct(a, b, limit=15.0) <= 6.0


def test_control_has_the_last_word_once_it_says_something_new() -> None:
    world, a, b, stale = restarted_pair()
    a.finder.on_disco_key_advertised(b.number, bytes(range(32)), world.now)
    a.finder.set_peers({b.number: b.facts()}, world.now)
    assert world.time_to_direct(a, b, limit=15.0) <= 6.0
    a.finder.set_peers({b.number: stale}, world.now)
    assert not a.finder._advertised


def test_strangers_and_removed_peers_leave_nothing_behind() -> None:
    world, a, b, stale = restarted_pair()
    a.finder.on_disco_key_advertised(77, bytes(32), world.now)
    a.finder.on_disco_key_advertised(b.number, b.disco.public.raw, world.now)
    a.finder.set_peers({}, world.now)
    assert not a.finder._advertised
    a.finder.set_peers({b.number: stale}, world.now)


def test_pings_carry_our_new_node_key_after_a_rotation() -> None:
    world = World()
    a, b = (world.host((f"192.0.2.{n}", 41641)) for n in (1, 2))
    world.meet()
    a.node = NodePrivate.generate(bytes(range(2, 34)))
    a.finder.set_node(a.node.public)
    b.finder.set_peers({a.number: a.facts()}, world.now)
    assert world.time_to_direct(a, b, limit=15.0) <= 1.0
