"""The probe and path actors against a pretended network: when they speak, and what they say."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import pytest
import trio

from tailscale.runtime.awaited_answers import AwaitedAnswers
from tailscale.runtime.bus import Bus
from tailscale.runtime.dataplane import Dataplane
from tailscale.runtime.messages import (
    EndpointsChanged,
    EndpointsConfirmed,
    NetInfoChanged,
    NetMapChanged,
    NetworkChanged,
    PeerPathChanged,
    ProbeRequested,
    RelaysChanged,
    StunArrived,
)
from tailscale.runtime.path_actor import run_paths
from tailscale.runtime.probe_actor import Probes, run_probes
from tailscale.runtime.relay_actor import Relays
from tailscale.runtime.translate_peers import PeerTranslator, RelayServers
from tailscale.runtime.underlay import Underlay
from ts_base.keys import DiscoPrivate, DiscoPublic, NodePrivate, NodePublic
from ts_control.netmap import NetMap
from ts_control.wire import CapGrant, DERPMap, DERPNode, DERPRegion, FilterRule, Node
from ts_dataplane import disco, stun
from ts_dataplane.engine import Engine
from ts_dataplane.path_messages import BestPathChanged, NeedStun
from ts_dataplane.paths import PathFinder
from ts_netstack.stack import Stack
from ts_tunnel.endpoint import Endpoint
from ts_tunnel.messages import PeerSilence

OUTSIDE = ("203.0.113.5", 41641)


class FakeUdp:
    """Answers STUN after a while, or not at all."""

    local_port = 41641
    uplinks = ()

    def __init__(self, bus, nursery):
        self.bus, self.nursery = bus, nursery
        self.delay: float | None = 0.02
        self.sent: list = []

    def send_many(self, runs):
        for path, datagrams in runs:
            self.sent.append((trio.current_time(), path))
            if self.delay is not None:
                for datagram in datagrams:
                    self.nursery.start_soon(self.answer, path, datagram)

    def take_unreachable(self):
        return []

    async def answer(self, path, datagram):
        await trio.sleep(self.delay * int(path[0].rpartition(".")[2]))
        transaction = stun.decode_request_untrusted(datagram)
        self.bus.publish(StunArrived([(stun.encode_response(transaction, OUTSIDE), path)]))


class FakeNetwork:
    def __init__(self):
        self.rng = random.Random(3)
        self.tcp_delay = 0.1

    def entropy(self, length):
        return self.rng.randbytes(length)

    def interface_addresses(self):
        return ["10.0.0.7"]

    async def open_tcp(self, host, port):
        await trio.sleep(self.tcp_delay * int(host.rpartition(".")[2]))
        return trio.testing.memory_stream_pair()[0]


def derp_map(*numbers):
    return DERPMap(
        regions={
            number: DERPRegion(
                region_id=number,
                region_code=f"r{number}",
                nodes=(
                    DERPNode(name=f"{number}a", region_id=number, host_name="x", ipv4=f"192.0.2.{index}", ipv6="none"),
                ),
            )
            for index, number in enumerate(numbers, 1)
        }
    )


def netmap(**changes):
    return replace(NetMap.empty(), **changes)


@pytest.fixture
async def rig(autojump_clock, nursery):
    bus = Bus()
    udp = FakeUdp(bus, nursery)
    network = FakeNetwork()
    probes = Probes(network, Underlay(udp, Relays(network, NodePrivate.generate(bytes(32)), bus)), bus)
    await nursery.start(run_probes, bus, probes)
    return bus, udp, probes


async def test_home_and_endpoints_follow_the_first_check(rig, autojump_clock):
    bus, _, _probes = rig
    bus.publish(NetMapChanged(netmap(derp_map=derp_map(2, 1))))
    await trio.sleep(0.25)
    info = bus.latest(NetInfoChanged)
    assert info.home_region == 2
    assert info.working_udp is True
    assert info.mapping_varies_by_destination is False
    assert info.latencies["2-v4"] == pytest.approx(0.02, abs=0.02)
    assert bus.latest(EndpointsChanged).endpoints == (("203.0.113.5:41641", 2), ("10.0.0.7:41641", 1))


async def test_start_waits_at_most_a_moment_when_udp_is_blocked(rig, autojump_clock):
    bus, udp, _probes = rig
    udp.delay = None
    bus.publish(NetMapChanged(netmap(derp_map=derp_map(7))))
    await trio.sleep(0.35)
    assert bus.latest(NetInfoChanged).home_region == 7
    assert bus.latest(EndpointsChanged).endpoints == (("10.0.0.7:41641", 1),)
    await trio.sleep(5.0)
    info = bus.latest(NetInfoChanged)
    assert info.working_udp is False
    assert info.latencies == {"7-v4": pytest.approx(0.1, abs=0.05)}  # measured by TCP meanwhile


async def test_start_waits_no_longer_than_the_relay_where_udp_is_blocked(rig, autojump_clock):
    bus, udp, _probes = rig
    udp.delay = None
    bus.publish(NetMapChanged(netmap(derp_map=derp_map(7))))
    await trio.sleep(0.05)
    assert bus.latest(NetInfoChanged) is None
    bus.publish(RelaysChanged((7,), False))
    await trio.sleep(0.03)
    assert bus.latest(NetInfoChanged).home_region == 7


async def test_a_relay_that_greets_first_does_not_hide_what_stun_measures(rig, autojump_clock):
    bus, _udp, _probes = rig
    bus.publish(NetMapChanged(netmap(derp_map=derp_map(2, 1))))
    bus.publish(RelaysChanged((1,), False))
    await trio.sleep(1.0)
    assert bus.latest(NetInfoChanged).home_region == 2


async def test_mapping_a_port_never_delays_the_start(rig, autojump_clock, monkeypatch):
    bus, _udp, probes = rig

    async def never(*_):
        await trio.sleep_forever()

    monkeypatch.setattr(probes.mapper, "run", never)
    bus.publish(NetMapChanged(netmap(derp_map=derp_map(2))))
    await trio.sleep(0.1)
    assert bus.latest(NetInfoChanged).home_region == 2


async def test_request_confirms_endpoints_even_if_unchanged(rig, autojump_clock):
    bus, _, _probes = rig
    bus.publish(NetMapChanged(netmap(derp_map=derp_map(1))))
    await trio.sleep(1.0)
    with bus.subscribe(EndpointsChanged, EndpointsConfirmed) as inbox:
        inbox.take()
        bus.publish(ProbeRequested("test"))
        message = await inbox.receive()
        assert isinstance(message, EndpointsConfirmed)


async def test_report_runs_a_full_check(rig, autojump_clock):
    bus, udp, probes = rig
    bus.publish(NetMapChanged(netmap(derp_map=derp_map(1, 2))))
    await trio.sleep(1.0)
    udp.sent.clear()
    report = await probes.report(lambda region: f"r{region}")
    assert report.udp
    assert report.ipv4 == "203.0.113.5:41641"
    assert report.home == "r1"
    assert set(report.latencies) == {"r1", "r2"}
    assert {path for _, path in udp.sent} == {("192.0.2.1", 3478), ("192.0.2.2", 3478)}


async def test_network_change_forgets_and_checks_again(rig, autojump_clock):
    bus, udp, _probes = rig
    bus.publish(NetMapChanged(netmap(derp_map=derp_map(1))))
    await trio.sleep(1.0)
    udp.sent.clear()
    bus.publish(NetworkChanged(rebound=True))
    await trio.sleep(1.0)
    assert udp.sent


async def test_no_udp_at_all_still_finds_a_home(autojump_clock, nursery):
    bus = Bus()
    relays = Relays(FakeNetwork(), NodePrivate.generate(bytes(32)), bus)
    probes = Probes(FakeNetwork(), Underlay(None, relays), bus)
    await nursery.start(run_probes, bus, probes)
    bus.publish(NetMapChanged(netmap(derp_map=derp_map(3, 4))))
    await trio.sleep(1.0)
    assert bus.latest(NetInfoChanged).home_region == 3
    assert bus.latest(NetInfoChanged).working_udp is None


async def test_path_actor_translates_nodes_and_keeps_addresses_fresh(autojump_clock, nursery):
    bus, rng = Bus(), random.Random(1)
    finder = PathFinder(
        DiscoPrivate.generate(rng.randbytes(32)), NodePrivate.generate(rng.randbytes(32)).public, entropy=rng.randbytes
    )

    def flush(now):
        finder.transmit(now)
        finder.take_messages()

    await nursery.start(run_paths, bus, finder, flush)
    key = NodePublic(rng.randbytes(32))
    node = Node(id=5, key=key, disco_key=DiscoPublic(rng.randbytes(32)), endpoints=("192.0.2.7:1",), home_derp=9)
    bus.publish(NetMapChanged(netmap(peers={5: node})))
    await trio.sleep(0.01)
    assert finder.paths == {5: ((9, key.raw),)}
    bus.publish(EndpointsChanged((("192.0.2.1:5", 2), ("nonsense", 1))))
    with bus.subscribe(ProbeRequested) as inbox:
        with trio.move_on_after(100):
            await inbox.receive()
            raise AssertionError("nobody is being talked to")
        started = trio.current_time()
        while trio.current_time() < started + 27:
            finder.on_data_sent([5], trio.current_time())
            await trio.sleep(1)
        assert len(inbox) >= 1


async def test_path_actor_leaves_a_path_on_which_the_tunnel_hears_nothing(autojump_clock, nursery):
    bus, rng = Bus(), random.Random(1)
    ours, theirs = (DiscoPrivate.generate(rng.randbytes(32)) for _ in range(2))
    finder = PathFinder(ours, NodePrivate.generate(rng.randbytes(32)).public, entropy=rng.randbytes)
    key, place, boxes = rng.randbytes(32), ("192.0.2.7", 1), disco.Boxes(theirs, rng.randbytes)

    def flush(now):
        for path, datagrams in finder.transmit(now):
            for datagram in datagrams if path == place else ():
                ping = boxes.open_untrusted(datagram)
                pong = boxes.seal(ours.public.raw, disco.Pong(ping.transaction, ("192.0.2.1", 1)))
                finder.receive([(pong, place)], now)

    began = trio.current_time()
    await nursery.start(partial(run_paths, bus, finder, flush, silence_of=lambda peer: PeerSilence(began + 15, 3, 0)))
    node = Node(
        id=5, key=NodePublic(key), disco_key=DiscoPublic(theirs.public.raw), endpoints=("192.0.2.7:1",), home_derp=9
    )
    bus.publish(NetMapChanged(netmap(peers={5: node})))
    seen = []
    for _ in range(40):
        now = trio.current_time()
        finder.on_data_sent([5], now)
        finder.handle_timer(now)
        flush(now)
        seen.append(finder.paths.get(5))
        await trio.sleep(1)
    assert seen[28] == (place,)
    assert seen[36] == ((9, key),)


def test_relay_servers_are_those_with_the_capability_towards_us():
    grant = CapGrant(dsts=("100.64.0.1/32",), cap_map={"tailscale.com/cap/relay-target": None})
    rules = (FilterRule(src_ips=("100.64.0.5", "100.64.1.0/24"), cap_grant=(grant,)),)
    us, other = Node(id=9, addresses=("100.64.0.1/32",)), Node(id=9, addresses=("100.64.0.2/32",))
    peers = {
        number: Node(id=number, addresses=(address,), cap=cap)
        for number, address, cap in [
            (1, "100.64.0.5/32", 121),
            (2, "100.64.1.9/32", 130),
            (3, "100.64.0.6/32", 130),
            (4, "100.64.1.8/32", 120),
        ]
    }

    def servers(of):
        return {number for number, peer in peers.items() if RelayServers(of).include(peer)}

    assert servers(netmap(peers=peers, packet_filters=rules, self_node=us)) == {1, 2}
    assert servers(netmap(peers=peers, packet_filters=rules, self_node=other)) == set()
    assert servers(netmap(peers=peers, self_node=us)) == set()
    translator = PeerTranslator()
    assert translator.follow(netmap(peers=peers, self_node=us)) == ([1, 2, 3, 4], [])
    assert translator.follow(netmap(peers=peers, self_node=us)) == ([], [])
    assert translator.follow(netmap(peers=peers, packet_filters=rules, self_node=us)) == ([1, 2, 3, 4], [])
    assert [facts.serves_relay for facts in translator.facts([1, 2, 3, 4]).values()] == [True, True, False, False]
    assert translator.follow(netmap(peers={1: peers[1]}, packet_filters=rules, self_node=us)) == ([], [2, 3, 4])


class Telling(PathFinder):
    """One that has two things to say."""

    def take_messages(self):
        return [BestPathChanged(5, ("192.0.2.7", 1), 0.01), NeedStun("stale")]


def test_what_the_finder_says_is_heard_on_the_bus():
    bus, rng = Bus(), random.Random(1)
    disco_key, node_key = DiscoPrivate.generate(rng.randbytes(32)), NodePrivate.generate(rng.randbytes(32))
    endpoint, stack = Endpoint(node_key, entropy=rng.randbytes, wall_clock=lambda: 0.0), Stack(entropy=rng.randbytes)
    finder = Telling(disco_key, node_key.public, entropy=rng.randbytes)
    engine, underlay = Engine(endpoint, stack), Underlay(None, Relays(FakeNetwork(), node_key, bus))
    dataplane = Dataplane(engine, finder, endpoint, stack, underlay, AwaitedAnswers(), bus)
    with bus.subscribe(PeerPathChanged, ProbeRequested) as inbox:
        dataplane.flush(1.0)
        assert inbox.take() == PeerPathChanged(5, ("192.0.2.7", 1), 0.01)
        assert inbox.take() == ProbeRequested("stale")
