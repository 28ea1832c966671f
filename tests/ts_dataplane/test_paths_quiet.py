"""Idle peers, peers without disco or a direct path, and pings by hand: what is sent, and what it costs."""

from __future__ import annotations

import math
import tracemalloc

import pytest
from path_scripts import DATA, REGION, RELAY_DELAY, World, lan, settled, udp_pings

from ts_dataplane.path_messages import PingAnswered, PingLost
from ts_dataplane.peer_paths import PeerPaths


def test_heartbeats_stop_after_45_idle_seconds():
    world, a, b = settled()
    world.run(50.0)
    before = len(a.sent), len(b.sent)
    world.run(200.0)
    assert (len(a.sent), len(b.sent)) == before
    a.send_data(b)
    assert len(a.sent) > before[0]
    assert len([1 for _, path, d in a.sent[before[0] :] if d == DATA]) == 2  # in doubt: both ways
    world.run(1.0)
    assert a.is_direct(b)


def test_state_of_a_peer_goes_when_it_has_been_idle_for_long():
    world, a, b = settled()
    world.run(400.0)
    assert not a.finder.statistics().standings
    assert a.paths_to(b) == ((REGION, b.key),)
    assert a.finder.next_timer() == math.inf


def test_idle_peers_are_cheap():
    world = World()
    a = world.host(("192.0.2.1", 41641))
    rng = world.rng
    nodes = [
        (rng.randbytes(32), rng.randbytes(32), (f"198.51.100.{n % 250}:41641", f"10.0.0.{n % 250}:1"))
        for n in range(3000)
    ]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    facts = {n: PeerPaths(key, disco_key, ends, 900) for n, (key, disco_key, ends) in enumerate(nodes)}
    a.finder.set_peers(facts, 0.0)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used / len(nodes) <= 1024
    assert a.finder.next_timer() == math.inf


def test_timer_is_exact_and_handling_it_twice_changes_nothing():
    _, a, _ = settled()
    for _ in range(50):
        now = a.finder.next_timer()
        if now == math.inf:
            break
        a.finder.handle_timer(now)
        out = a.finder.transmit(now)
        a.finder.handle_timer(now)
        assert not a.finder.transmit(now)
        assert a.finder.next_timer() > now
        del out


def test_wireguard_only_peer_is_tried_everywhere_and_kept_where_heard():
    world, a, b = lan()
    facts = b.facts(disco_key=None, home_region=0, wireguard_only=True, endpoints=("192.0.2.2:1", "[2001:db8::2]:1"))
    a.finder.set_peers({b.number: facts}, world.now)
    assert a.paths_to(b) == (("192.0.2.2", 1), ("2001:db8::2", 1))
    a.finder.on_data_sent([b.number], world.now)
    a.finder.on_data_heard([(b.number, ("2001:db8::2", 1))], world.now)
    assert a.paths_to(b) == (("2001:db8::2", 1),)
    world.run(20.0)
    assert a.paths_to(b) == (("2001:db8::2", 1),)
    assert not udp_pings(a)
    a.finder.on_silence(b.number, world.now)
    assert len(a.paths_to(b)) == 2


def test_never_direct_means_never():
    world = World()
    a, b = world.host(("192.0.2.1", 41641), never_direct=True), world.host(("192.0.2.2", 41641))
    world.meet()
    world.talk(a, b, 20.0)
    assert not udp_pings(a)
    assert not a.is_direct(b)
    assert not b.is_direct(a)
    assert len(b.data) == 200


def test_user_ping_tells_path_and_latency():
    world, a, b = lan()
    token = a.finder.ping(b.number, world.now)
    world.pump(a)
    world.run(1.0)
    pongs = {m.path: m.latency for _, m in a.messages if isinstance(m, PingAnswered) and m.token == token}
    assert pongs == {b.address: pytest.approx(0.08), (REGION, b.key): pytest.approx(2 * RELAY_DELAY)}
    token = a.finder.ping(b.number, world.now, 1000)
    ((_, (datagram,)),) = a.finder.transmit(world.now)
    assert len(datagram) == 1000


def test_ping_that_nobody_answers_is_lost():
    world, a, b = lan()
    world.hosts.remove(b)
    token = a.finder.ping(b.number, world.now)
    world.pump(a)
    world.run(6.0)
    lost = [m.path for _, m in a.messages if isinstance(m, PingLost) and m.token == token]
    assert set(lost) == {b.address, (REGION, b.key)}
    assert PingLost(99, a.finder.ping(99, world.now), None) in a.finder.take_messages()
