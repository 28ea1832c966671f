"""Metrics: every one of them moves, foreign parsers read them, and they say what happened."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from pathlib import Path

import pytest
import trio
import trio.testing
from funnel_scripts import NAME, knock, post
from hello_scripts import hello
from httpx import AsyncClient as Client
from mesh_scripts import break_streams, next_of
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_strictly
from prometheus_client.parser import text_string_to_metric_families as parse
from tailnet_scripts import beside, echo_service, echoed, until
from trio.testing import MockClock

from tailscale import Device, TailscaleError, proxy, taildrop
from tailscale.ingress import ingress
from tailscale.mesh import Inbox, Mesh, MeshLimits, Offer
from tailscale.metrics import collector, exposition, serve_metrics
from tailscale.metrics.server import respond
from tailscale.metrics.table import INBOUND_REASONS, METRICS, NOT_SENT
from tailscale.metrics.text import text_of
from tailscale.peerapi.actor import PORT
from tailscale.serve import Serve
from tailscale.testing import Tailnet
from tailscale.testing.pipes import VirtualStream
from tailscale.testing.servers import REGION
from ts_control.wire import DERPMap

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]  # by name, then by labels
# Of rooms that have a test of their own.
OF_MESHES = {metric.name for metric in METRICS if metric.name.startswith("pytailscale_mesh_")}
OF_CERTIFICATES = {metric.name for metric in METRICS if metric.name.startswith("pytailscale_certificate")}
OF_TAILDROP = {metric.name for metric in METRICS if metric.name.startswith("pytailscale_taildrop_")}
OF_SERVE = {metric.name for metric in METRICS if metric.name.startswith("pytailscale_serve_")}
OF_SSH = {
    metric.name for metric in METRICS if metric.name.startswith("pytailscale_ssh_")
}  # and these one in test_ssh.py
NAMES_OF_UPLINKS = (
    *("pytailscale_uplink_", "pytailscale_path_s", "pytailscale_path_g", "pytailscale_path_r", "pytailscale_path_l"),
    *("pytailscale_duplicates_", "pytailscale_replay_", "pytailscale_tcp_retransmits_"),
)
OF_UPLINKS = {metric.name for metric in METRICS if metric.name.startswith(NAMES_OF_UPLINKS)}
OF_TUN = {metric.name for metric in METRICS if metric.name.startswith("pytailscale_tun_")}  # in test_tun_device.py
# These in test_hard_nats_devices.py and test_large_streams.py: they want routers and wide links.
OF_PATHS = {
    metric.name for metric in METRICS if metric.name.startswith(("pytailscale_hard_nat_", "pytailscale_path_mtu_"))
}
OF_STRIPES = {"pytailscale_stripe_fallbacks_total"}  # test_striping.py has one
OF_ELSEWHERE = (
    OF_MESHES | OF_TAILDROP | OF_SERVE | OF_SSH | OF_TUN | OF_CERTIFICATES | OF_PATHS | OF_UPLINKS | OF_STRIPES
)
DENIED = {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}]}


def samples(text: str) -> Samples:
    """A foreign reading of ours."""
    found: Samples = {metric.name: {} for metric in METRICS}
    for family in parse(text):
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(device: Device, name: str, **labels: str) -> float:
    return samples(exposition(device, peers=True))[name].get(tuple(sorted(labels.items())), math.nan)


async def echo(stream: VirtualStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)
    await stream.send_eof()


class Watched:
    """What was seen of one device's metrics at several moments."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._moments: list[Samples] = []

    def look(self) -> None:
        self._moments.append(samples(exposition(self._device, peers=True)))

    def constant(self) -> set[str]:
        """Those that said the same at all moments."""
        first = self._moments[0]
        return {name for name in first if all(moment[name] == first[name] for moment in self._moments)}


async def live_through_everything(net: Tailnet, watched: Watched, router: Device, client: Device) -> None:
    """Traffic by every path, sockets, forwarding, drops, trouble with relay and control: a look after each."""
    look = watched.look
    look()
    following = router.events()
    async with echo_service(router, 80), await router.udp():
        assert await echoed(client, router.ipv4 or "", 80, bytes(100_000)) == bytes(100_000)
        look()
    lock = net.lock()
    async with net.device("stranger"):
        await until(lambda: router.lock.hidden_peers)
        look()
    lock.disable()
    await until(lambda: not router.lock.enabled)
    await client.ping(router.hostname, "peerapi")
    await router.dns_query(client.hostname)
    async with await client.tcp_connect(router.ipv4, PORT) as stream:
        await stream.send_all(b"HEAD / HTTP/1.1\r\nHost: peer\r\n\r\n")
        await stream.receive_some()
        look()
    with router.answer_funnel(NAME, 8443, echo, relays=[client.hostname]):
        async with knock(client, router, post(target=f"{NAME}:8443")):
            look()
    door = net.host("gatehouse").listen_tcp(443)
    with client.answer_funnel(NAME, 443, echo, relays=[router.hostname]):
        async with beside(functools.partial(ingress, router, door, client.hostname)):
            async with await net.host("visitor").open_tcp(*door.address) as stream:
                await stream.send_all(hello(NAME.encode()))
                await stream.receive_some()
                look()
    behind = net.host("printer")
    net.approve_routes(router, f"{behind.address}/32")
    await until(lambda: any(f"{behind.address}/32" in peer.routes for peer in client.peers.values()))
    async with beside(functools.partial(trio.serve_listeners, echo, [behind.listen_tcp(631)])):
        await until(lambda: router.node.routes)
        async with await client.tcp_connect(behind.address, 631) as stream:
            await stream.send_all(b"page")
            await stream.receive_some()
            look()
    await router.set(advertise_routes=[])
    look()
    async with trio.open_nursery() as nursery, echo_service(client, 7):
        await nursery.start(proxy.serve, router, "tailnet:1080")
        for target in ("client:7", "nobody:7"):
            async with await client.tcp_connect(router.hostname, 1080) as stream:
                await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
                answer = await stream.receive_some()
                if b" 200 " in answer:
                    await stream.send_all(b"through the proxy")
                    await stream.receive_some()
                look()
        nursery.cancel_scope.cancel()
    net.policy(DENIED)
    await trio.sleep(1)
    with pytest.raises(TailscaleError):
        await client.tcp_connect(router.hostname, 81, timeout=3)
    look()
    net.block_udp(client, router)
    net.rename(router, "renamed")
    async with echo_service(router, 80):
        await until(lambda: router.hostname == "renamed" and "renamed" in client.peers)
        await echoed(client, "renamed", 80, bytes(10_000), 30)
        look()
        await trouble_with_the_relay(net, watched, router, client)
    net.expire(router)
    await until(lambda: router.status().state != "running")
    look()
    del following


async def trouble_with_the_relay(net: Tailnet, watched: Watched, router: Device, client: Device) -> None:
    stream = await client.tcp_connect(router.hostname, 80)
    net.block(router, "relay")
    async with await router.udp() as socket:
        for _ in range(100):
            await socket.send_to(bytes(60_000), (client.ipv4 or "", 9))
        watched.look()
    net.unblock(router, "relay")
    await net.relay.stop()
    net.remove(client)
    await until(lambda: router.health, 60)
    watched.look()
    stream.abort()
    await net.relay.start()
    listed = net.relay.derp_map().regions[REGION]
    net.control.set_derp_map(DERPMap(regions={REGION + 1: replace(listed, region_id=REGION + 1)}))
    await until(lambda: value(router, "tailscaled_home_derp_region_id") == REGION + 1, 600)
    watched.look()


async def test_no_metric_stays_constant(autojump_clock: MockClock) -> None:
    async with Tailnet(key_lifetime=7_200) as net:
        address = net.host("printer").address
        client, router = await net.device("client"), await net.device("router", advertise_routes=[address])
        watched = Watched(router)
        await live_through_everything(net, watched, router, client)
        assert watched.constant() == OF_ELSEWHERE
        assert value(router, "pytailscale_drops_total", reason="filter.no_rule") >= 1


async def test_no_metric_of_uplinks_stays_constant(autojump_clock: MockClock) -> None:
    async with Tailnet(latency=0.01) as net:
        machine = net.host("van", uplinks=["wlan0", "wwan0"])
        van, nas = await net.device("van", uplinks="all"), await net.device("nas")
        net.link("van%wwan0", nas, latency=0.03)
        watched = Watched(van)
        async with echo_service(nas, 80), await van.tcp_connect("nas", 80) as stream:
            watched.look()

            async def talk(seconds: int) -> None:
                for _ in range(10 * seconds):
                    await stream.send_all(bytes(1000))
                    await stream.receive_some()
                    await trio.sleep(0.1)
                watched.look()

            await talk(5)
            net.block_udp("van%wlan0", nas)
            await talk(5)
            net.unblock_udp("van%wlan0", nas)
            machine.set_up("wwan0", False)
            await talk(20)
        assert watched.constant() & OF_UPLINKS == {"pytailscale_replay_drops_total"}
        assert value(nas, "pytailscale_replay_drops_total") > 0  # of what came by both
        assert value(van, "pytailscale_path_rtt_seconds", uplink="wlan0") == pytest.approx(0.02, rel=0.2)
        assert value(van, "pytailscale_uplink_up", uplink="wlan0") == 1
        assert value(van, "pytailscale_path_switches_total", reason="silent") == 1


async def test_no_metric_of_a_mesh_stays_constant(tmp_path: Path) -> None:
    """Real time: files are read and written by threads, for which a mock clock does not wait."""
    (tmp_path / "file").write_bytes(bytes(100_000))
    async with Tailnet() as net, net.device("a") as a, net.device("b") as b:
        watched = Watched(a)

        def accept(offer: Offer) -> bool:
            watched.look()  # a transfer is under way
            return True

        inbox = Inbox(tmp_path / "in", accept=accept)
        async with Mesh(a, "notes", limits=MeshLimits(credit=2)) as ours:
            watched.look()
            async with Mesh(b, "notes", receive=inbox) as theirs, theirs.subscribe("chat", limit=1) as chat:
                peer = await ours.peer("b", timeout=10)
                async with trio.open_nursery() as nursery:
                    for other in ("b", "relay"):
                        net.block("a", other)
                    nursery.start_soon(peer.send, "chat", 0)
                    await trio.testing.wait_all_tasks_blocked()
                    break_streams(a)  # what was on its way is lost
                    for other in ("b", "relay"):
                        net.unblock("a", other)
                    for number in (1, 2):
                        nursery.start_soon(peer.send, "chat", number)
                        await trio.testing.wait_all_tasks_blocked()
                    await until(lambda: theirs.statistics().received == 2)
                    watched.look()
                    assert [(await next_of(chat)).data for _ in range(3)] == [0, 1, 2]
                await peer.push(tmp_path / "file")
                assert value(a, "pytailscale_mesh_file_bytes_total", direction="out") == 100_000
                assert value(b, "pytailscale_mesh_file_bytes_total", direction="in") == 100_000
                assert value(a, "pytailscale_mesh_messages_total", direction="out") >= 3
                assert value(a, "pytailscale_mesh_waits_total") == value(a, "pytailscale_mesh_resent_total") == 1
                watched.look()
        assert not watched.constant() & OF_MESHES


async def test_no_metric_of_taildrop_stays_constant(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    async with Tailnet() as net, net.device("a") as a, net.device("b") as b:
        watched = Watched(b)

        def accept(offer: taildrop.Offer) -> bool:
            watched.look()
            return bool(offer.size)

        watched.look()
        async with taildrop.Inbox(b, tmp_path / "in", accept) as inbox:
            await taildrop.send(a, "b", tmp_path / "file")
            watched.look()
            await anext(inbox)
            watched.look()
        assert value(a, "pytailscale_taildrop_file_bytes_total", direction="out") == 100_000
        assert not watched.constant() & OF_TAILDROP


async def test_no_metric_of_serve_stays_constant() -> None:
    async with Tailnet() as net, net.device("caller") as caller, net.device("web") as web:
        watched = Watched(web)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        place = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        serve = Serve(web).tcp(7, place)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, listeners)
            await nursery.start(serve.run)
            watched.look()
            async with await caller.tcp_connect("web", 7) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
                watched.look()
            serve.allow(users=["nobody"])
            async with await caller.tcp_connect("web", 7) as stream:
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
            watched.look()
            assert value(web, "pytailscale_serve_refused_total", port="7") == 1
            nursery.cancel_scope.cancel()
        assert not watched.constant() & OF_SERVE


async def test_both_foreign_parsers_read_what_we_write(autojump_clock: MockClock) -> None:
    async with Tailnet() as net, net.device("a") as a, net.device("b") as b, echo_service(b, 80):
        await echoed(a, "b", 80)
        status = a.status()
        plain = {family.name: family for family in parse(text_of(status, peers=True))}
        strict = {family.name: family for family in parse_strictly(text_of(status, peers=True, is_open=True))}
        assert plain.keys() == strict.keys()
        for metric in METRICS:
            family = strict[metric.name.removesuffix("_total")]
            assert (family.type, family.documentation) == (metric.kind, metric.help)
            assert all(tuple(sample.labels) == metric.labels for sample in family.samples)
            assert family.samples == plain[family.name].samples


async def test_single_peers_are_named_only_where_that_is_asked_for(autojump_clock: MockClock) -> None:
    async with Tailnet() as net, net.device("a") as a, net.device("somebody"):
        assert "somebody" not in exposition(a)
        assert value(a, "pytailscale_peers", presence="online") == 1
        labels = {"peer": "somebody.tailnet.test", "id": a.peers["somebody"].stable_id}
        assert value(a, "pytailscale_peer_online", **labels) == 1


async def test_wicked_names_break_no_line_and_command_no_terminal(autojump_clock: MockClock) -> None:
    wicked = 'x"} 1\n# EOF\x1b[2J\\'
    async with Tailnet() as net, net.device("a") as a, net.device("b"):
        (peer,) = a.status().peers
        evil = dataclasses.replace(peer, node=dataclasses.replace(peer.node, name=wicked))
        twin = dataclasses.replace(evil, node=dataclasses.replace(evil.node, stable_id="other"))
        status = dataclasses.replace(a.status(), peers=(evil, twin))
        text = text_of(status, peers=True, is_open=True)
        assert all(line.isprintable() for line in text.splitlines())
        (family,) = (one for one in parse_strictly(text) if one.name == "pytailscale_peer_online")
        assert [sample.labels["peer"] for sample in family.samples] == ['x"} 1?# EOF?[2J\\'] * 2


@pytest.mark.parametrize("path", ["direct_ipv4", "derp"])
async def test_bytes_by_path_are_those_of_a_counted_transfer(path: str, autojump_clock: MockClock) -> None:
    count, size = 1000, 1000
    sealed = 32 + -(-(28 + size) // 16) * 16  # of WireGuard, around an IPv4 and a UDP header
    async with Tailnet() as net, net.device("a") as a, net.device("b") as b, echo_service(b, 80):
        if path == "derp":
            net.block_udp(a, b)
        await echoed(a, "b", 80)
        await trio.sleep(1)
        sent, received = (
            functools.partial(value, a, "tailscaled_outbound_bytes_total", path=path),
            functools.partial(value, b, "tailscaled_inbound_bytes_total", path=path),
        )
        before = sent(), received()
        async with await a.udp() as socket:
            for _ in range(count):
                await socket.send_to(bytes(size), (b.ipv4 or "", 9))
            await trio.sleep(1)
        assert sent() - before[0] == pytest.approx(count * sealed, rel=0.03)
        assert received() - before[1] == pytest.approx(count * sealed, rel=0.03)


async def test_a_collector_tells_the_same_in_somebody_elses_registry(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        registry = CollectorRegistry()
        async with net.device("a") as a, net.device("b") as b, echo_service(b, 80):
            await echoed(a, "b", 80)
            registry.register(collector(a, peers=True))
            with pytest.raises(ValueError, match="Duplicated"):
                registry.register(collector(b, peers=True))
            assert samples(generate_latest(registry).decode()) == samples(exposition(a, peers=True))
        assert generate_latest(registry) == b"", "a device that is closed has nothing to tell"


async def test_without_prometheus_client_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    async with Tailnet(real=True) as net, net.device("a") as a:
        with pytest.raises(TailscaleError, match=r"pytailscale\[metrics\]"):
            collector(a)
        assert "pytailscale_info" in exposition(a)


async def test_the_server_answers_who_scrapes_and_who_keeps_alive() -> None:
    async with Tailnet(real=True) as net, net.device("a") as a, trio.open_nursery() as nursery, Client() as client:
        url = await nursery.start(serve_metrics, a, "127.0.0.1:0")
        plain = await client.get(f"{url}/metrics")
        assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert samples(plain.text)["pytailscale_running"] == {(): 1}
        strict = await client.get(f"{url}/metrics", headers={"accept": "application/openmetrics-text"})
        assert list(parse_strictly(strict.text))
        assert [(await client.get(url + path)).text for path in ("/healthz", "/readyz")] == ["alive\n", "ready\n"]
        assert (await client.head(f"{url}/metrics")).status_code == 200
        assert (await client.post(f"{url}/metrics")).status_code == 405
        assert (await client.get(f"{url}/favicon.ico")).status_code == 404
        misled = await client.get(f"{url}/metrics", headers={"host": "evil.example"})
        assert (misled.status_code, "pytailscale" in misled.text) == (403, False)
        nursery.cancel_scope.cancel()


async def test_a_device_that_cannot_be_used_is_alive_but_not_ready(autojump_clock: MockClock) -> None:
    async with Tailnet(key_lifetime=3_600) as net:
        async with net.device("a") as a:
            ask = functools.partial(respond, a, False, "GET")
            await net.control.stop()
            await until(lambda: a.status().state != "running")
            assert ask("/readyz", b"")[0] == 200, "peers are reached without control"
            await net.control.start()
            net.expire(a)
            await until(lambda: a.status().state == "expired", 60)
            assert ask("/healthz", b"")[0] == 200
            status, _, why = ask("/readyz", b"")
            assert (status, why.startswith("expired; ")) == (503, True)
        assert ask("/healthz", b"")[0] == ask("/metrics", b"")[0] == 503


def test_reasons_of_tailscaled_are_made_of_drops_that_exist() -> None:
    told = (Path(__file__).parents[2] / "docs" / "drops.md").read_text()
    for names in INBOUND_REASONS.values():
        assert all(f"| `{name}` |" in told for name in names)
    assert all(f"| `{start}" in told for start in NOT_SENT)
