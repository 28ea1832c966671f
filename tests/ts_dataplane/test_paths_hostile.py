"""Foolish endpoints, floods, forgeries and replays: none is believed, and each costs little."""

from __future__ import annotations

import pytest
from path_scripts import DATA, REGION, World, lan, paths_of, seal, settled, udp_pings

from ts_base.keys import DiscoPrivate
from ts_dataplane import disco
from ts_dataplane.candidates import MAX_CALLED, MAX_HEARD, MAX_LISTED


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


@pytest.mark.slow
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
    assert a.finder.drops["disco.call_flood"] >= 900
    assert len(paths_of(a, b).candidates) <= MAX_CALLED + MAX_LISTED + MAX_HEARD


def test_call_is_believed_only_over_a_relay_and_from_its_owner():
    world, a, b, c = lan(3)
    call = disco.CallMeMaybe((("198.51.100.4", 41641),))
    a.finder.receive([(seal(b, a, call), b.address), (seal(b, a, call), (REGION, c.key))], world.now)
    world.pump(a)
    assert not udp_pings(a)
    assert a.finder.drops["disco.call_from_wrong_place"] == 2


def test_pings_from_everywhere_are_answered_but_remembered_within_bounds():
    world, a, b = lan()
    for n in range(300):
        ping = seal(b, a, disco.Ping(world.rng.randbytes(12), b.key))
        a.finder.receive([(ping, ("198.51.100.4", n + 1))], world.now)
    candidates = paths_of(a, b).candidates
    assert len(candidates) <= MAX_HEARD + 1
    assert a.finder.drops["disco.flood"] == 300 - 256


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
    assert a.finder.drops["disco.unknown_key"] == 1000
    assert not a.finder.transmit(world.now)


def test_replayed_ping_is_answered_once_only():
    world, a, b = lan()
    ping = seal(b, a, disco.Ping(bytes(12), b.key))
    a.finder.receive([(ping, b.address), (ping, b.address), (ping, ("198.51.100.4", 9))], world.now)
    assert [path for path, _ in a.finder.transmit(world.now)] == [b.address]
    assert (a.finder.drops["disco.repeated_ping"], a.finder.drops["disco.replayed_ping"]) == (1, 1)


def test_forged_or_torn_datagrams_change_nothing():
    world, a, b = settled()
    ping = bytearray(seal(b, a, disco.Ping(bytes(12), b.key)))
    before = a.finder.report(b.number, world.now)
    ping[-1] ^= 1
    for datagram in (bytes(ping), bytes(ping[:90]), disco.MAGIC, b""):
        a.finder.receive([(datagram, ("198.51.100.4", 9))], world.now)
    assert a.finder.drops["disco.bad_datagram"] == 4
    assert a.finder.report(b.number, world.now) == before


def test_pong_is_credited_to_the_address_that_was_pinged():
    world, a, b = lan()
    a.send_data(b)
    ping = next(d for _, path, d in a.sent if path == b.address and d != DATA)
    message = disco.Boxes(b.disco, bytes).open_untrusted(ping)
    pong = seal(b, a, disco.Pong(message.transaction, a.address))
    a.finder.receive([(pong, ("198.51.100.99", 9))], world.now + 0.01)
    assert a.finder.report(b.number, world.now + 0.01).best == b.address


def test_pong_with_a_wrong_id_or_from_another_peer_is_no_evidence():
    world, a, b, c = lan(3)
    a.send_data(b)
    ping = next(d for _, path, d in a.sent if path == b.address and d != DATA)
    transaction = disco.Boxes(b.disco, bytes).open_untrusted(ping).transaction
    for host, wanted in ((b, bytes(12)), (c, transaction)):
        a.finder.receive([(seal(host, a, disco.Pong(wanted, a.address)), b.address)], world.now)
    assert a.finder.drops["disco.pong_to_no_ping"] == 2
    assert a.finder.report(b.number, world.now).best is None


def test_nodes_that_share_a_disco_key_are_told_apart():
    world, a, b, c = lan(3)
    c.disco = b.disco
    a.finder.set_peers({b.number: b.facts(endpoints=()), c.number: c.facts(endpoints=())}, world.now)
    for named in (c.key, None):
        ping = seal(b, a, disco.Ping(world.rng.randbytes(12), named))
        a.finder.receive([(ping, c.address)], world.now)
    assert a.finder.drops["disco.ping_of_nobody"] == 1
    assert c.address in paths_of(a, c).candidates
    assert b.number not in a.finder._states
