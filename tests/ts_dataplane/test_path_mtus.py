"""How large packets may be on direct paths: raised by a proven round trip only, taken back when it holds no more."""

from __future__ import annotations

import random

import pytest
from path_scripts import DATA, Host, World, seal, settled, udp_pings

from ts_base.ip import TUNNEL_MTU
from ts_base.who import is_relayed
from ts_dataplane import disco
from ts_dataplane.disco import Pong
from ts_dataplane.path_mtus import CLIMB_AGAIN, LARGEST, LEAST_PATIENCE, LINKS, REST, TRIES, VERIFY, carried_by

UDP4 = 28
JUMBO = 9000


def narrow(world: World, *, forth: int = 65_535, back: int = 65_535, ends: tuple = ()) -> None:
    """Links of these MTUs between the two, and nobody fragments; relays carry everything."""
    first = world.hosts[0]

    def is_lost(host: Host, _path: tuple, datagram: bytes) -> bool:
        return len(datagram) + UDP4 > (forth if host is first else back)

    world.blocked = is_lost


def measured(host: Host, peer: Host) -> int:
    (path,) = host.paths_to(peer)
    return host.finder.mtus.carried.get(path, 0)


def ask(world: World, host: Host, peer: Host, seconds: float = 20.0) -> int:
    """What a connection with much to send finds."""
    host.finder.mtus.wanted.add(peer.number)
    world.talk(host, peer, seconds)
    return measured(host, peer)


def large_pings(host: Host, since: float = 0.0) -> list[int]:
    """Sizes on the wire of what was asked beyond usual pings."""
    found = [len(d) for at, path, d in host.sent if at >= since and d != DATA and not is_relayed(path)]
    return [size for size in found if size > TUNNEL_MTU + 32]


@pytest.mark.parametrize(
    ("link", "carried"),
    [
        (1500, 0),
        (3999, 0),
        (4000, 3940),
        (8896, 8836),
        (9000, 8940),
        (9001, 8940),
        (65_535, LARGEST),
        (70_000, LARGEST),
    ],
)
def test_a_path_is_measured_up_to_what_it_carries(link: int, carried: int) -> None:
    world, a, b = settled()
    narrow(world, forth=link, back=link)
    assert ask(world, a, b) == carried


def test_a_proven_size_fits_the_link_with_all_headers() -> None:
    assert carried_by(9000, ("192.0.2.1", 1)) + 32 + 8 + 20 == 9000
    assert carried_by(9000, ("2001:db8::1", 1)) + 32 + 8 + 40 == 9000
    assert LARGEST + 32 + 8 + 20 == 65_535


def test_nobody_is_asked_unless_somebody_wants_it() -> None:
    """So a peer of another make, which takes no large packets, is never sent a large ping either."""
    world, a, b = settled()
    world.talk(a, b, 200.0)
    assert large_pings(a) == large_pings(b) == []
    assert a.finder.mtus.carried == {}


def test_each_direction_is_measured_by_who_sends() -> None:
    world, a, b = settled()
    narrow(world, forth=JUMBO, back=1500)
    assert ask(world, a, b) == carried_by(JUMBO, a.address)
    assert ask(world, b, a) == 0


def test_a_path_that_eats_large_pings_only_stays_at_the_usual_size() -> None:
    world, a, b = settled()
    narrow(world, forth=1400, back=1400)
    assert ask(world, a, b, 300.0) == 0
    assert a.is_direct(b)
    assert len(large_pings(a)) <= TRIES * (300.0 / REST + 1)


def test_a_path_that_shrinks_is_left_within_seconds_and_stays_direct() -> None:
    world, a, b = settled()
    assert ask(world, a, b) == LARGEST
    narrow(world, forth=1500, back=1500)
    world.talk(a, b, VERIFY + TRIES * (LEAST_PATIENCE + 0.2))
    assert measured(a, b) == 0
    assert a.is_direct(b)
    assert a.finder.statistics().mtus.withdrawn == 1
    narrow(world, forth=JUMBO, back=JUMBO)
    world.talk(a, b, REST + 5.0)
    assert measured(a, b) == carried_by(JUMBO, a.address)
    narrow(world)
    world.talk(a, b, CLIMB_AGAIN + 5.0)
    assert measured(a, b) == LARGEST


def test_a_path_that_shrinks_a_little_is_measured_anew_at_once() -> None:
    world, a, b = settled()
    assert ask(world, a, b) == LARGEST
    narrow(world, forth=JUMBO, back=JUMBO)
    world.talk(a, b, VERIFY + 2 * TRIES * (LEAST_PATIENCE + 0.2))
    assert measured(a, b) == carried_by(JUMBO, a.address)


def test_a_path_that_grows_is_noticed() -> None:
    world, a, b = settled()
    narrow(world, forth=JUMBO)
    assert ask(world, a, b) == carried_by(JUMBO, a.address)
    narrow(world)
    world.talk(a, b, CLIMB_AGAIN + 10.0)
    assert measured(a, b) == LARGEST


def test_one_lost_ping_changes_nothing() -> None:
    world, a, b = settled()
    assert ask(world, a, b) == LARGEST
    once = [True]

    def lose_one(_host: Host, _path: tuple, datagram: bytes) -> bool:
        return len(datagram) > JUMBO and bool(once) and once.pop()

    world.blocked = lose_one
    world.talk(a, b, 30.0)
    assert not once
    assert measured(a, b) == LARGEST


def test_another_path_is_measured_anew() -> None:
    world, a, b = settled()
    assert ask(world, a, b) == LARGEST
    a.finder.on_network_changed(world.now)
    world.pump(a)
    narrow(world, forth=JUMBO)
    world.talk(a, b, 5.0)
    assert a.is_direct(b)
    assert ask(world, a, b) == carried_by(JUMBO, a.address)


def test_an_idle_path_is_asked_no_more() -> None:
    world, a, b = settled()
    ask(world, a, b)
    world.run(100.0)
    since = world.now
    world.run(100.0)
    assert large_pings(a, since) == []
    assert a.finder.mtus.carried == {}
    assert a.finder.statistics().mtus.searches == 0


# ---- lies


def test_pongs_that_answer_nothing_raise_nothing() -> None:
    world, a, b = settled()
    narrow(world, forth=1500)
    a.finder.mtus.wanted.add(b.number)
    rng = random.Random(7)
    for _ in range(100):
        pong = Pong(rng.randbytes(disco.TRANSACTION_LENGTH), a.address)
        world.deliver(a, b.address, b, seal(b, a, pong))
        world.talk(a, b, 0.1)
    assert measured(a, b) == 0


def test_the_pong_of_a_small_ping_raises_nothing() -> None:
    """A peer that answers everything it hears proves no more than what it heard."""
    world, a, b = settled()
    narrow(world, forth=1500)
    ask(world, a, b, 60.0)
    assert len(udp_pings(a)) > 20
    assert measured(a, b) == 0


def test_a_pong_of_a_size_given_up_comes_too_late() -> None:
    world, a, b = settled()
    held: list[tuple[float, Host, tuple, bytes]] = []

    def hold(host: Host, path: tuple, datagram: bytes) -> bool:
        if host is a and len(datagram) > 1500:
            held.append((world.now, host, path, datagram))
        return len(datagram) > 1500

    world.blocked = hold
    assert ask(world, a, b, 4.0) == 0
    world.blocked = lambda host, path, datagram: False
    for _, host, path, datagram in held:
        world.carry(host, path, datagram)
    world.run(0.5)
    assert measured(a, b) == 0


def test_nothing_lowers_the_floor() -> None:
    world, a, b = settled()
    narrow(world, forth=1372, back=1372)
    ask(world, a, b, 60.0)
    assert all(size >= 0 for size in a.finder.mtus.carried.values())
    assert min(LINKS) > TUNNEL_MTU
    assert a.is_direct(b)
