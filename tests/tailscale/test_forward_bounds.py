"""What a router bears: floods, callers and hosts that misbehave or vanish, and pings; and what is left afterwards."""

from __future__ import annotations

import tracemalloc

import pytest
import trio
from tailnet_scripts import held_by, until
from test_exit_node import own_of
from test_forward import echo, echoing, exchange, inside
from trio.testing import MockClock

from tailscale import ConnectionRefused, Device, ForwardLimits, NoRoute
from tailscale.testing import Tailnet
from tailscale.testing.lans import VirtualLan
from tailscale.testing.network import VirtualHost
from ts_base.ip import parse_address
from ts_base.ip_headers import SYN, ip_packet
from ts_netstack.wire import tcp_packet, udp_payload

LAN = "192.168.7.0/24"
SITE, VIA = "fd7a:115c:a1e0:b1a:0:7:c0a8:700/120", "fd7a:115c:a1e0:b1a:0:7:c0a8:7"


async def routed(net: Tailnet, **options: object) -> tuple[Device, Device, VirtualLan, VirtualHost]:
    """A client, a router, the network behind it and a host in that."""
    lan = net.lan(LAN)
    host = lan.host("printer")
    client = await net.device("client")
    return client, await net.router("router", lan, **options), lan, host


def send_raw(sender: Device, receiver: Device, packets: list[bytes]) -> None:
    """Whole packets, sealed and sent, whatever routes and filters say."""
    now = trio.current_time()
    inside(sender).endpoint.send([(receiver.node.id, packets)], now)
    inside(sender).dataplane.flush(now)


# Floods


async def test_two_thousand_syns_into_a_black_hole_leave_others_alone(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, lan, host = await routed(net)
        hostile, hole = await net.device("hostile"), lan.host("hole")
        net.block("router", "hole")
        tasks = held_by(router)["tasks"]
        async with echoing(host, 7), await client.tcp_connect(host.address, 7) as stream:
            target, source = parse_address(hole.address), own_of(hostile, bytes(4))
            alone = await rate(stream)
            for burst in range(20):
                send_raw(
                    hostile,
                    router,
                    [tcp_packet((source, 1000 + burst * 100 + n), (target, 80), 7, 0, SYN, 65535) for n in range(100)],
                )
                await trio.sleep(0.05)
            assert router.forwarding.dials == 256
            assert router.status().drops["tcp.knocks_share_full"] == 2000 - 256
            assert await rate(stream) >= 0.9 * alone
            assert await exchange(await client.tcp_connect(host.address, 7), b"and new ones") == b"and new ones"
            await trio.sleep(12)
            assert router.forwarding.dials == 0
            assert router.status().drops["forward.timed_out"] == 256
        await until(lambda: router.forwarding.flows == 0)
        await until(lambda: held_by(router)["tasks"] == tasks)
        assert inside(router).stack.forwarder.statistics() == (0, 0, 0, 0)


async def rate(stream: trio.abc.Stream) -> float:
    """Bytes a second, there and back."""
    began = trio.current_time()
    for _ in range(50):
        await stream.send_all(bytes(10_000))
        left = 10_000
        while left:
            left -= len(await stream.receive_some(left))
        await trio.sleep(0.001)
    return 500_000 / (trio.current_time() - began)


@pytest.mark.slow
async def test_ten_thousand_udp_flows_are_bounded_and_leave_nothing(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, _, host = await routed(net)
        target, source = parse_address(host.address), own_of(client, bytes(4))
        tasks, sockets = held_by(router)["tasks"], len(net.host("router").udp)
        for burst in range(101):
            if burst == 1:  # what is made once is made
                tracemalloc.start()
                before = tracemalloc.get_traced_memory()[0]
            datagrams = [udp_payload((source, 1 + burst * 100 + n), (target, 9), b"?") for n in range(100)]
            send_raw(client, router, [ip_packet(source, target, 17, one) for one in datagrams])
            await trio.sleep(0.02)
            assert router.forwarding.udp <= 512
            assert len(net.host("router").udp) <= sockets + 512
        await trio.sleep(130)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert (router.forwarding.udp, len(net.host("router").udp)) == (0, sockets)
        assert held_by(router)["tasks"] == tasks
        assert grown < 2 << 20


async def test_nobody_hears_what_he_did_not_ask_for(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, lan, host = await routed(net)
        stranger = lan.host("stranger").bind_udp(53)
        server = host.bind_udp(53)
        async with await client.udp() as socket:
            await socket.send_to(b"question", (host.address, 53))
            [(flow, [data])] = await server.recv_many()
            assert data == b"question"
            stranger.send_many([(flow, [b"not asked for"])])
            server.send_many([(flow, [b"answer"])])
            assert await socket.receive() == b"answer"
        # In the name of somebody else, whom the answer would hit: no datagram leaves the router.
        victim = await net.device("victim")
        spoofed = udp_payload((own_of(victim, bytes(4)), 53), (parse_address(host.address), 53), b"reflect me")
        send_raw(client, router, [ip_packet(own_of(victim, bytes(4)), parse_address(host.address), 17, spoofed)])
        with trio.move_on_after(5) as waiting:
            await server.recv_many()
        assert waiting.cancelled_caught
        assert router.status().drops["filter.not_owner"] >= 1


# Callers and hosts that misbehave


async def test_a_caller_that_stops_asking_ends_the_dial(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, _, host = await routed(net, forward=ForwardLimits(dial_timeout=1000))
        net.block("router", "printer")
        with trio.move_on_after(3):
            await client.tcp_connect(host.address, 80)
        assert router.forwarding.dials == 1
        await trio.sleep(35)
        assert router.forwarding.dials == 0
        assert router.forwarding.refused == {"forward.caller_gone": 1}


async def test_a_caller_that_died_is_found_out(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, _, host = await routed(net)
        listener = host.listen_tcp(80)
        stream = await client.tcp_connect(host.address, 80)
        far = await listener.accept()
        for other in ("router", "relay"):
            net.block("client", other)
        await trio.sleep(60 + 15 * 9 + 15)
        assert router.forwarding.tcp == 0
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()
            await far.send_all(b"anybody?")
        stream.abort()


async def test_a_host_that_never_reads_holds_its_caller_back_and_nobody_else(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, _, host = await routed(net)
        deaf = host.listen_tcp(80)
        async with echoing(host, 7), await client.tcp_connect(host.address, 80) as stream:
            far = await deaf.accept()
            sent = 0
            with trio.move_on_after(5):
                while True:
                    await stream.send_all(bytes(64 << 10))
                    sent += 64 << 10
            assert sent < 32 << 20
            assert router.forwarding.bytes_out < 2 << 20
            assert await exchange(await client.tcp_connect(host.address, 7), b"others") == b"others"
            stream.abort()
            await until(lambda: router.forwarding.tcp == 0)
            far.reset()


async def test_a_closed_udp_port_is_a_refusal_for_who_asks(autojump_clock: MockClock) -> None:
    """The virtual network tells nobody of closed ports; that a real one does is shown in tests/interop."""
    async with Tailnet() as net:
        client, router, _, host = await routed(net)
        async with await client.udp() as socket:
            await socket.connect((host.address, 9))
            await socket.send(b"?")
            await until(lambda: router.forwarding.udp)
            [flow] = inside(router).stack.forwarder.flows.values()
            inside(router).stack.forwarder.report_refusal(flow, trio.current_time())
            inside(router).dataplane.kick()
            with pytest.raises(ConnectionRefused):
                await socket.receive()


# Pings and sites


async def test_pings_through_a_router_are_answered_by_the_host_or_not_at_all(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, _, host = await routed(net)
        assert (await client.ping(host.address, "icmp", 1000)).latency >= 0
        assert host.pings == 1
        with pytest.raises(TimeoutError):
            await client.ping("192.168.7.99", "icmp", timeout=4)
        net.host("router").may_ping = False
        with pytest.raises(TimeoutError):
            await client.ping(host.address, "icmp", timeout=4)
        [warning] = router.health
        assert (warning.code, "ping_group_range" in warning.remedy) == ("router-cannot-ping", True)
        assert router.forwarding.refused["forward.cannot_ping"] >= 1
        net.host("router").may_ping = True
        await client.ping(host.address, "icmp")
        assert not router.health


async def test_a_site_behind_a_4via6_route(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        lan = net.lan(LAN)
        host = lan.host("printer", "192.168.7.9")
        client, router = await net.device("client"), await net.device("router", advertise_routes=[SITE])
        lan.admit(net.host("router"))
        net.approve_routes(router, SITE)
        await until(lambda: router.forwarding.approved and inside(client).reach.routes_to(parse_address(f"{VIA}09")))
        async with echoing(host, 7):
            assert await exchange(await client.tcp_connect(f"{VIA}09", 7), b"hello") == b"hello"
            async with await client.udp() as socket:
                await socket.send_to(b"datagram", (f"{VIA}09", 7))
                assert await socket.receive_from() == (b"datagram", (f"{VIA}09", 7))
        assert (await client.ping(f"{VIA}09", "icmp")).latency >= 0
        with pytest.raises((NoRoute, ConnectionRefused)):
            await client.tcp_connect(f"{VIA}0a", 7, timeout=5)


async def test_a_limit_that_is_none_is_said_at_once() -> None:
    for wrong in ({"dials": 0}, {"flows": 1.5}, {"dial_timeout": -1}, {"pings": True}, {"flow_idle": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} of ForwardLimits"):
            ForwardLimits(**wrong)  # type: ignore[arg-type]


async def test_descriptors_that_the_system_does_not_give_are_not_counted_on(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        lan = net.lan(LAN)
        host, machine = lan.host("printer"), net.host("router")
        machine.sockets = 64
        client, router = await net.device("client"), await net.router("router", lan)
        streams = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [host.listen_tcp(7)])
            for _ in range(8):
                streams.append(await client.tcp_connect(host.address, 7))  # noqa: PERF401 - one after the other
            with trio.move_on_after(5) as waiting:
                await client.tcp_connect(host.address, 7)
            assert waiting.cancelled_caught, "half of a quarter is one peer's share"
            assert router.forwarding.tcp == 8
            for stream in streams:
                await stream.aclose()
            nursery.cancel_scope.cancel()
