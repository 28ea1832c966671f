from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from relay_scripts import MemoryNetwork, MemoryRelay
from trio.testing import MockClock

from tailscale.runtime.bus import Bus, Inbox
from tailscale.runtime.messages import (
    NetInfoChanged,
    NetMapChanged,
    NetworkChanged,
    RelayFrameArrived,
    RelaysChanged,
    WarningsChanged,
)
from tailscale.runtime.relay_actor import LINK_CLOSED, Relays, run_relays
from tailscale.runtime.relay_link import HOME_UNREACHABLE, RelayRuns
from tailscale.runtime.translate_relays import translate_map
from ts_base.keys import NodePrivate
from ts_control.netmap import _EMPTY
from ts_control.wire import DERPHomeParams, DERPMap, DERPNode, DERPRegion
from ts_derp.client import DerpClient
from ts_derp.errors import RelayUnreachable
from ts_derp.frames import MAX_PACKET_LENGTH
from ts_derp.machine import OVERSIZED, DerpMachine, PeerGone
from ts_derp.regions import RelayNode, RelayRegion
from ts_derp.server import DISCO_MAGIC
from ts_derp.trust import Trust


def wire_map(*regions: int, **changes: Any) -> DERPMap:
    return DERPMap(
        regions={
            number: DERPRegion(
                region_id=number,
                region_code=f"r{number}",
                nodes=(DERPNode(name=f"{number}a", region_id=number, host_name=f"relay{number}", **changes),),
            )
            for number in regions
        }
    )


class Side:
    """One Device's relay actor and what came out of it."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.bus = Bus()
        self.network = network
        # The key decides which region is dialled before anything is measured: the same one in every run.
        private = NodePrivate.generate(len(network.dialled).to_bytes(32, "big"))
        self.relays = Relays(network, private, self.bus, over_http=True)  # type: ignore[arg-type]
        self.inbound: RelayRuns = []

    @property
    def key(self) -> bytes:
        return self.relays.private.public.raw

    def set_map(self, derp_map: DERPMap) -> None:
        self.bus.publish(NetMapChanged(replace(_EMPTY, derp_map=derp_map)))

    def set_home(self, region: int) -> None:
        self.bus.publish(NetInfoChanged(region, {}))

    def packets(self) -> list[bytes]:
        return [packet for _, packets in self.inbound for packet in packets]

    async def until(self, condition: Callable[[], bool], limit: float = 30.0) -> float:
        began = trio.current_time()
        with trio.fail_after(limit):
            while not condition():  # noqa: ASYNC110 - what is asked about has no event
                await trio.sleep(0.01)
        return trio.current_time() - began

    async def home_up(self, limit: float = 30.0) -> float:
        def is_up() -> bool:
            latest = self.bus.latest(RelaysChanged)
            return latest is not None and latest.home_connected

        return await self.until(is_up, limit)


class Rig:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.network = MemoryNetwork()
        self.relays: dict[int, MemoryRelay] = {}

    def add_relay(self, number: int) -> MemoryRelay:
        relay = self.relays[number] = MemoryRelay(self.nursery)
        self.network.add(f"relay{number}", relay)
        return relay

    async def side(self, home: int | None = 1, regions: tuple[int, ...] = (1, 2)) -> Side:
        side = Side(self.network)
        await self.nursery.start(run_relays, side.bus, side.relays, side.inbound.extend)
        side.set_map(wire_map(*regions))
        if home is not None:
            side.set_home(home)
            await side.home_up()
        return side


@asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        rig.add_relay(1)
        rig.add_relay(2)
        yield rig
        nursery.cancel_scope.cancel()


def heard(inbox: Inbox, kind: type) -> list[Any]:
    return [message for message in (inbox.take() for _ in range(len(inbox))) if isinstance(message, kind)]


async def test_two_devices_talk_through_one_relay(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a, b = await rig.side(), await rig.side()
        a.relays.send([((1, b.key), [b"one", b"two"])])
        await b.until(lambda: len(b.packets()) == 2)
        assert b.inbound == [((1, a.key), [b"one", b"two"])]
        assert rig.relays[1].server.statistics().homes == 2


async def test_a_peers_region_is_opened_on_demand_and_closed_when_idle(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a, b = await rig.side(home=1), await rig.side(home=2)
        a.relays.send([((2, b.key), [b"first"])])
        await b.until(lambda: b.packets() == [b"first"])
        assert a.relays.connected == (1, 2)
        await trio.sleep(59)
        a.relays.send([((2, b.key), [b"again"])])
        await trio.sleep(59)
        assert a.relays.connected == (1, 2)
        await trio.sleep(20)
        assert a.relays.connected == (1,)
        assert a.bus.latest(RelaysChanged) == RelaysChanged((1,), True)


async def test_what_a_link_counted_stays_counted_when_it_is_gone(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a = await rig.side(home=1)
        a.relays.send([((2, bytes(32)), [b"waits", b"in vain"])])
        link = a.relays.statistics().links[2]
        assert (link.connected, link.queued_bytes > 0, link.drops) == (False, True, {})
        a.relays.send([((2, bytes(32)), [bytes(MAX_PACKET_LENGTH + 1)])])
        assert a.relays.statistics().links[2].drops == {OVERSIZED: 1}
        a.relays.set_map(translate_map(wire_map(1)))
        await trio.sleep(1)  # the link's task ends too
        assert list(a.relays.statistics().links) == [1]
        assert a.relays.statistics().drops == {LINK_CLOSED: 2, OVERSIZED: 1}


async def test_an_answer_goes_where_the_peer_was_heard(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a, b = await rig.side(home=1), await rig.side(home=2)
        a.relays.send([((2, b.key), [b"question"])])
        await b.until(lambda: bool(b.packets()))
        b.relays.send([((0, a.key), [b"no home known"]), ((1, a.key), [b"home elsewhere"])])
        await a.until(lambda: len(a.packets()) == 2)
        assert b.relays.connected == (2,)


async def test_packets_wait_while_the_relay_is_dialled(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        b = await rig.side()
        a = await rig.side(home=None)
        await a.until(lambda: bool(a.relays.statistics().links))
        a.relays.send([((1, b.key), [b"early"]), ((2, b.key), [b"there too"])])
        await b.until(lambda: b.packets() == [b"early"])


async def test_with_no_measurement_some_region_is_dialled_at_once(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a = Side(rig.network)
        await rig.nursery.start(run_relays, a.bus, a.relays, a.inbound.extend)
        began = trio.current_time()
        a.set_map(wire_map(1))
        await a.until(lambda: a.relays.connected == (1,))
        latest = a.bus.latest(RelaysChanged)
        assert latest == RelaysChanged((1,), False)
        a.set_home(1)
        assert await a.home_up() <= 0.1
        assert rig.network.dialled == [(began, "relay1", 3340)]
        await trio.sleep(0.1)
        assert rig.relays[1].server.statistics().homes == 1


async def test_a_restarted_relay_is_found_again(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a, b = await rig.side(regions=(1,)), await rig.side(regions=(1,))
        await trio.sleep(100)
        with a.bus.subscribe(WarningsChanged) as inbox:
            rig.network.refuse("relay1")
            rig.relays[1].cut()
            await trio.sleep(60)
            attempts = [at for at, host, _ in rig.network.dialled if host == "relay1"]
            assert len(attempts) <= 2 + 2 * 30
            assert not a.relays.connected
            assert list(heard(inbox, WarningsChanged)[0].warnings) == [HOME_UNREACHABLE]
            rig.add_relay(1)
            assert await a.home_up() <= 5.5
            assert heard(inbox, WarningsChanged) == [WarningsChanged({})]
        await b.home_up()
        a.relays.send([((1, b.key), [b"back"])])
        await b.until(lambda: b.packets() == [b"back"])


async def test_a_short_cut_is_healed_at_once(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a = await rig.side(regions=(1,))
        await trio.sleep(100)
        rig.relays[1].cut()
        await a.until(lambda: not a.relays.connected)
        assert await a.home_up() <= 0.5


async def test_a_relay_that_drops_us_at_once_is_not_hammered(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.relays[1].status = b"503 Busy"
        a = Side(rig.network)
        await rig.nursery.start(run_relays, a.bus, a.relays, a.inbound.extend)
        a.set_map(wire_map(1))
        a.set_home(1)
        await trio.sleep(100)
        assert 15 <= rig.relays[1].dials <= 60


async def test_home_moves_and_is_told_to_both_relays(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a = await rig.side(home=1)
        a.set_home(2)
        await a.home_up()
        await a.until(lambda: a.relays.connected == (1, 2))
        await trio.sleep(0.1)
        assert [rig.relays[n].server.statistics().homes for n in (1, 2)] == [0, 1]
        await trio.sleep(80)
        assert a.relays.connected == (2,)


async def test_a_new_node_key_reconnects(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a = await rig.side(regions=(1,))
        new = NodePrivate.generate(os.urandom(32))
        a.relays.set_private(new)
        await a.until(lambda: rig.relays[1].server.connected_keys == {new.public.raw})
        await a.home_up()


async def test_a_region_that_vanishes_or_moves_is_followed(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a = await rig.side()
        a.set_map(wire_map(2))
        await a.until(lambda: a.relays.connected == ())
        rig.add_relay(3)
        rig.network.hosts["relay1"] = rig.network.hosts["relay3"]
        a.set_map(wire_map(1, derp_port=8443))
        await a.home_up()
        assert rig.network.dialled[-1][2] == 8443
        dials = len(rig.network.dialled)
        a.set_map(wire_map(1, derp_port=8443))
        await trio.sleep(1)
        assert len(rig.network.dialled) == dials


async def test_after_a_network_change_a_dead_connection_is_found_within_three_seconds(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        a = await rig.side(regions=(1,))
        rig.relays[1].server.receive = lambda *args: None  # type: ignore[method-assign]
        a.bus.publish(NetworkChanged(rebound=True))
        rig.add_relay(1)
        assert await a.until(lambda: not a.relays.connected) <= 3.1
        await a.home_up()


async def test_after_a_network_change_a_live_connection_stays(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a = await rig.side(regions=(1,))
        a.bus.publish(NetworkChanged(rebound=False))
        await trio.sleep(10)
        assert rig.relays[1].dials == 1
        assert a.relays.statistics().links[1].round_trip is not None


async def test_a_silent_relay_is_left_after_two_minutes(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a = await rig.side(regions=(1,))
        rig.relays[1].server.handle_timer = lambda now: None  # type: ignore[method-assign]
        rig.add_relay(1)
        assert 119 <= await a.until(lambda: not a.relays.connected, 200) <= 121


async def test_keep_alives_hold_a_quiet_connection(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await rig.side(regions=(1,))
        await trio.sleep(1000)
        assert rig.relays[1].dials == 1


async def test_peer_gone_is_told_and_forgets_the_route(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a = await rig.side()
        with a.bus.subscribe(RelayFrameArrived) as inbox:
            nobody = os.urandom(32)
            a.relays.send([((1, nobody), [DISCO_MAGIC + bytes(60)])])
            await trio.sleep(0.1)
            assert heard(inbox, RelayFrameArrived) == [RelayFrameArrived(1, PeerGone(nobody, 1))]


async def test_sending_to_a_region_that_does_not_exist_is_counted(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a = await rig.side(regions=(1,))
        a.relays.send([((77, bytes(32)), [b"x"])])
        assert sum(a.relays.drops.values()) == 1
        assert list(a.relays.statistics().links) == [1]


async def test_a_bulk_transfer_arrives_in_order(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        a, b = await rig.side(), await rig.side()
        packets = [i.to_bytes(4, "big") * 300 for i in range(2000)]
        for at in range(0, 2000, 100):
            a.relays.send([((1, b.key), packets[at : at + 100])])
            await b.until(lambda expected=at + 100: len(b.packets()) == expected)
        assert b.packets() == packets


REGION = RelayRegion(
    1,
    nodes=(
        RelayNode("stun", "stun", stun_only=True),
        RelayNode("1a", "dead"),
        RelayNode("1b", "relay1"),
    ),
)


def machine() -> DerpMachine:
    return DerpMachine(NodePrivate.generate(os.urandom(32)), entropy=os.urandom)


async def test_nodes_are_tried_in_order_and_the_ideal_one_is_named(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.network.black_hole("dead")
        began = trio.current_time()
        await DerpClient.dial(rig.network, REGION, machine(), Trust(), over_http=True)
        assert trio.current_time() - began == pytest.approx(1.5)
        assert [host for _, host, _ in rig.network.dialled] == ["dead", "relay1"]
        assert b"Ideal-Node: stun" in rig.relays[1].requests[0]
        assert b"Upgrade: DERP" in rig.relays[1].requests[0]


async def test_a_node_that_accepts_and_says_nothing_leaves_time_for_the_next(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        stalled = MemoryRelay(rig.nursery)
        stalled.stalled = True
        rig.network.add("dead", stalled)
        with trio.fail_after(8):
            await DerpClient.dial(rig.network, REGION, machine(), Trust(), over_http=True)


async def test_a_region_that_answers_nowhere_is_a_typed_error(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.network.refuse("relay1")
        with pytest.raises(RelayUnreachable, match="refuses") as error:
            await DerpClient.dial(rig.network, REGION, machine(), Trust(), over_http=True)
        assert isinstance(error.value, OSError)
        with pytest.raises(RelayUnreachable, match="no relay"):
            await DerpClient.dial(rig.network, RelayRegion(9), machine(), Trust(), over_http=True)


async def test_families_race_with_a_stagger(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.network.black_hole("192.0.2.1")
        rig.network.hosts["2001:db8::1"] = rig.network.hosts["relay1"]
        region = RelayRegion(1, nodes=(RelayNode("a", "name", ipv4="192.0.2.1", ipv6="2001:db8::1"),))
        began = trio.current_time()
        await DerpClient.dial(rig.network, region, machine(), Trust(), over_http=True)
        assert trio.current_time() - began == pytest.approx(0.2)
        assert [host for _, host, _ in rig.network.dialled] == ["192.0.2.1", "2001:db8::1"]


async def test_disabled_families_are_not_dialled(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        region = RelayRegion(1, nodes=(RelayNode("a", "name", ipv4="none", ipv6="none"),))
        with pytest.raises(RelayUnreachable, match="switched off"):
            await DerpClient.dial(rig.network, region, machine(), Trust(), over_http=True)
        assert rig.network.dialled == []


def test_the_wire_map_is_translated_whole() -> None:
    wire = DERPMap(
        home_params=DERPHomeParams(region_score={7: 0.5}),
        regions={
            7: DERPRegion(
                region_id=7,
                region_code="x",
                no_measure_no_home=True,
                nodes=(DERPNode(name="7a", host_name="h", cert_name="c", ipv4="1.2.3.4", derp_port=9),),
            ),
            8: None,
        },
    )
    translated = translate_map(wire)
    assert translated.scores == {7: 0.5}
    assert translated.regions == {
        7: RelayRegion(
            7,
            "x",
            no_measure_no_home=True,
            nodes=(RelayNode("7a", "h", cert_name="c", ipv4="1.2.3.4", derp_port=9),),
        )
    }
