"""Two uplinks as two wires between network namespaces: what leaves by which, what is found through each."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import pytest
import trio

from tailscale import Redundant
from tailscale.runtime.network import HostNetwork, UdpUnderlay
from tests.interop import natlab
from tests.interop.natlab.namespaces import inside, run, why_not
from tests.interop.ours import joined
from tests.interop.processes import poll_until
from tests.interop.rig import Rig
from tests.interop.test_paths_real import flowing
from ts_base.keys import DiscoPrivate, NodePrivate
from ts_base.who import uplink_of
from ts_dataplane.paths import PathFinder
from ts_dataplane.peer_paths import PeerPaths

pytestmark = [
    pytest.mark.interop,
    pytest.mark.root,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there can be namespaces"),
]

UPLINKS = ("up0", "up1")
FAR = "10.98.9.9"  # one address at the far end, reached over either wire; the system itself always takes the first
REGION = 900


@dataclass
class Wires:
    near: str
    far: str

    def bytes_over(self, uplink: str) -> int:
        """What arrived at the far end of an uplink's wire so far."""
        shown = json.loads(run("ip", "-n", self.far, "-s", "-j", "link", "show", uplink.replace("up", "far")))
        return int(shown[0]["stats64"]["rx"]["bytes"])


@contextmanager
def two_wires() -> Iterator[Wires]:
    near, far = f"pt{os.getpid()}near", f"pt{os.getpid()}far"
    made = []
    try:
        for namespace in (near, far):
            run("ip", "netns", "add", namespace)
            made.append(namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
            for scope in ("all", "default"):
                run("ip", "netns", "exec", namespace, "sysctl", "-qw", f"net.ipv4.conf.{scope}.rp_filter=0")
        run("ip", "-n", far, "addr", "add", f"{FAR}/32", "dev", "lo")
        for number, uplink in enumerate(UPLINKS):
            other = f"far{number}"
            run("ip", "link", "add", uplink, "netns", near, "type", "veth", "peer", "name", other, "netns", far)
            for namespace, name, last in ((near, uplink, 1), (far, other, 2)):
                run("ip", "-n", namespace, "addr", "add", f"10.98.{number}.{last}/24", "dev", name)
                run("ip", "-n", namespace, "link", "set", name, "up")
            via = ("via", f"10.98.{number}.2", "dev", uplink, "metric", str(10 + number))
            run("ip", "-n", near, "route", "add", f"{FAR}/32", *via)
        yield Wires(near, far)
    finally:
        for namespace in made:
            run("ip", "netns", "del", namespace)


@asynccontextmanager
async def ends(wires: Wires) -> AsyncIterator[tuple[UdpUnderlay, UdpUnderlay]]:
    """A port bound to both uplinks, and the far end's plain one."""
    with inside(wires.near):
        near = await HostNetwork().open_udp(0, UPLINKS)
    with inside(wires.far):
        far = await HostNetwork().open_udp(0)
    try:
        yield near, far
    finally:
        near.close()
        far.close()


async def test_what_names_an_uplink_leaves_by_its_wire_only() -> None:
    with two_wires() as wires:
        async with ends(wires) as (near, far):
            for uplink, other in (UPLINKS, UPLINKS[::-1]):
                before = {name: wires.bytes_over(name) for name in UPLINKS}
                near.send_many([((f"{FAR}%{uplink}", far.local_port), [bytes(1000)] * 100)])
                got: list[bytes] = []
                with trio.fail_after(5):
                    while len(got) < 100:
                        for source, datagrams in await far.readers()[0]():
                            got += datagrams
                            assert source[0] == f"10.98.{UPLINKS.index(uplink)}.1"
                assert wires.bytes_over(uplink) - before[uplink] > 100_000
                assert wires.bytes_over(other) - before[other] < 1000
                far.send_many([(source, [b"back"])])
                with trio.fail_after(5):
                    answers = await near.readers()[2 * UPLINKS.index(uplink)]()
                wire = f"10.98.{UPLINKS.index(uplink)}.2%{uplink}"  # the far end answers from its address there
                assert answers == [((wire, far.local_port), [b"back"])]


async def test_an_uplink_that_goes_down_is_told_and_the_other_carries_on() -> None:
    with two_wires() as wires:
        async with ends(wires) as (near, far):
            run("ip", "-n", wires.near, "link", "set", "up1", "down")
            gone, alive = ((f"{FAR}%{uplink}", far.local_port) for uplink in reversed(UPLINKS))
            near.send_many([(gone, [b"lost"]), (alive, [b"heard"])])
            assert near.take_unreachable() == [gone]
            with trio.fail_after(5):
                assert [datagrams for _, datagrams in await far.readers()[0]()] == [[b"heard"]]


class Party:
    """A path finder on a port, fed by its readers."""

    def __init__(self, number: int, udp: UdpUnderlay) -> None:
        self.number, self.udp = number, udp
        self.node, self.disco = NodePrivate.generate(os.urandom(32)), DiscoPrivate.generate(os.urandom(32))
        self.finder = PathFinder(self.disco, self.node.public, entropy=os.urandom, uplinks=udp.uplinks)

    def facts(self, *endpoints: str) -> PeerPaths:
        return PeerPaths(self.node.public.raw, self.disco.public.raw, endpoints, REGION)

    def flush(self) -> None:
        runs = [(path, datagrams) for path, datagrams in self.finder.transmit(trio.current_time()) if path[0] != REGION]
        self.udp.send_many(runs)  # type: ignore[arg-type]
        self.finder.take_messages()

    async def read(self, reader) -> None:
        while True:
            for path, datagrams in await reader():
                self.finder.receive([(datagram, path) for datagram in datagrams], trio.current_time())
            self.flush()

    async def run_timers(self) -> None:
        while True:
            await trio.sleep(0.05)
            self.finder.handle_timer(trio.current_time())
            self.flush()


async def test_a_path_is_found_and_kept_through_each_uplink() -> None:
    with two_wires() as wires:
        async with ends(wires) as (near, far), trio.open_nursery() as nursery:
            a, b = Party(1, near), Party(2, far)
            now = trio.current_time()
            a.finder.set_peers({2: b.facts(f"{FAR}:{far.local_port}")}, now)
            b.finder.set_peers({1: a.facts()}, now)
            for party in (a, b):
                nursery.start_soon(party.run_timers)
                for reader in party.udp.readers():
                    nursery.start_soon(party.read, reader)
            a.finder.on_data_sent([2], now)

            async def found() -> bool:
                uplinks = [uplink_of(path) for path in a.finder.standbys(2, trio.current_time())]
                return uplinks == list(UPLINKS) and len(a.finder.paths[2]) == 1

            await poll_until("a trusted path and one through each uplink", found, 5.0)
            nursery.cancel_scope.cancel()


STEADY = 1 << 20  # bytes a second


@pytest.mark.slow
@pytest.mark.parametrize("theirs", ["ours", "tsnet"])
async def test_a_flow_outlives_an_uplink_that_falls_silent(r: Rig, theirs: str) -> None:
    async with natlab.lab(r) as (made, hs):
        van, home = made.site("none"), made.site("none")
        await made.second_uplink(van)
        key = await hs.auth_key(ephemeral=False)
        start = r.tsnet if theirs == "tsnet" else r.ours
        async with start(hs, key, "db", namespace=home.client, port=natlab.NODE_PORT) as db:
            with inside(van.client):
                async with joined(hs, "van", auth_key=key, uplinks=["eth0", "eth1"]) as us:

                    async def proven() -> bool:
                        good = {w.uplink for w in us.paths("db") if w.kind == "direct" and w.state == "good"}
                        return good == {"eth0", "eth1"}

                    async with flowing(us, db.ip4, rate=STEADY) as flow:
                        await poll_until("a good path through each uplink", proven, 30)
                        await flow.carries(3 * STEADY)
                        [used] = [way.uplink for way in us.paths("db") if way.in_use]
                        other = "eth1" if used == "eth0" else "eth0"
                        before = flow.silence()
                        began = trio.current_time()
                        made.silence(van, used, True)
                        at = {one.name: one.sent for one in us.uplinks}[other]

                        async def other_carries() -> bool:
                            return {one.name: one.sent for one in us.uplinks}[other] > at

                        await poll_until(f"{other} to carry what {used} did", other_carries, 20)
                        ours = trio.current_time() - began
                        await flow.heard_again(30)
                        await flow.carries(2 * STEADY)
                        gap = flow.silence()
                        assert [way.uplink for way in us.paths("db") if way.in_use] == [other]
                    print(
                        f"silent uplink, {theirs} there: our way goes on after {ours:.2f} s, both after {gap:.2f} s "
                        f"({before:.2f} before); {flow.sent >> 20} MiB, none lost"
                    )


@pytest.mark.slow
async def test_a_flow_goes_on_when_an_interface_goes_down(r: Rig) -> None:
    async with natlab.lab(r) as (made, hs):
        van, home = made.site("none"), made.site("none")
        await made.second_uplink(van)
        key = await hs.auth_key(ephemeral=False)
        async with r.ours(hs, key, "db", namespace=home.client, port=natlab.NODE_PORT) as db:
            with inside(van.client):
                async with joined(hs, "van", auth_key=key, uplinks="all", paths=Redundant(2)) as us:
                    assert {one.name for one in us.uplinks} == {"eth0", "eth1"}
                    async with flowing(us, db.ip4, rate=STEADY) as flow:
                        await flow.carries(4 * STEADY)
                        run("ip", "-n", van.client, "link", "set", "eth1", "down")
                        await flow.heard_again(30)

                        async def known() -> bool:
                            return [one.name for one in us.uplinks if one.up] == ["eth0"]

                        await poll_until("eth1 to be known as down", known, 20)
                        run("ip", "-n", van.client, "link", "set", "eth1", "up")

                        async def back() -> bool:
                            return [one.name for one in us.uplinks if one.up] == ["eth0", "eth1"]

                        await poll_until("eth1 to be back", back, 20)
                        print(f"an interface down: {flow.silence():.2f} s silent")
