"""Two peers behind hard routers, and a third that carries for them."""

from __future__ import annotations

import math

import pytest
from path_scripts import REGION, RelayServer, Router, World

from ts_dataplane import disco
from ts_dataplane.peer_relay import Knock, PeerRelays, PingThrough, Tell


def lab():
    world = World()
    a = world.host(("10.0.1.2", 41641), Router("203.0.113.1", hard=True))
    b = world.host(("10.0.2.2", 41641), Router("203.0.113.2", hard=True))
    server = RelayServer(world, 3, ("192.0.2.200", 7777))
    world.hosts.append(server)
    for host in (a, b):
        host.stun()
    a.finder.set_peers({2: b.facts(), 3: server.facts(serves_relay=True)}, world.now)
    b.finder.set_peers({1: a.facts(), 3: server.facts(serves_relay=True)}, world.now)
    return world, a, b, server


VIA = ("192.0.2.200", 7777, 77)


def test_pair_finds_its_way_through_a_peer():
    world, a, b, _ = lab()
    world.talk(a, b, 4.0)
    assert a.paths_to(b) == (VIA,)
    assert b.paths_to(a) == (VIA,)
    before = len(b.data)
    world.talk(a, b, 20.0)
    assert {path for _, _, path in b.data[before:]} == {VIA}
    assert len(b.data) >= 235


def test_pair_falls_back_when_the_carrier_dies_and_returns_when_it_lives():
    world, a, b, server = lab()
    world.talk(a, b, 5.0)
    server.is_dead = True
    world.talk(a, b, 7.0)
    assert (REGION, b.key) in a.paths_to(b)
    world.talk(a, b, 6.0)
    assert a.paths_to(b) == ((REGION, b.key),)
    server.is_dead = False
    server.bound.clear()
    world.talk(a, b, 65.0)
    assert a.paths_to(b) == (VIA,)


def test_direct_path_wins_over_the_carrier():
    world, a, b, _ = lab()
    world.talk(a, b, 5.0)
    for host in (a, b):
        host.router.hard, host.router.filtering = False, "none"
        host.router.mappings.clear()
        host.stun()
    world.talk(a, b, 12.0)
    assert len(a.paths_to(b)[0]) == 2
    assert a.is_direct(b)


def test_nobody_is_asked_while_paths_are_direct():
    world, a, b, server = lab()
    a.router.hard = b.router.hard = False
    a.stun(), b.stun()
    assert world.time_to_direct(a, b) <= 1.0
    world.talk(a, b, 20.0)
    assert server.clients is None


# the machine alone

OURS, THEIRS, SERVER = bytes([1] * 32), bytes([2] * 32), bytes([9] * 32)


def place(lamport=1, vni=7, clients=(OURS, THEIRS), addresses=(("192.0.2.9", 1),), bind=30 * 10**9):
    return disco.RelayEndpoint(SERVER, clients, lamport, vni, bind, 300 * 10**9, addresses)


def asked(now=0.0):
    relays = PeerRelays(OURS)
    relays.discover(5, THEIRS, [5, 6], now)
    (tell,) = relays.transmit()
    assert isinstance(tell, Tell)
    assert tell.peer == 6
    return relays, tell.message


def test_request_names_both_in_order_and_is_repeated_once():
    relays, request = asked()
    assert request == disco.AllocateRequest((OURS, THEIRS), 1)
    assert relays.next_timer() == 3.0
    relays.handle_timer(3.0)
    assert relays.transmit() == [Tell(6, request)]
    assert relays.next_timer() == 10.0
    relays.handle_timer(10.0)
    assert relays.next_timer() == math.inf
    relays.discover(5, THEIRS, [6], 20.0)
    assert not relays.transmit()
    relays.discover(5, THEIRS, [6], 30.0)
    assert relays.transmit()


@pytest.mark.parametrize(
    ("server", "response"),
    [
        (8, disco.AllocateResponse(1, place())),
        (6, disco.AllocateResponse(2, place())),
        (6, disco.AllocateResponse(1, place(clients=(OURS, SERVER)))),
    ],
)
def test_answer_to_another_question_is_dropped(server, response):
    relays, _ = asked()
    relays.on_allocated(server, response, 1.0)
    assert not relays.transmit()
    assert sum(relays.drops.values()) == 1


def test_handshake_goes_by_the_book():
    relays, request = asked()
    relays.on_allocated(6, disco.AllocateResponse(request.generation, place()), 1.0)
    offer, knock = relays.transmit()
    assert offer == Tell(5, disco.CallMeMaybeVia(place()))
    assert isinstance(knock, Knock)
    assert (knock.message.kind, knock.message.remote_disco) == (disco.BIND, THEIRS)
    assert relays.knows(SERVER)
    path, generation = ("192.0.2.9", 1, 7), knock.message.generation
    for wrong in (
        disco.Bind(disco.CHALLENGE, 8, generation, THEIRS, SERVER),
        disco.Bind(disco.CHALLENGE, 7, generation + 1, THEIRS, SERVER),
        disco.Bind(disco.CHALLENGE, 7, generation, OURS, SERVER),
        disco.Bind(disco.BIND, 7, generation, THEIRS, SERVER),
    ):
        relays.on_challenge(SERVER, path, wrong, 1.1)
    assert not relays.transmit()
    challenge = disco.Bind(disco.CHALLENGE, 7, generation, THEIRS, SERVER)
    relays.on_challenge(SERVER, path, challenge, 1.2)
    relays.on_challenge(SERVER, path, challenge, 1.2)
    answer, ping = relays.transmit()
    assert answer.message == disco.Bind(disco.ANSWER, 7, generation, THEIRS, SERVER)
    assert ping == PingThrough(5, path)
    for _ in range(20):
        relays.on_ping(5, path)
    assert len(relays.transmit()) == 9
    assert relays.on_pong(path) == SERVER
    assert relays.on_pong(path) is None
    assert relays.next_timer() == math.inf


def test_older_places_and_places_of_others_are_ignored():
    relays = PeerRelays(OURS)
    relays.on_offer(5, THEIRS, place(lamport=5), 0.0)
    assert len(relays.transmit()) == 1
    relays.on_offer(5, THEIRS, place(lamport=4, vni=9), 0.0)
    relays.on_offer(5, THEIRS, place(lamport=9, clients=(THEIRS, SERVER)), 0.0)
    relays.on_offer(5, THEIRS, place(lamport=5), 0.0)
    assert not relays.transmit()
    relays.on_offer(5, THEIRS, place(lamport=6, vni=9), 0.0)
    assert len(relays.transmit()) == 1
    relays.handle_timer(30.0)
    assert relays.next_timer() == math.inf


def test_offers_without_end_are_bounded():
    relays = PeerRelays(OURS)
    for n in range(200):
        server = n.to_bytes(32, "big")
        many = tuple(("192.0.2.9", port) for port in range(1, 60))
        relays.on_offer(5, THEIRS, disco.RelayEndpoint(server, (OURS, THEIRS), 1, n, 2**60, 2**60, many), 0.0)
    assert len(relays.transmit()) == 64 * 16
    assert relays.drops["peer_relay.handshakes_full"] == 136
    relays.forget(5)
    assert relays.next_timer() == math.inf
