"""A Device that is an exit node: offered, approved, used, taken back; and what no hostile peer reaches through it."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from tailnet_scripts import until
from test_forward import echoing, exchange, inside
from trio.testing import MockClock

from tailscale import Device, NoRoute, TailscaleError
from tailscale.testing import Tailnet
from tailscale.testing.network import VirtualHost
from tailscale.testing.pipes import VirtualListener
from ts_base.ip_headers import SYN, ip_packet
from ts_netstack import icmp
from ts_netstack.wire import tcp_packet, udp_payload

EXITS = ("0.0.0.0/0", "::/0")
PUBLIC = "203.0.113.5"


async def exit_and_client(net: Tailnet) -> tuple[Device, Device]:
    """An approved exit node, and a peer that may use it."""
    net.policy({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}], "autoApprovers": {"exitNode": ["*"]}})
    client, router = await net.device("client"), await net.device("exit", advertise_exit_node=True)
    net.approve_routes(router, *EXITS)
    await until(lambda: router.forwarding.is_exit_node and client.exit_nodes)
    return client, router


async def test_an_exit_node_carries_what_chooses_it(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router = await exit_and_client(net)
        web = net.host("web", PUBLIC)
        async with echoing(web, 80):
            await client.set(exit_node="exit")
            await until(lambda: inside(client).reach.routes_to(ipaddress.ip_address(PUBLIC).packed))
            assert await exchange(await client.tcp_connect(PUBLIC, 80), b"hello") == b"hello"
            async with await client.udp() as socket:
                await socket.send_to(b"question", (PUBLIC, 80))
                assert await socket.receive() == b"question"
            assert (await client.ping(PUBLIC, "icmp")).latency >= 0
        now = router.forwarding
        assert (now.advertised, now.approved, now.missing) == (EXITS, EXITS, ())
        assert (now.bytes_in, now.bytes_out, now.bytes, now.refused) == (13, 13, 26, {})
        assert now.udp == 1
        assert now.to_dict()["advertised"] == list(EXITS)


async def test_an_exit_node_is_offered_and_taken_back_while_it_runs(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router = await net.device("client"), await net.device("exit")
        assert router.forwarding.advertised == ()
        await router.set(advertise_exit_node=True)
        assert router.preferences.offered_routes == EXITS
        warning = (await until(lambda: router.health))[0]
        assert warning.code == "routes-not-approved"
        assert router.forwarding.missing == EXITS
        net.approve_routes(router, *EXITS)
        await until(lambda: client.exit_nodes and not router.health)
        web = net.host("web", PUBLIC)
        async with echoing(web, 80):
            stream = await client.tcp_connect(PUBLIC, 80, via="exit")
            await router.set(advertise_exit_node=False)
            with trio.fail_after(10), pytest.raises((ConnectionResetError, NoRoute)):
                await stream.receive_some()
            await stream.aclose()
        assert router.forwarding.approved == ()
        await until(lambda: not client.exit_nodes)


async def test_a_device_is_an_exit_node_or_uses_one(autojump_clock: MockClock) -> None:
    with pytest.raises(ValueError, match="uses an exit node or is one"):
        Device("both", advertise_exit_node=True, exit_node="other")
    async with Tailnet() as net:
        router = await net.device("exit", advertise_exit_node=True)
        with pytest.raises(ValueError, match="uses an exit node or is one"):
            await router.set(exit_node="other")
        await router.set(exit_node="other", advertise_exit_node=False)


async def test_control_approves_by_policy_what_it_says_there(autojump_clock: MockClock) -> None:
    policy = {
        "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
        "tagOwners": {"tag:router": []},
        "autoApprovers": {"routes": {"192.168.0.0/16": ["tag:router"]}, "exitNode": ["tag:router"]},
    }
    async with Tailnet(policy=policy) as net:
        key = net.auth_key(tags=["tag:router"])
        lan = ["192.168.7.0/24", "10.0.0.0/24"]
        router = await net.device("router", auth_key=key, advertise_routes=lan, advertise_exit_node=True)
        await until(lambda: len(router.forwarding.approved) == 3)
        assert router.forwarding.missing == ("10.0.0.0/24",)


async def test_a_network_that_the_machine_joins_is_closed_at_once(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, _ = await exit_and_client(net)
        near = net.host("near", "203.0.113.77")
        async with echoing(near, 80):
            stream = await client.tcp_connect(near.address, 80, via="exit")
            net.host("exit").networks = ("203.0.113.0/24",)
            with trio.fail_after(11), pytest.raises(ConnectionResetError):
                await stream.receive_some()
            await stream.aclose()
            with pytest.raises(TailscaleError):
                await client.tcp_connect(near.address, 80, via="exit", timeout=5)
            net.host("exit").networks = ()
            await trio.sleep(11)
            assert await exchange(await client.tcp_connect(near.address, 80, via="exit"), b"again") == b"again"


async def test_nothing_is_forwarded_with_shields_up(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router = await exit_and_client(net)
        web = net.host("web", PUBLIC)
        async with echoing(web, 80):
            await router.set(shields_up=True)
            await until(lambda: inside(router).dataplane.engine.tables.shields_up)
            began = trio.current_time()
            with pytest.raises(TailscaleError, match="shields"):
                await client.tcp_connect(PUBLIC, 80, via="exit")
            assert trio.current_time() - began < 2, "it was told"
            await router.set(shields_up=False)
            await until(lambda: not inside(router).dataplane.engine.tables.shields_up)
            assert await exchange(await client.tcp_connect(PUBLIC, 80, via="exit"), b"hello") == b"hello"


# A hostile peer. It has no routing table and no manners: whole packets, sealed and sent.

FORBIDDEN = [
    *("127.0.0.1", "127.0.0.2", "169.254.169.254", "169.254.7.7", "168.63.129.16", "100.64.0.99", "100.100.100.100"),
    *("0.0.0.0", "0.0.0.1", "255.255.255.255", "224.0.0.251", "240.0.0.1", "10.0.0.9", "172.16.0.9", "192.168.7.9"),
    *("198.51.100.1", "198.51.100.9", "::1", "::", "fe80::9", "ff02::1", "fd00::9", "fd7a:115c:a1e0::99"),
    *("::ffff:127.0.0.1", "::ffff:192.168.7.9", "::127.0.0.1", "::ffff:0:127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::c0a8:709", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::1"),
    *("2002:c0a8:709::1", "2001:0:7f00:1::1", "2001:0:808:808::80ff:fffe", "2001:db8::5efe:127.0.0.1"),
    *("fd7a:115c:a1e0:b1a:0:7:7f00:1", "fd7a:115c:a1e0:b1a:0:7:a9fe:a9fe", "fd7a:115c:a1e0:b1a:0:7:0:0"),
    *("fd7a:115c:a1e0:b1a:0:7:6440:63", "fd7a:115c:a1e0:b1a:0:7:ffff:ffff", "fd7a:115c:a1e0:b1a:0:7:e000:1"),
    "fd7a:115c:a1e0:b1a:0:8:a00:9",  # another site than ours
]


class Listening:
    """A host of the virtual internet that notes whatever reaches it."""

    def __init__(self, host: VirtualHost) -> None:
        self.host = host
        self.tcp: VirtualListener = host.listen_tcp(80)
        self.udp = host.bind_udp(80)
        self.heard: set[str] = set()

    async def listen(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._note, "tcp", self.tcp.accept)
            nursery.start_soon(self._note, "udp", self.udp.recv_many)

    async def _note(self, kind: str, wait: Callable[[], Awaitable[object]]) -> None:
        while True:
            await wait()
            self.heard.add(kind)


def packets_to(source: bytes, target: bytes, port: int) -> Iterator[bytes]:
    """A SYN, a datagram and an echo request."""
    yield tcp_packet((source, port), (target, 80), 7, 0, SYN, 65535)
    yield ip_packet(source, target, 17, udp_payload((source, port), (target, 80), b"?"))
    yield icmp.echo_request(source, target, port, b"?")


def own_of(device: Device, target: bytes) -> bytes:
    return ipaddress.ip_address(device.ipv4 if len(target) == 4 else device.ipv6).packed  # type: ignore[arg-type]


@pytest.mark.parametrize("is_filter_there", [True, False], ids=["through the filter", "past the filter"])
async def test_a_hostile_peer_reaches_nothing_that_is_guarded(is_filter_there: bool, autojump_clock: MockClock) -> None:
    """The second time its packets are laid where the filter would have put them: what is left is the guard."""
    async with Tailnet() as net:
        client, router = await exit_and_client(net)
        net.host("exit").networks = ("198.51.100.0/24", "198.51.100.1/32", "127.0.0.0/8")
        await router.set(advertise_routes=["fd7a:115c:a1e0:b1a:0:7::/96"])
        net.approve_routes(router, *EXITS, "fd7a:115c:a1e0:b1a:0:7::/96")
        await until(lambda: len(router.forwarding.approved) == 3)
        await trio.sleep(11)  # and its interfaces have been looked at
        places = {text: Listening(net.host(text, text)) for text in [*FORBIDDEN, PUBLIC] if text not in net_taken(net)}

        def send(text: str, port: int) -> None:
            target = ipaddress.ip_address(text).packed
            packets = list(packets_to(own_of(client, target), target, port))
            now = trio.current_time()
            if is_filter_there:
                hostile = inside(client)
                hostile.endpoint.send([(router.node.id, packets)], now)
                hostile.dataplane.flush(now)
            else:
                inside(router).stack.receive([((client.node.id, True), packets)], now)
                inside(router).dataplane.kick()

        async with trio.open_nursery() as nursery:
            for place in places.values():
                nursery.start_soon(place.listen)
            for port, text in enumerate(places, 1000):
                send(text, port)
                await trio.sleep(0.2)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        assert {text: place.heard for text, place in places.items() if place.heard} == {PUBLIC: {"tcp", "udp"}}
        assert [text for text, place in places.items() if place.host.pings] == [PUBLIC]
        assert router.forwarding.bytes_out == 1, "one datagram of one byte"


def net_taken(net: Tailnet) -> set[str]:
    """Addresses that hosts of the virtual internet have already."""
    return {net.host(name).address for name in ("exit", "client")}
