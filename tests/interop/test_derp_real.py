"""Our relay client at derper and at Headscale's embedded relay; upstream's clients at our relay server."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
import trio

from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import RelaysChanged
from tailscale.runtime.network import HostNetwork
from tailscale.runtime.relay_actor import Relays, run_relays
from tailscale.runtime.relay_link import RelayRuns
from tailscale.testing.relay import Certificate, RelayService
from tests.interop.pattern import pattern_sha256
from tests.interop.processes import PORTS, poll_until
from tests.interop.rig import Json, Rig
from ts_base.keys import NodePrivate
from ts_derp.client import DerpClient
from ts_derp.errors import RelayUnreachable
from ts_derp.frames import GONE_DISCONNECTED, GONE_NOT_HERE, Run
from ts_derp.machine import DerpMachine, DerpMessage, Greeted, PeerGone, PongArrived
from ts_derp.regions import RelayMap, RelayNode, RelayRegion
from ts_derp.server import DISCO_MAGIC
from ts_derp.trust import Trust

MIB = 1 << 20


def region_of(entry: Json, **changes: Any) -> RelayRegion:
    """A rig's map entry in our words."""
    [node] = entry["nodes"]
    fields: dict[str, Any] = {
        "cert_name": node["certname"],
        "ipv4": node["ipv4"],
        "ipv6": node["ipv6"],
        "derp_port": node["derpport"],
        "insecure_for_tests": node.get("insecurefortests", False),
    }
    return RelayRegion(entry["regionid"], nodes=(RelayNode(node["name"], node["hostname"], **(fields | changes)),))


class Side:
    """One client connection and all that came out of it."""

    def __init__(self) -> None:
        private = NodePrivate.generate(os.urandom(32))
        self.key = private.public.raw
        self.machine = DerpMachine(private, entropy=os.urandom)
        self.inbound: list[Run] = []
        self.facts: list[DerpMessage] = []

    @property
    def packets(self) -> list[bytes]:
        return [packet for _, packets in self.inbound for packet in packets]

    def fact(self, kind: type) -> Any:
        return next((fact for fact in self.facts if isinstance(fact, kind)), None)


@contextlib.asynccontextmanager
async def client(region: RelayRegion, trust: Trust, *, over_http: bool = False) -> AsyncIterator[tuple[Side, Any]]:
    side = Side()
    made = await DerpClient.dial(HostNetwork(), region, side.machine, trust, over_http=over_http)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run, side.inbound.extend, side.facts.append)
        await until(lambda: side.machine.greeted)
        yield side, made
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], limit: float = 10.0) -> None:
    async def probe() -> bool:
        return condition()

    await poll_until("a relay", probe, limit)


async def converse(region: RelayRegion, trust: Trust, *, over_http: bool = False) -> None:
    """All the things a client does at a relay."""
    async with client(region, trust, over_http=over_http) as (a, _):
        async with client(region, trust, over_http=over_http) as (b, b_client):
            packets = [bytes([i]) * (1 + 7 * i) for i in range(30)]
            b_client.send([(a.key, packets)], trio.current_time())
            await until(lambda: len(a.packets) == 30)
            assert a.packets == packets
            assert {source for source, _ in a.inbound} == {b.key}
            b_client.send([(a.key, [bytes(65536)]), (os.urandom(32), [DISCO_MAGIC + bytes(60)])], trio.current_time())
            b.machine.ping(trio.current_time())
            b.machine.prefer(True)
            b_client.wake()
            await until(lambda: b.fact(PongArrived) is not None and len(a.packets) == 31)
            assert b.fact(PongArrived).round_trip < 1.0
            await until(lambda: b.fact(PeerGone) is not None)
            assert b.fact(PeerGone).reason == GONE_NOT_HERE
            assert a.fact(Greeted).server == b.fact(Greeted).server
        await until(lambda: a.fact(PeerGone) is not None)
        assert a.fact(PeerGone) == PeerGone(b.key, GONE_DISCONNECTED)


async def test_derper_over_tls_with_a_pin(r: Rig) -> None:
    async with r.derper(stun=False) as relay:
        region = region_of(relay.region)
        await converse(region, Trust())
        [node] = region.nodes
        for wrong in ("sha256-raw:" + "0" * 64, "sha256-raw:nonsense", "", "other.name"):
            with pytest.raises(RelayUnreachable):
                await DerpClient.dial(HostNetwork(), region_of(relay.region, cert_name=wrong), Side().machine, Trust())
        assert node.cert_name.startswith("sha256-raw:")


async def test_derper_with_a_certificate_nobody_signed_needs_the_test_setting(r: Rig) -> None:
    async with r.derper(stun=False, pinned=False) as relay:
        region = region_of(relay.region)
        assert region.nodes[0].insecure_for_tests
        with pytest.raises(RelayUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
            await DerpClient.dial(HostNetwork(), region, Side().machine, Trust())
        await converse(region, Trust(allow_insecure=True))


async def test_derper_over_plain_http(r: Rig) -> None:
    async with r.derper(tls=False, stun=False) as relay:
        await converse(region_of(relay.region), Trust(), over_http=True)


async def test_a_killed_and_restarted_derper_is_found_again(r: Rig) -> None:
    async with r.derper(stun=False) as relay, trio.open_nursery() as nursery:
        bus, inbound = Bus(), RelayRuns()
        relays = Relays(HostNetwork(), NodePrivate.generate(os.urandom(32)), bus)
        await nursery.start(run_relays, bus, relays, inbound.extend)
        relays.set_map(RelayMap({900: region_of(relay.region)}))
        relays.set_home(900)
        await until(lambda: relays.connected == (900,))
        await relay.stop()
        await until(lambda: relays.connected == ())
        await relay.restart()
        await until(lambda: relays.connected == (900,))
        latest = bus.latest(RelaysChanged)
        assert latest == RelaysChanged((900,), True)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("tls", [False, True], ids=["http", "private CA"])
async def test_headscale_embedded_relay(r: Rig, tls: bool) -> None:
    settings = {"derp.server.verify_clients": False}
    async with r.headscale(embedded_derp=True, tls=tls, settings=settings) as hs:
        port = int(hs.url.rpartition(":")[2])
        region = RelayRegion(999, nodes=(RelayNode("999", "127.0.0.1", ipv4="127.0.0.1", ipv6="none", derp_port=port),))
        trust = Trust(ssl.create_default_context(cafile=str(hs.ca)) if tls else None)
        await converse(region, trust, over_http=not tls)
        if tls:
            for name in ("hs.rig", "localhost"):
                named = RelayNode("n", "127.0.0.1", cert_name=name, ipv4="127.0.0.1", ipv6="none", derp_port=port)
                await converse(RelayRegion(999, nodes=(named,)), trust)
            with pytest.raises(RelayUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
                await DerpClient.dial(HostNetwork(), region, Side().machine, Trust())


async def test_headscale_embedded_relay_turns_strangers_away(r: Rig) -> None:
    async with r.headscale(embedded_derp=True) as hs:
        port = int(hs.url.rpartition(":")[2])
        node = RelayNode("999", "127.0.0.1", ipv4="127.0.0.1", ipv6="none", derp_port=port)
        side = Side()
        made = await DerpClient.dial(
            HostNetwork(), RelayRegion(999, nodes=(node,)), side.machine, Trust(), over_http=True
        )
        with trio.fail_after(5), pytest.raises(ConnectionError):
            await made.run(side.inbound.extend, side.facts.append)
        assert not side.machine.greeted


@contextlib.asynccontextmanager
async def our_relay(*, tls: bool) -> AsyncIterator[tuple[Json, RelayService]]:
    service = RelayService(NodePrivate.generate(os.urandom(32)), entropy=os.urandom, admit=lambda key: True)
    certificate = Certificate("127.0.0.1")
    port = PORTS.take()

    async def handle(stream: trio.SocketStream) -> None:
        served: trio.abc.Stream = stream
        if tls:
            served = trio.SSLStream(stream, certificate.context, server_side=True, https_compatible=True)
        with contextlib.suppress(trio.BrokenResourceError):  # a client that hung up during the handshake
            await service.serve_stream(served)

    node = {"name": "900a", "regionid": 900, "hostname": "127.0.0.1", "ipv4": "127.0.0.1", "ipv6": "none"}
    node |= {"derpport": port, "stunport": -1, "certname": certificate.pin if tls else ""}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run_timers)
        await nursery.start(partial(trio.serve_tcp, handle, port, host="127.0.0.1"))
        yield {"regionid": 900, "regioncode": "ours", "regionname": "ours", "nodes": [node]}, service
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "http"])
async def test_our_client_at_our_relay(tls: bool) -> None:
    async with our_relay(tls=tls) as (entry, _):
        await converse(region_of(entry), Trust(), over_http=not tls)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "http"])
async def test_two_tsnet_nodes_through_our_relay(r: Rig, tls: bool) -> None:
    async with (
        our_relay(tls=tls) as (entry, service),
        r.headscale(regions=[entry]) as hs,
        r.tsnet(hs, await hs.auth_key(), "db", relay_only=True, derp_http=not tls) as db,
        r.tsnet(hs, await hs.auth_key(), "worker", relay_only=True, derp_http=not tls) as worker,
    ):
        echoed = await worker.dial(db.ip4, 7, bytes=4 * MIB, end="half", read=-1)
        assert echoed["sha256"] == pattern_sha256(4 * MIB)
        ping = await worker.ping(db.ip4)
        assert not ping["Endpoint"]
        assert ping["DERPRegionID"] == 900
        assert service.server.statistics().homes == 2


@pytest.mark.peers("tailscaled", "tailscale")
async def test_tailscaled_makes_our_relay_its_home(r: Rig) -> None:
    async with (
        our_relay(tls=True) as (entry, service),
        r.headscale(regions=[entry]) as hs,
        r.tailscaled("stock", control=hs, auth_key=await hs.auth_key()),
    ):
        await until(lambda: service.server.statistics().homes == 1, 20)
