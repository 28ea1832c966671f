"""What may go wrong with a path, and what the finder makes of it."""

from __future__ import annotations

import math
import tracemalloc

import pytest
from path_scripts import DATA, REGION, RELAY_DELAY, Router, World, changes

from ts_base.keys import DiscoPrivate
from ts_dataplane import disco
from ts_dataplane.candidates import MAX_CALLED, MAX_HEARD, MAX_LISTED
from ts_dataplane.path_messages import NeedStun, PingLost, PongArrived
from ts_dataplane.paths import PathFinder
from ts_dataplane.peer_paths import PeerPaths


def lan(count=2, **options):
    world = World(**options)
    hosts = [world.host((f"192.0.2.{n}", 41641)) for n in range(1, count + 1)]
    world.meet()
    return world, *hosts


def settled(**options):
    world, a, b = lan(**options)
    assert world.time_to_direct(a, b) < 1.0
    world.talk(a, b, 1.0)
    return world, a, b


def seal(host, peer, message):
    return disco.Boxes(host.disco, host.world.rng.randbytes).seal(peer.disco.public.raw, message)


def udp_pings(host, since=0.0):
    return [
        (t, path) for t, path, datagram in host.sent if datagram != DATA and isinstance(path[0], str) and t >= since
    ]


def cut(world):
    world.blocked = lambda host, path, datagram: True


# I.1 row 1


def test_two_equal_addresses_do_not_flap():
    world, a, b = settled()
    other = ("192.0.2.77", 41641)
    state = a.finder._states[b.number]
    state.best = state.best._replace(latency=0.010)
    first = state.best.path
    for second in range(40):
        a.finder._states[b.number].candidates.setdefault(other, type(next(iter(state.candidates.values())))())
        now = world.now + second / 10
        assert not state.credit(state.best._replace(path=other, latency=0.0100 if second % 2 else 0.01005), now)
        state.credit(state.best._replace(latency=0.01005 if second % 2 else 0.0100), now)
    assert state.best.path == first


# row 2


def test_dead_path_is_mirrored_within_a_heartbeat_and_a_second_and_comes_back():
    world, a, b = settled()
    cut_at = world.now
    cut(world)
    mirrored_at = None
    while mirrored_at is None:
        world.talk(a, b, 0.05, every=0.05)
        if len(a.paths_to(b)) == 2:
            mirrored_at = world.now
    assert 1.0 < mirrored_at - cut_at <= 4.2
    world.talk(a, b, 5.0)
    assert a.paths_to(b) == ((REGION, b.key),)
    assert len([t for t, _, path in b.data if t > mirrored_at + 0.2 and isinstance(path[0], int)]) >= 45
    world.talk(a, b, 20.0, every=0.5)
    world.blocked = lambda host, path, datagram: False
    assert world.time_to_direct(a, b, limit=35.0, every=0.1) <= 6.0
    assert changes(a, b) == [b.address, None, b.address]


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


def test_one_lost_ping_is_asked_again_and_mirrored_for_a_round_trip_only():
    world, a, b = settled()
    lost = []

    def lose_one(host, path, datagram):
        is_disco = datagram.startswith(disco.MAGIC) and not isinstance(path[0], int)
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


# row 3


def test_one_way_path_is_never_trusted():
    world, a, b = lan()
    world.blocked = lambda host, path, datagram: host is b
    world.talk(a, b, 20.0)
    assert not a.is_direct(b)
    assert a.finder.report(b.number, world.now).best is None


# row 5


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


# row 6


def test_path_that_swallows_full_size_datagrams_is_not_used():
    world, a, b = lan()
    world.blocked = lambda host, path, datagram: len(datagram) > 1000
    world.talk(a, b, 3.0)
    assert len(a.paths_to(b)) == 2  # in doubt: the relay has a copy of everything
    world.talk(a, b, 10.0)
    assert a.paths_to(b) == ((REGION, b.key),)
    assert a.finder.drops["black hole"] == 1
    world.blocked = lambda host, path, datagram: False
    world.talk(a, b, 70.0)
    assert a.is_direct(b)


# rows 7 and 8


def test_pong_is_credited_to_the_address_that_was_pinged():
    world, a, b = lan()
    a.send_data(b)
    ping = next(d for _, path, d in a.sent if path == b.address and d != DATA)
    message = disco.Boxes(b.disco, bytes).open_untrusted(ping)
    pong = seal(b, a, disco.Pong(message.transaction, a.address))
    a.finder.receive([(pong, ("198.51.100.99", 9))], world.now + 0.01)
    assert a.finder.report(b.number, world.now + 0.01).best == b.address


def test_pong_after_a_network_change_is_ignored():
    world, a, b = lan()
    a.send_data(b)
    world.run(0.045)  # the ping has arrived, its pong is under way
    a.finder.on_network_changed(world.now)
    sent = a.finder.transmit(world.now)
    assert sent  # it starts over at once
    world.run(0.036)
    assert a.finder.report(b.number, world.now).best is None
    assert a.finder.drops["pong to no ping"] == 1


# rows 9 and 10


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


def test_idle_hour_behind_routers_ends_in_a_direct_path_soon():
    world = World()
    a = world.host(("10.0.1.2", 41641), Router("203.0.113.1"))
    b = world.host(("10.0.2.2", 41641), Router("203.0.113.2", filtering="none"))
    world.meet()
    assert world.time_to_direct(a, b) < 1.0
    world.run(3600.0)
    assert not a.finder._states
    a.router.flush(), b.router.flush()
    a.router.ports, b.router.ports = iter(range(30000, 40000)), iter(range(40000, 50000))
    a.router.owners[41641] = b.router.owners[41641] = "somebody else"
    assert a.paths_to(b) == ((REGION, b.key),)
    assert world.time_to_direct(a, b) <= 2.0


# rows 13 to 16


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "::1", "224.0.0.1", "ff02::1", "0.0.0.0", "::", "255.255.255.255", "fe80::1", "169.254.1.1",
     "100.64.0.9", "fd7a:115c:a1e0::5", "240.0.0.1"],
)  # fmt: skip
def test_foolish_endpoint_is_never_pinged(host):
    world, a, b = lan()
    since = world.now
    for endpoint in ((host, 41641), ("198.51.100.4", 0)):
        call = seal(b, a, disco.CallMeMaybe((endpoint,)))
        a.finder.receive([(call, (REGION, b.key))], world.now)
    text = f"[{host}]:5" if ":" in host else f"{host}:5"
    a.finder.set_peers({b.number: b.facts(endpoints=(text, "nonsense"))}, world.now)
    world.talk(a, b, 5.0, answered=False)
    assert {path for _, path in udp_pings(a, since)} <= {b.address}


def test_loopback_is_tried_where_we_are_only_there_ourselves():
    world = World()
    a, b = world.host(("127.0.0.1", 5001)), world.host(("127.0.0.1", 5002))
    world.meet()
    assert world.time_to_direct(a, b) < 1.0


def test_mapped_endpoint_is_pinged_as_ipv4():
    world, a, b = lan()
    a.finder.set_peers({b.number: b.facts(endpoints=("[::ffff:192.0.2.2]:41641",))}, world.now)
    assert world.time_to_direct(a, b) < 1.0
    assert a.paths_to(b) == (b.address,)


def test_call_of_a_thousand_endpoints_is_capped():
    world, a, b = lan()
    many = tuple((f"198.51.{n // 250}.{n % 250 + 1}", 41641) for n in range(1000))
    call = disco.CallMeMaybe(many)
    for second in range(20):
        a.finder.receive([(seal(b, a, call), (REGION, b.key)) for _ in range(50)], world.now)
        world.pump(a)
        assert second or len(udp_pings(a)) <= MAX_CALLED + 1
        world.run(1.0)
    assert len(udp_pings(a)) <= 20 * (MAX_CALLED + 1)
    assert a.finder.drops["call flood"] >= 900
    assert len(a.finder._states[b.number].candidates) <= MAX_CALLED + MAX_LISTED + MAX_HEARD


def test_call_is_believed_only_over_a_relay_and_from_its_owner():
    world, a, b, c = lan(3)
    call = disco.CallMeMaybe((("198.51.100.4", 41641),))
    a.finder.receive([(seal(b, a, call), b.address), (seal(b, a, call), (REGION, c.key))], world.now)
    world.pump(a)
    assert not udp_pings(a)
    assert a.finder.drops["call from the wrong place"] == 2


def test_pings_from_everywhere_are_answered_but_remembered_within_bounds():
    world, a, b = lan()
    for n in range(300):
        ping = seal(b, a, disco.Ping(world.rng.randbytes(12), b.key))
        a.finder.receive([(ping, ("198.51.100.4", n + 1))], world.now)
    candidates = a.finder._states[b.number].candidates
    assert len(candidates) <= MAX_HEARD + 1
    assert a.finder.drops["disco flood"] == 300 - 256


def test_ping_flood_is_bounded_and_the_relay_lane_stays_open():
    world, a, b = lan()
    start = world.now
    pongs = 0
    for step in range(100):
        now = start + step / 100
        batch = [(seal(b, a, disco.Ping(world.rng.randbytes(12), b.key)), ("198.51.100.4", 7)) for _ in range(20)]
        a.finder.receive(batch, now)
        pongs += sum(len(d) for _, d in a.finder.transmit(now))
    assert pongs <= 256 + 64 + 5
    ping = seal(b, a, disco.Ping(bytes(12), b.key))
    a.finder.receive([(ping, (REGION, b.key))], start + 1)
    assert [path for path, _ in a.finder.transmit(start + 1)] == [(REGION, b.key)]


def test_unknown_key_costs_no_cryptography(monkeypatch):
    world, a, b = lan()
    stranger = DiscoPrivate.generate(bytes(range(32)))
    ping = disco.Boxes(stranger, bytes).seal(a.disco.public.raw, disco.Ping(bytes(12)))
    monkeypatch.setattr(disco, "Box", None)
    a.finder.receive([(ping, b.address)] * 1000, world.now)
    assert a.finder.drops["unknown disco key"] == 1000
    assert not a.finder.transmit(world.now)


def test_replayed_ping_is_answered_once_only():
    world, a, b = lan()
    ping = seal(b, a, disco.Ping(bytes(12), b.key))
    a.finder.receive([(ping, b.address), (ping, b.address), (ping, ("198.51.100.4", 9))], world.now)
    assert [path for path, _ in a.finder.transmit(world.now)] == [b.address]
    assert (a.finder.drops["repeated ping"], a.finder.drops["replayed ping"]) == (1, 1)


def test_forged_or_torn_datagrams_change_nothing():
    world, a, b = settled()
    ping = bytearray(seal(b, a, disco.Ping(bytes(12), b.key)))
    before = a.finder.report(b.number, world.now)
    ping[-1] ^= 1
    for datagram in (bytes(ping), bytes(ping[:90]), disco.MAGIC, b""):
        a.finder.receive([(datagram, ("198.51.100.4", 9))], world.now)
    assert a.finder.drops["bad disco"] == 4
    assert a.finder.report(b.number, world.now) == before


def test_pong_with_a_wrong_id_or_from_another_peer_is_no_evidence():
    world, a, b, c = lan(3)
    a.send_data(b)
    ping = next(d for _, path, d in a.sent if path == b.address and d != DATA)
    transaction = disco.Boxes(b.disco, bytes).open_untrusted(ping).transaction
    for host, wanted in ((b, bytes(12)), (c, transaction)):
        a.finder.receive([(seal(host, a, disco.Pong(wanted, a.address)), b.address)], world.now)
    assert a.finder.drops["pong to no ping"] == 2
    assert a.finder.report(b.number, world.now).best is None


# row 18


def test_nodes_that_share_a_disco_key_are_told_apart():
    world, a, b, c = lan(3)
    c.disco = b.disco
    a.finder.set_peers({b.number: b.facts(endpoints=()), c.number: c.facts(endpoints=())}, world.now)
    for named in (c.key, None):
        ping = seal(b, a, disco.Ping(world.rng.randbytes(12), named))
        a.finder.receive([(ping, c.address)], world.now)
    assert a.finder.drops["ping of nobody"] == 1
    assert c.address in a.finder._states[c.number].candidates
    assert b.number not in a.finder._states


# keys, addresses and regions that change


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


def test_expired_and_removed_peers_have_no_path():
    world, a, b = settled()
    a.finder.set_peers({b.number: b.facts(expired=True)}, world.now)
    assert a.paths_to(b) == ()
    a.finder.set_peers({}, world.now)
    assert not a.finder.paths
    a.send_data(b)
    a.finder.receive([(seal(b, a, disco.Ping(bytes(12), b.key)), b.address)], world.now)
    assert not a.finder._states
    assert not a.finder._roster.by_disco
    assert not a.finder._roster.by_node
    world.run(20.0)


def test_peer_without_a_home_is_answered_where_it_was_heard():
    world, a, b = lan()
    a.finder.set_peers({b.number: b.facts(home_region=0, endpoints=())}, world.now)
    assert a.paths_to(b) == ()
    a.finder.on_data_heard([(b.number, (5, b.key))], world.now)
    assert a.paths_to(b) == ((5, b.key),)
    a.finder.on_relay_gone(5, b.key, world.now)
    assert a.paths_to(b) == ()


def test_relay_that_lost_the_peer_gives_way_to_one_that_heard_it():
    world, a, b = lan()
    a.finder.on_relay_gone(REGION, b.key, world.now)
    assert a.paths_to(b) == ((REGION, b.key),)  # nothing better is known
    a.finder.on_data_heard([(b.number, (5, b.key))], world.now)
    assert a.paths_to(b) == ((5, b.key),)
    a.finder.on_data_heard([(b.number, (REGION, b.key))], world.now)
    assert a.paths_to(b) == ((REGION, b.key),)


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


def test_send_error_drops_the_path_at_once():
    world, a, b = settled()
    a.finder.on_send_failed(b.address, world.now)
    assert a.paths_to(b) == ((REGION, b.key),)


# WireGuard-only, never direct, pings, cost


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
    pongs = {m.path: m.latency for _, m in a.messages if isinstance(m, PongArrived) and m.token == token}
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


def test_state_of_a_peer_goes_when_it_has_been_idle_for_long():
    world, a, b = settled()
    world.run(400.0)
    assert not a.finder._states
    assert a.paths_to(b) == ((REGION, b.key),)
    assert a.finder.next_timer() == math.inf
