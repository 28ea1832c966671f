"""Who reaches whom directly through which routers, and how soon."""

from __future__ import annotations

import math

import pytest
from path_scripts import Router, World

from ts_base.who import is_relayed


def routers(kind: str, public: str) -> Router | None:
    return {
        "public": None,
        "easy": Router(public),
        "hard": Router(public, hard=True),
        "cone": Router(public, filtering="none"),
        "address": Router(public, filtering="address"),
        "blocked": Router(public, blocks_udp=True),
    }[kind]


def pair(first: str, second: str, **options):
    world = World(**options)
    ends = []
    for number, kind in ((1, first), (2, second)):
        router = routers(kind, f"203.0.113.{number}")
        address = (f"10.0.{number}.2", 41641) if router else (f"192.0.2.{number}", 41641)
        ends.append(world.host(address, router))
    return world, *ends


DIRECT = [
    ("public", "public"),
    ("public", "easy"),
    ("easy", "public"),
    ("public", "hard"),
    ("hard", "public"),
    ("easy", "easy"),
    ("easy", "cone"),
    ("cone", "easy"),
    ("cone", "cone"),
    ("hard", "cone"),
    ("cone", "hard"),
    ("hard", "address"),
    ("address", "hard"),
    ("easy", "address"),
    ("address", "easy"),
]


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "unlisted"])
@pytest.mark.parametrize(("first", "second"), DIRECT)
def test_pair_is_direct_within_a_second(first, second, listed):
    world, a, b = pair(first, second)
    world.meet(listed=listed)
    assert world.time_to_direct(a, b) <= 1.0


@pytest.mark.parametrize(
    ("first", "second"), [("hard", "hard"), ("hard", "easy"), ("blocked", "public"), ("easy", "blocked")]
)
def test_pair_stays_on_the_relay_and_loses_nothing(first, second):
    world, a, b = pair(first, second)
    world.meet()
    assert world.time_to_direct(a, b, limit=20.0, every=0.1) == math.inf
    world.run(1.0)
    assert len(b.data) == 200
    assert all(is_relayed(path) for _, _, path in b.data)


def test_first_datagram_travels_by_relay_at_once():
    world, a, b = pair("easy", "easy")
    world.meet()
    a.send_data(b)
    world.run(0.07)
    assert b.data == [(1000.06, a.number, (900, a.key))]


@pytest.mark.parametrize("seed", range(5))
def test_lossy_pair_becomes_direct_soon(seed):
    world, a, b = pair("easy", "easy", loss=0.3, seed=seed)
    world.meet()
    assert world.time_to_direct(a, b) <= 8.0


def test_stale_endpoints_are_refreshed_before_the_call():
    world, a, b = pair("easy", "easy")
    world.meet()
    world.run(60.0)
    for host in (a, b):
        host.router.flush()  # the mappings have died meanwhile, and the next ones will be others
        host.router.owners[41641] = "taken"
    assert world.time_to_direct(a, b) <= 1.0


def test_two_behind_one_router_without_hairpin_use_their_local_addresses():
    world = World()
    router = Router("203.0.113.1")
    a, b = world.host(("10.0.0.2", 41641), router), world.host(("10.0.0.3", 41641), router)
    world.meet()
    assert world.time_to_direct(a, b) <= 1.0
    assert a.paths_to(b) == (("10.0.0.3", 41641),)


def test_pair_behind_hard_routers_causes_no_ping_storm():
    world, a, b = pair("hard", "hard")
    world.meet()
    world.talk(a, b, 120.0, every=0.5)
    pings = [t for t, path, _ in a.sent if path == b.endpoints()[0]]
    assert len(pings) <= 2 * 120 / 5
    assert len([t for t in pings if t > 1080.0]) <= 8  # an address that never answered is left alone, mostly
    sent = len(a.sent)
    world.run(46.0)
    quiet = len(a.sent)
    world.run(600.0)
    assert len(a.sent) == quiet
    assert quiet - sent < 100
