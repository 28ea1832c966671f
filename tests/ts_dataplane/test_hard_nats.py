"""A hard NAT and an easy one are opened within a budget, and nobody can have the budget spent on others."""

from __future__ import annotations

import itertools
import random

import pytest
from path_scripts import DATA, REGION, Router, World, paths_of, seal, udp_pings

from ts_base.who import host_of, is_direct, is_relayed, socket_of
from ts_dataplane import disco
from ts_dataplane.disco import CallMeMaybe, Pong
from ts_dataplane.hard_nats import AGAIN, KEEPALIVE, LIST, HardNatLimits
from ts_dataplane.path_messages import SocketsWanted

EASY, HARD, VICTIM = "203.0.113.1", "203.0.113.2", "198.51.100.66"
LIMITS = HardNatLimits()
FEW = HardNatLimits(sockets=8, probes=400)  # rarely meets: what failed can be looked at


def pair(seed: int, *, limits=LIMITS, easy_limits=LIMITS, easy_is_hard=False):
    world = World(seed=seed)
    first = Router(EASY, hard=easy_is_hard, draws=random.Random(f"{seed} first"))
    easy = world.host(("10.0.1.2", 41641), first, limits=easy_limits)
    hard = world.host(("10.0.2.2", 41641), Router(HARD, hard=True, draws=random.Random(f"{seed} hard")), limits=limits)
    world.meet()
    return world, easy, hard


def open_within(seed: int, *, easy_dials: bool, limit: float = 17.0) -> tuple[float, int, int]:
    """Seconds until both are direct, and what each sent beside the relay until then."""
    world, easy, hard = pair(seed)
    a, b = (easy, hard) if easy_dials else (hard, easy)
    took = world.time_to_direct(a, b, limit=limit, every=0.1)
    return took, len(udp_pings(easy)), len(udp_pings(hard))


def opened(seed: int = 1):
    world, easy, hard = pair(seed)
    assert world.time_to_direct(easy, hard, limit=17.0, every=0.1) < 15.0
    return world, easy, hard


@pytest.mark.parametrize("easy_dials", [True, False], ids=["easy dials", "hard dials"])
def test_a_hard_nat_is_opened(easy_dials):
    took, probes, sockets = open_within(1, easy_dials=easy_dials)
    assert took < 15.0
    assert probes < LIMITS.probes
    assert sockets < 2 * LIMITS.sockets


@pytest.mark.slow
def test_a_hard_nat_is_opened_in_nearly_every_case():
    found = [open_within(seed, easy_dials=seed % 2 == 0) for seed in range(100)]
    print("seconds", sorted(round(took, 1) for took, _, _ in found)[::10])
    print("probes", sorted(probes for _, probes, _ in found)[::10])
    assert sum(took > 15.0 for took, _, _ in found) <= 1


# ---- what was opened stays open, and is left without a gap


def test_the_other_sockets_are_closed_and_the_one_that_met_is_kept():
    world, easy, hard = opened()
    world.talk(easy, hard, 1.0)
    (path,) = hard.paths_to(easy)
    assert list(hard.sockets) == [socket_of(path)]
    assert hard.finder.statistics().hard_nats.sockets == 1
    assert hard.finder.statistics().hard_nats.opened == easy.finder.statistics().hard_nats.opened == 1


def test_the_mapping_is_kept_alive_while_nobody_talks():
    world, easy, hard = opened()
    world.talk(easy, hard, 1.0)
    world.run(60.0)
    since = world.now
    world.run(120.0)
    sent = [at for at, path in udp_pings(hard, since) if socket_of(path)]
    assert sent
    assert max(b - a for a, b in zip([since, *sent], [*sent, since + 120.0], strict=True)) <= KEEPALIVE + 0.1


def test_the_socket_of_a_forgotten_peer_is_closed():
    world, _easy, hard = opened()
    world.run(600.0)
    assert hard.sockets == {}
    assert hard.finder.statistics().hard_nats.sockets == 0


def test_a_router_that_forgets_costs_no_datagram():
    world, easy, hard = opened()
    world.talk(easy, hard, 5.0)
    hard.router.flush()
    hard.data.clear()
    world.talk(easy, hard, 20.0)
    world.run(1.0)
    times = sorted(at for at, _, _ in hard.data)
    assert max(b - a for a, b in itertools.pairwise(times)) < 5.0  # until the path is doubted, as on any
    assert all(at - before < 0.5 for at, before in zip(times[-50:], times[-51:-1], strict=True))


def test_a_way_that_was_lost_is_opened_again():
    world, easy, hard = opened()
    world.talk(easy, hard, AGAIN)
    hard.router.flush(), easy.router.flush()
    world.meet(listed=True)
    assert world.time_to_direct(easy, hard, limit=40.0, every=0.1) < 40.0


def test_another_network_closes_all_sockets():
    world, easy, hard = pair(1, limits=FEW)
    world.talk(easy, hard, 3.0)
    assert hard.sockets
    hard.finder.on_network_changed(world.now)
    world.pump(hard)
    assert hard.sockets == {}


# ---- the budget


def test_an_attempt_that_fails_keeps_its_budget_and_rests():
    world, easy, hard = pair(3, limits=FEW, easy_limits=FEW)
    world.talk(easy, hard, 30.0)
    spread = [path for _, path in udp_pings(hard) if socket_of(path)]
    tried = [path for _, path in udp_pings(easy) if host_of(path) == HARD]
    assert len(spread) == FEW.sockets
    assert LIST <= len(set(tried)) <= FEW.probes
    assert hard.sockets == {}
    before = len(udp_pings(hard)), len(udp_pings(easy))
    world.talk(easy, hard, 500.0, every=0.5)
    assert len(udp_pings(hard)) - before[0] < 500  # of the ordinary search
    assert not [path for at, path in udp_pings(hard, 1040.0) if socket_of(path)]


def test_no_second_sees_more_than_the_rate():
    world, easy, hard = pair(3)
    world.talk(easy, hard, 30.0)
    times = [at for at, path in udp_pings(easy) if host_of(path) == HARD]
    assert max(sum(at <= other < at + 1.0 for other in times) for at in times) <= LIMITS.rate * 1.1


def test_an_address_that_stun_loses_ends_nothing():
    world, easy, hard = pair(3)
    world.talk(easy, hard, 3.0)
    assert hard.sockets
    hard.finder.set_hard_router("")
    world.talk(easy, hard, 12.0)
    assert easy.is_direct(hard)


def test_several_uplinks_forbid_it():
    world, easy, hard = pair(1)
    hard.finder._keeper.uplinks = ("wlan0", "wwan0")
    world.talk(easy, hard, 10.0)
    assert not [m for _, m in hard.messages if isinstance(m, SocketsWanted)]


@pytest.mark.parametrize("whose", ["easy", "hard"])
def test_one_switch_forbids_it(whose):
    off = HardNatLimits(sockets=0)
    world, easy, hard = pair(
        1, limits=off if whose == "hard" else LIMITS, easy_limits=off if whose == "easy" else LIMITS
    )
    world.talk(easy, hard, 20.0)
    assert not easy.is_direct(hard)
    if whose == "hard":
        assert not [m for _, m in hard.messages if isinstance(m, SocketsWanted)]
    else:
        assert len({path for _, path in udp_pings(easy)}) < 10


def test_two_hard_nats_stay_on_the_relay_without_a_storm():
    world, first, second = pair(5, easy_is_hard=True)
    world.talk(first, second, 60.0)
    assert not first.is_direct(second)
    for host in (first, second):
        assert len([path for _, path in udp_pings(host) if socket_of(path)]) < LIMITS.sockets
        assert host.sockets == {}
    calls = [p for h in (first, second) for _, p, d in h.sent if is_relayed(p) and d != DATA]
    assert len(calls) < 100


# ---- lies


def talking(limits=LIMITS):
    """One that talks by relay with a peer that will lie: its real router swallows UDP."""
    world = World()
    easy = world.host(("10.0.1.2", 41641), Router(EASY), limits=limits)
    liar = world.host(("10.0.2.2", 41641), Router(HARD, blocks_udp=True), endpoints=[(HARD, 5000)])
    world.meet()
    world.talk(easy, liar, 2.0)
    return world, easy, liar


def ports_of(host: str, number: int, count: int = LIST) -> CallMeMaybe:
    return CallMeMaybe(tuple((host, 2000 + (number * count + n) % 60_000) for n in range(count)))


def tell(world, easy, liar, call, region: int = REGION) -> None:
    world.deliver(easy, (region, liar.key), liar, seal(liar, easy, call))


def sent_to(easy, host: str, since: float = 0.0) -> int:
    return sum(host_of(path) == host for _, path in udp_pings(easy, since))


def flood(world, easy, liar, host: str, seconds: float = 40.0) -> None:
    for number in range(int(seconds * 10)):
        tell(world, easy, liar, ports_of(host, number))
        easy.send_data(liar)
        world.run(0.1)


def test_a_peer_cannot_name_an_address_that_is_not_its_own():
    world, easy, liar = talking()
    flood(world, easy, liar, VICTIM)
    assert sent_to(easy, VICTIM) == 0
    assert easy.finder.statistics().drops["paths.ports_of_unconfirmed_host"] >= 200


@pytest.mark.slow
def test_control_and_peer_together_get_no_more_than_the_cap():
    world, easy, liar = talking()
    easy.finder.set_peers({liar.number: liar.facts(endpoints=(f"{VICTIM}:443",))}, world.now)
    began = world.now
    flood(world, easy, liar, VICTIM, 540.0)
    searches = 540.0 / 5 + 20  # the listed endpoint itself is pinged as any
    assert sent_to(easy, VICTIM, began) <= LIMITS.probes + searches
    assert sent_to(easy, VICTIM, began + 30.0) <= searches


@pytest.mark.slow
def test_a_victim_named_by_many_peers_is_counted_once():
    world, easy, liar = talking()
    others = [world.host((f"192.0.2.{n}", 41641), endpoints=[(VICTIM, 1000 + n)]) for n in range(5)]
    easy.finder.set_peers({h.number: h.facts() for h in (liar, *others)}, world.now)
    for _ in range(4):
        for other in others:
            flood(world, easy, other, VICTIM, 20.0)
    assert sent_to(easy, VICTIM) <= LIMITS.probes + len(others) * (400 / 5 + 20)


def test_a_call_that_names_many_victims_is_an_ordinary_call():
    world, easy, liar = talking()
    began = world.now
    call = CallMeMaybe(tuple((f"198.51.100.{n}", 443) for n in range(60)))
    tell(world, easy, liar, call)
    world.run(1.0)
    assert len({path for _, path in udp_pings(easy, began) if path[0].startswith("198.51.100.")}) <= 16


def test_a_list_said_again_gains_nothing():
    world, easy, liar = talking()
    for _ in range(100):
        tell(world, easy, liar, ports_of(HARD, 1))
        easy.send_data(liar)
        world.run(0.1)
    assert sent_to(easy, HARD) < LIST + 20
    world.run(LIMITS.rest + 1.0)
    since = world.now
    for _ in range(100):
        tell(world, easy, liar, ports_of(HARD, 1))
        easy.send_data(liar)
        world.run(0.1)
    assert sent_to(easy, HARD, since) < 20


def test_a_list_that_no_relay_vouches_for_counts_nothing():
    world, easy, liar = talking()
    stranger = world.host(("192.0.2.77", 41641))
    tell(world, easy, stranger, ports_of(HARD, 1))  # a key that nobody knows
    world.deliver(easy, (REGION, stranger.key), liar, seal(liar, easy, ports_of(HARD, 2)))  # another's relay name
    world.deliver(easy, (HARD, 5000), liar, seal(liar, easy, ports_of(HARD, 3)))  # not by relay at all
    world.run(2.0)
    assert sent_to(easy, HARD) < 20


def test_an_idle_device_tries_nothing():
    world, easy, liar = talking()
    world.run(100.0)
    since = world.now
    tell(world, easy, liar, ports_of(HARD, 1))
    world.run(2.0)
    assert sent_to(easy, HARD, since) == 0


def test_invented_pongs_open_nothing():
    world, easy, hard = pair(3, limits=FEW)
    world.talk(easy, hard, 4.0)
    rng = random.Random(1)
    for port in range(2000, 2050):
        pong = Pong(rng.randbytes(disco.TRANSACTION_LENGTH), (EASY, 41641))
        world.deliver(easy, (VICTIM, port), hard, seal(hard, easy, pong))
    assert not [path for path in easy.paths_to(hard) if is_direct(path)]
    assert not [place for place in paths_of(easy, hard).candidates if place[0] == VICTIM]


def test_sockets_that_the_system_refuses_end_the_attempt():
    world, easy, hard = pair(1)
    world.open_sockets = lambda host, count: host.finder.on_sockets([], world.now)
    world.talk(easy, hard, 10.0)
    assert hard.finder.statistics().hard_nats.failed == 1
    assert not easy.is_direct(hard)
