"""The control actor against real Headscale: every row of joining, staying and leaving that Headscale offers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tailscale._config import Config, Preferences
from tailscale.errors import AuthKeyRejected
from tailscale.runtime.bus import Bus
from tailscale.runtime.control_actor import ControlActor, run_control
from tailscale.runtime.messages import (
    ControlStateChanged,
    EndpointsChanged,
    NetInfoChanged,
    NetMapChanged,
    NodeKeyChanged,
    Offer,
    PreferencesChanged,
    WarningsChanged,
)
from tailscale.runtime.network import HostNetwork
from tailscale.runtime.offers import offer
from tailscale.state_file import MemoryStore, State
from tests.interop.rig import HEADSCALE, Derper, Headscale, Rig, TsnetPeer
from ts_base.keys import DiscoPrivate
from ts_control.errors import RequestRefused
from ts_control.gojson import encode_json
from ts_control.netmap import NetMap
from ts_control.wire import Service

VERSIONS = pytest.mark.parametrize(
    "version", ["0.29.2", pytest.param("0.28.0", marks=pytest.mark.peers("headscale-0.28.0"))]
)


class Joined:
    """A running control actor and what it says."""

    def __init__(self, bus: Bus, control: ControlActor) -> None:
        self.bus, self.control = bus, control

    @property
    def netmap(self) -> NetMap:
        latest = self.bus.latest(NetMapChanged)
        assert latest is not None
        return latest.netmap

    @property
    def state(self) -> str:
        latest = self.bus.latest(ControlStateChanged)
        return latest.state if latest else ""

    async def until(self, holds: Callable[[], Any], timeout: float = 20.0) -> float:
        """Wait for messages until `holds()`; returns how long it took."""
        began = trio.current_time()
        with trio.fail_after(timeout), self.bus.subscribe(NetMapChanged, ControlStateChanged, WarningsChanged) as inbox:
            while not holds():
                await inbox.receive()
        return trio.current_time() - began

    async def until_running(self, timeout: float = 20.0) -> float:
        return await self.until(lambda: self.state == "running", timeout)

    def peer_names(self) -> set[str]:
        return {peer.name.split(".")[0] for peer in self.netmap.peers.values()}


@asynccontextmanager
async def running(
    hs: Headscale,
    *,
    auth_key: str | None = None,
    name: str = "py",
    store: MemoryStore | None = None,
    ephemeral: bool = False,
    **preferences: Any,
) -> AsyncIterator[Joined]:
    network = HostNetwork()
    store = store or MemoryStore()
    state = store.load() or State.generate(network.entropy, hs.url)
    wishes = Preferences(hostname=name, **preferences)
    config = Config(hs.url, wishes, auth_key=auth_key, ephemeral=ephemeral, login_timeout=20.0)
    bus = Bus()
    control = ControlActor(config, network, store, state, DiscoPrivate.generate(network.entropy(32)).public, bus)
    bus.publish(PreferencesChanged(wishes))
    async with trio.open_nursery() as nursery:
        await nursery.start(run_control, control)
        try:
            yield Joined(bus, control)
        finally:
            with trio.CancelScope(shield=True):
                await control.leave()
            nursery.cancel_scope.cancel()


@VERSIONS
async def test_a_new_node_joins_with_an_auth_key(r: Rig, relay: Derper, version: str) -> None:
    async with r.headscale(version, regions=[relay.region]) as hs:
        key = await hs.auth_key(reusable=False)
        store = MemoryStore()
        async with running(hs, auth_key=key, store=store) as node:
            await node.until_running()
            self_node = node.netmap.self_node
            assert self_node.name.startswith("py.")
            assert self_node.machine_authorized
            assert [address[:7] for address in self_node.addresses] == ["100.64.", "fd7a:11"]
            assert 900 in (node.netmap.derp_map.regions or {})
            assert node.netmap.packet_filters
            assert node.netmap.domain
            await hs.wait_node("py")
        # Once is enough: the same keys, and a key that is spent.
        for spent in (key, None):
            async with running(hs, auth_key=spent, store=store) as node:
                await node.until_running()
                assert node.netmap.self_node.stable_id == self_node.stable_id
                assert node.netmap.self_node.addresses == self_node.addresses


async def test_joining_is_quick(hs: Headscale) -> None:
    key = await hs.auth_key()
    cold, warm = [], []
    for number in range(5):
        store = MemoryStore()
        for times in (cold, warm):
            async with running(hs, auth_key=key, name=f"quick{number}", store=store) as node:
                times.append(await node.until_running())
    print(f"\nregistered and netmap in hand: new {sorted(cold)[2]:.3f} s, warm {sorted(warm)[2]:.3f} s")
    assert sorted(cold)[2] < 0.5
    assert sorted(warm)[2] < 0.3


async def test_a_wrong_key_is_refused_with_the_servers_words(hs: Headscale) -> None:
    async with running(hs, auth_key="hskey-auth-" + "x" * 12 + "-" + "y" * 64) as node:
        await node.until(lambda: node.state == "failed")
        latest = node.bus.latest(ControlStateChanged)
        assert latest is not None
        assert isinstance(latest.error, AuthKeyRejected)
        assert "y" * 20 not in repr(latest)


async def test_a_spent_key_is_refused_for_a_second_node(hs: Headscale) -> None:
    key = await hs.auth_key(reusable=False)
    async with running(hs, auth_key=key) as node:
        await node.until_running()
    async with running(hs, auth_key=key, name="second") as other:
        await other.until(lambda: other.state == "failed")


async def test_a_person_logs_it_in(hs: Headscale) -> None:
    async with running(hs) as node:
        await node.until(lambda: node.state == "needs_login")
        latest = node.bus.latest(ControlStateChanged)
        assert latest is not None
        assert latest.url.startswith(hs.url)
        await hs.register(latest.url)
        await node.until_running()


async def test_an_expired_key_is_renewed_and_the_node_keeps_its_place(hs: Headscale) -> None:
    async with running(hs, auth_key=await hs.auth_key()) as node:
        await node.until_running()
        before = node.netmap.self_node
        await hs.expire("py")
        await node.until(lambda: node.state == "expired")
        await node.control.login()
        await node.until(lambda: node.state == "running" and node.netmap.self_node.key != before.key)
        after = node.netmap.self_node
        assert (after.id, after.addresses, after.expired) == (before.id, before.addresses, False)
        changed = node.bus.latest(NodeKeyChanged)
        assert changed is not None
        assert changed.key.public == after.key
        assert node.control.saved.state.old_node_key is not None
        assert node.control.saved.state.old_node_key.public == before.key


async def test_login_again_keeps_the_node(hs: Headscale) -> None:
    async with running(hs, auth_key=await hs.auth_key()) as node:
        await node.until_running()
        before = node.netmap.self_node
        await node.control.login()
        await node.until(lambda: node.netmap.self_node.key != before.key)
        assert node.netmap.self_node.id == before.id


async def test_logout_expires_the_node_and_login_brings_it_back(hs: Headscale) -> None:
    async with running(hs, auth_key=await hs.auth_key()) as node:
        await node.until_running()
        before = node.netmap.self_node
        await node.control.logout()
        assert node.state == "logged_out"
        assert (await hs.node("py"))["expiry"] is not None
        await node.control.login()
        await node.until_running()
        assert node.netmap.self_node.id == before.id
        assert node.netmap.self_node.key != before.key


async def test_an_ephemeral_node_vanishes_when_it_leaves(hs: Headscale) -> None:
    async with running(hs, auth_key=await hs.auth_key(ephemeral=True), name="brief", ephemeral=True) as node:
        await node.until_running()
        assert any(entry["name"] == "brief" for entry in await hs.nodes())
    assert not any(entry["name"] == "brief" for entry in await hs.nodes())


async def test_requested_tags_are_refused_when_an_auth_key_admits_none(hs: Headscale) -> None:
    await hs.set_policy(
        {"tagOwners": {"tag:ci": ["alice@"]}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}
    )
    async with running(hs, auth_key=await hs.auth_key(reusable=False), tags=("tag:ci",)) as node:
        await node.until(lambda: node.state == "failed")
        latest = node.bus.latest(ControlStateChanged)
        assert latest is not None
        assert "drop tags=" in str(latest.error).lower()
    async with running(hs, auth_key=await hs.auth_key(tags=["tag:ci"]), name="tagged") as node:
        await node.until_running()
        assert node.netmap.self_node.tags == ("tag:ci",)


async def test_every_change_arrives_as_a_delta(hs: Headscale, db: TsnetPeer) -> None:
    async with running(hs, auth_key=await hs.auth_key()) as node:
        await node.until_running()
        await node.until(lambda: "db" in node.peer_names())
        await hs.rename("db", "database")
        await node.until(lambda: "database" in node.peer_names())
        await hs.set_policy(
            {"tagOwners": {"tag:x": ["alice@"]}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]}
        )
        await node.until(
            lambda: [r.dst_ports[0].ports.first for r in node.netmap.packet_filters if r.dst_ports] == [22]
        )
        hs.set_extra_records([{"name": "grafana.rig.test", "type": "A", "value": "100.64.0.9"}])
        await node.until(lambda: any(r.name == "grafana.rig.test" for r in node.netmap.dns.extra_records))
        await hs.set_policy({"tagOwners": {"tag:x": ["alice@"]}})
        await hs.tag("database", ["tag:x"])
        await node.until(lambda: any(p.tags == ("tag:x",) for p in node.netmap.peers.values()))
        await hs.rename("py", "snake")
        await node.until(lambda: node.netmap.self_node.name.startswith("snake."))
        await hs.delete("database")
        await node.until(lambda: "database" not in node.peer_names())


async def test_what_we_report_reaches_the_server_and_our_routes_come_back(hs: Headscale) -> None:
    async with running(hs, auth_key=await hs.auth_key()) as node:
        await node.until_running()
        node.bus.publish(EndpointsChanged((("192.0.2.7:41641", 2), ("10.9.8.7:41641", 1))))
        node.bus.publish(NetInfoChanged(900, {"900-v4": 0.004}, working_udp=True))
        node.bus.publish(PreferencesChanged(Preferences("py", advertise_routes=("10.44.0.0/24",))))
        async with running(hs, auth_key=await hs.auth_key(), name="watcher") as watcher:
            await watcher.until_running()
            await watcher.until(lambda: any(p.home_derp == 900 for p in watcher.netmap.peers.values()))
            (peer,) = watcher.netmap.peers.values()
            assert set(peer.endpoints) == {"192.0.2.7:41641", "10.9.8.7:41641"}
            assert peer.hostinfo.routable_ips == ("10.44.0.0/24",)
            assert not peer.disco_key.is_zero
            await hs.approve_routes("py", ["10.44.0.0/24"])
            await watcher.until(
                lambda: any("10.44.0.0/24" in (p.allowed_ips or ()) for p in watcher.netmap.peers.values())
            )


@pytest.mark.skipif(HEADSCALE == "0.28.0", reason="Headscale 0.28 has no debug ping")
async def test_a_ping_request_is_answered(hs: Headscale) -> None:
    async with running(hs, auth_key=await hs.auth_key()) as node:
        await node.until_running()
        answer = await hs.debug_ping("py")
        assert "responded in" in str(answer)


async def test_control_is_asked_over_the_live_connection(hs: Headscale) -> None:
    async with running(hs, auth_key=await hs.auth_key()) as node:
        await node.until_running()
        request = node.control.report.map_request(node.control.machine, stream=False)
        await node.control.ask("POST", "/machine/map", encode_json(request))  # an update is heard
        with pytest.raises(RequestRefused) as refusal:
            await node.control.ask("GET", "/machine/whoami")
        assert refusal.value.status == 501
        with pytest.raises(RequestRefused) as refusal:
            await node.control.ask("GET", "/machine/tka/init/begin", b"{}")
        assert refusal.value.status == 404


async def test_what_we_offer_is_told_to_peers(hs: Headscale) -> None:
    key = await hs.auth_key()
    async with running(hs, auth_key=key) as node, running(hs, auth_key=key, name="watcher") as watcher:
        await node.until_running()
        await watcher.until_running()
        offer(node.bus, "peerapi", Offer(services=(Service(proto="peerapi4", port=41234),)))
        await watcher.until(
            lambda: any(
                service.proto == "peerapi4" and service.port == 41234
                for peer in watcher.netmap.peers.values()
                for service in peer.hostinfo.services
            )
        )


async def test_the_server_restarts_and_we_are_back(hs: Headscale) -> None:
    async with running(hs, auth_key=await hs.auth_key(reusable=False)) as node:
        await node.until_running()
        before = node.netmap.self_node
        await hs.kill()
        await node.until(lambda: node.state == "offline")
        assert node.netmap.self_node == before
        await hs.start()
        took = await node.until_running(40.0)
        assert took < 30.0
        assert node.netmap.self_node.id == before.id


async def test_a_fresh_database_and_noise_key_mean_a_fresh_registration(hs: Headscale) -> None:
    key = await hs.auth_key()
    async with running(hs, auth_key=key) as node:
        await node.until_running()
        await hs.kill()
        await node.until(lambda: node.state == "offline")
        for name in ("noise.key", "db.sqlite", "db.sqlite-wal", "db.sqlite-shm"):
            (hs.folder / name).unlink(missing_ok=True)
        hs._token, hs._users = "", {}
        await hs.start()
        # The old auth key is unknown to the new database.
        await node.until(lambda: node.state == "failed", 40.0)
        object.__setattr__(node.control.config, "auth_key", await hs.auth_key())
        await node.control.login()
        await node.until_running()
