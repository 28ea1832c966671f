"""A subnet router in user space: TCP and UDP to hosts behind a Device, and all that must not be reached through it."""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from tailnet_scripts import beside, held_by, until
from trio.testing import MockClock

from tailscale import ConnectionRefused, Device, ForwardLimits, NoRoute, TailscaleError, TcpStream
from tailscale._assembly import Runtime
from tailscale.runtime.forward_flows import Forwarding, word_for
from tailscale.runtime.messages import WarningsChanged
from tailscale.runtime.network import HostNetwork
from tailscale.testing import Tailnet
from tailscale.testing.network import VirtualHost
from tailscale.testing.pipes import VirtualStream
from ts_base.ip import parse_address
from ts_netstack.forwarder import ForwarderLimits

FLOW_IDLE = ForwarderLimits().flow_idle


async def echo(stream: VirtualStream) -> None:
    try:
        while data := await stream.receive_some():
            await stream.send_all(data)
        await stream.send_eof()
    except trio.BrokenResourceError:
        pass


@asynccontextmanager
async def echoing(host: VirtualHost, port: int) -> AsyncIterator[None]:
    """TCP and UDP come back from this port of a plain host."""
    udp = host.bind_udp(port)

    async def echo_datagrams() -> None:
        while True:
            udp.send_many(await udp.recv_many())

    listener = host.listen_tcp(port)
    async with beside(functools.partial(trio.serve_listeners, echo, [listener])), beside(echo_datagrams):
        yield


async def routed(net: Tailnet, **options: Any) -> tuple[Device, Device, VirtualHost]:
    """A client, a router, and a plain host behind it that the tailnet may reach."""
    behind = net.host("printer")
    client, router = (
        await net.device("client"),
        await net.device("router", advertise_routes=[behind.address], **options),
    )
    net.approve_routes(router, f"{behind.address}/32")
    await until(lambda: reaches(client, behind.address) and forwards(router, behind.address))
    return client, router, behind


def reaches(client: Device, address: str) -> bool:
    return any(f"{address}/32" in peer.routes for peer in client.peers.values())


def forwards(router: Device, address: str) -> bool:
    return inside(router).stack.forwarder.covers(parse_address(address))


def forwarding_of(router: Device) -> Forwarding:
    return inside(router).forwarding


def inside(device: Device) -> Runtime:
    return device._ready()


async def exchange(stream: TcpStream, text: bytes) -> bytes:
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, stream, text)
        return b"".join([piece async for piece in stream])


async def send_and_end(stream: TcpStream, text: bytes) -> None:
    await stream.send_all(text)
    await stream.send_eof()


# What is carried


async def test_a_host_behind_us_is_reached_by_tcp_both_ways(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, behind = await routed(net)
        text = bytes(range(256)) * 4096
        async with echoing(behind, 80):
            back = await exchange(await client.tcp_connect(behind.address, 80), text)
        assert hashlib.sha256(back).digest() == hashlib.sha256(text).digest()
        counted = forwarding_of(router).statistics()
        assert (counted.bytes_in, counted.bytes_out, counted.drops) == (1 << 20, 1 << 20, {})
        await until(lambda: forwarding_of(router).statistics().connections == 0)


async def test_a_host_behind_us_is_reached_by_udp(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, behind = await routed(net)
        async with echoing(behind, 53), await client.udp() as socket:
            for size in (0, 1, 1200):
                await socket.send_to(bytes(size), (behind.address, 53))
                assert await socket.receive_from() == (bytes(size), (behind.address, 53))
        counted = forwarding_of(router).statistics()
        assert (counted.flows, counted.bytes_in, counted.bytes_out) == (1, 1201, 1201)


async def test_a_flow_gives_its_socket_back_when_nothing_is_said(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, behind = await routed(net)
        ports = len(net.host("router").udp)
        async with echoing(behind, 53), await client.udp() as socket:
            await socket.send_to(b"x", (behind.address, 53))
            await socket.receive()
            assert len(net.host("router").udp) == ports + 1
            await trio.sleep(FLOW_IDLE + 10)
            assert len(net.host("router").udp) == ports
            assert forwarding_of(router).statistics().flows == 0
            await socket.send_to(b"again", (behind.address, 53))
            assert await socket.receive() == b"again"


async def test_one_direction_ends_while_the_other_lives_on(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, _, behind = await routed(net)
        listener = behind.listen_tcp(80)
        async with await client.tcp_connect(behind.address, 80) as near:
            far = await listener.accept()
            await near.send_eof()
            assert await far.receive_some() == b""
            await far.send_all(b"still here")
            assert await near.receive_some() == b"still here"


async def test_a_reset_behind_us_is_a_reset_for_the_caller(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, behind = await routed(net)
        listener = behind.listen_tcp(80)
        async with await client.tcp_connect(behind.address, 80) as near:
            (await listener.accept()).reset()
            with pytest.raises(ConnectionResetError):
                await near.receive_some()
        await until(lambda: forwarding_of(router).statistics().connections == 0)


async def test_a_reset_by_the_caller_arrives_behind_us(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, _, behind = await routed(net)
        listener = behind.listen_tcp(80)
        near = await client.tcp_connect(behind.address, 80)
        far = await listener.accept()
        near.abort()
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await far.receive_some()
            await far.send_all(b"x")


# What is refused


async def test_a_closed_port_behind_us_is_a_refusal(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with Tailnet() as net:
        client, router, behind = await routed(net)
        with caplog.at_level(logging.WARNING, "tailscale.forward"):
            for _ in range(3):
                with pytest.raises(ConnectionRefused):
                    await client.tcp_connect(behind.address, 81)
        assert router.status().drops["forward.refused"] == 3
        assert len([one for one in caplog.records if one.name == "tailscale.forward"]) == 1


async def test_a_host_that_is_not_there_is_unreachable(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router = await net.device("client"), await net.device("router", advertise_routes=["192.168.7.0/24"])
        net.approve_routes(router, "192.168.7.0/24")
        await until(lambda: forwards(router, "192.168.7.9") and client.peers["router"].routes)
        began = trio.current_time()
        with pytest.raises(TailscaleError):
            await client.tcp_connect("192.168.7.9", 80)
        assert trio.current_time() - began < 5, "it was told, and had not to wait"
        assert router.status().drops["forward.unreachable"] >= 1


async def test_a_host_that_does_not_answer_times_out_and_holds_nothing(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, behind = await routed(net)
        net.block("router", behind.name)
        began = trio.current_time()
        with pytest.raises(NoRoute):
            await client.tcp_connect(behind.address, 80, timeout=20)
        assert 10 <= trio.current_time() - began < 12, "told when the dial was given up, not at its own patience's end"
        assert forwarding_of(router).statistics().dials == 0
        assert router.status().drops["forward.timed_out"] >= 1


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        (ConnectionRefusedError(), "refused"),
        (OSError(errno.EHOSTUNREACH, "no"), "unreachable"),
        (OSError(errno.EMFILE, "full"), "no_descriptors"),
        (TimeoutError(), "timed_out"),
        (OSError("something else"), "unreachable"),
    ],
)
def test_every_failed_dial_has_a_word(problem: OSError, word: str) -> None:
    assert word_for(problem) == f"forward.{word}"


async def test_a_real_refusal_is_known_as_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(OSError, match="connect") as raised:
            await HostNetwork().open_tcp(*taken.getsockname())
    assert word_for(raised.value) == "forward.refused"


async def test_real_datagrams_come_back_and_a_closed_port_is_a_refusal() -> None:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        await server.bind(("127.0.0.1", 0))
        flow = await HostNetwork().connect_udp(*server.getsockname())
        await flow.send(b"hello")
        data, source = await server.recvfrom(100)
        await server.sendto(data, source)
        assert await flow.recv(100) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        await flow.send(b"anybody")
        await flow.recv(100)
    flow.close()


async def test_the_link_local_of_a_careless_route_is_counted_and_not_dialled(autojump_clock: MockClock) -> None:
    """The address where clouds keep a machine's credentials."""
    async with Tailnet() as net:
        client, router = await net.device("client"), await net.device("router", advertise_routes=["169.254.0.0/16"])
        net.approve_routes(router, "169.254.0.0/16")
        await until(lambda: forwards(router, "169.254.169.254"))
        await until(lambda: inside(client).reach.routes_to(parse_address("169.254.169.254")))
        with pytest.raises(TailscaleError):
            await client.tcp_connect("169.254.169.254", 80, timeout=5)
        assert router.status().drops["forward.link_local"] >= 1


# Which routes


async def test_what_is_not_approved_is_not_forwarded_and_said(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        behind = net.host("printer")
        router = await net.device("router", advertise_routes=[f"{behind.address}/32"])
        assert not router.health
        warning = (await until(lambda: router.health))[0]
        assert warning.code == "routes-not-approved"
        assert f"{behind.address}/32" in warning.sentence
        assert warning.remedy
        assert not forwards(router, behind.address)
        net.approve_routes(router, f"{behind.address}/32")
        await until(lambda: not router.health and forwards(router, behind.address))


async def test_what_control_approves_at_once_is_no_warning(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        _, router, _ = await routed(net)
        await trio.sleep(30)
        assert inside(router).bus.latest(WarningsChanged) is None, "nobody was ever warned"


async def test_a_route_we_do_not_advertise_is_not_forwarded_whatever_control_says(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, behind = await routed(net)
        async with echoing(behind, 80):
            near = await client.tcp_connect(behind.address, 80)
            async with near:
                await router.set(advertise_routes=[])
                with trio.fail_after(10), pytest.raises((ConnectionResetError, TimeoutError)):
                    await near.receive_some()
        assert not forwards(router, behind.address)
        await until(lambda: forwarding_of(router).statistics().connections == 0)
        await router.set(advertise_routes=[f"{behind.address}/32"])
        await until(lambda: forwards(router, behind.address))


def test_a_route_that_is_none_is_said_at_once() -> None:
    for wrong in ("192.168.7.5/24", "office", "10.0.0.0/33"):
        with pytest.raises(ValueError, match="advertise_routes"):
            Device("router", advertise_routes=[wrong])


# Bounds and ends


async def test_a_peer_that_knocks_everywhere_is_bounded(
    autojump_clock: MockClock,
) -> None:
    async with Tailnet() as net:
        client, router, behind = await routed(net, forward=ForwardLimits(dials_per_peer=3))
        net.block("router", behind.name)
        async with trio.open_nursery() as nursery:
            for port in range(1, 41):
                nursery.start_soon(dial_in_vain, client, behind.address, port)
            await trio.sleep(2)
            assert forwarding_of(router).statistics().dials == 3
            nursery.cancel_scope.cancel()
        drops = router.status().drops
        assert drops["tcp.knocks_share_full"] >= 37
        await trio.sleep(60)
        net.unblock("router", behind.name)
        async with echoing(behind, 80):
            assert await exchange(await client.tcp_connect(behind.address, 80), b"hello") == b"hello"


async def dial_in_vain(client: Device, host: str, port: int) -> None:
    await client.tcp_connect(host, port, timeout=100)


async def test_who_found_no_place_knocks_again_and_gets_in(
    autojump_clock: MockClock,
) -> None:
    async with Tailnet() as net:
        client, router, behind = await routed(net, forward=ForwardLimits(connections_per_peer=1))
        async with echoing(behind, 80):
            first = await client.tcp_connect(behind.address, 80)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(close_later, first)
                second = await client.tcp_connect(behind.address, 80)
            assert await exchange(second, b"hello") == b"hello"
        assert router.status().drops["forward.sockets_share_full"] >= 1


async def close_later(stream: TcpStream) -> None:
    await trio.sleep(2)
    await stream.aclose()


async def test_of_too_many_flows_the_one_that_was_silent_longest_makes_room(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, behind = await routed(net, forward=ForwardLimits(flows_per_peer=8))
        before = len(net.host("router").udp)
        async with echoing(behind, 7), await client.udp() as talking, await client.udp() as socket:
            for port in range(1, 101):
                await socket.send_to(b"x", (behind.address, 1000 + port))
                await talking.send_to(b"still here", (behind.address, 7))
                assert await talking.receive() == b"still here"
            await trio.sleep(1)
            assert len(net.host("router").udp) == before + 8
            assert router.forwarding.udp == 8
        assert router.status().drops["udp.flows_share_full"] == 93


async def test_a_router_that_closes_ends_everything_it_carried(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        behind = net.host("printer")
        client = await net.device("client")
        async with echoing(behind, 80):
            async with net.device("router", advertise_routes=[f"{behind.address}/32"]) as router:
                net.approve_routes(router, f"{behind.address}/32")
                await until(lambda: reaches(client, behind.address) and forwards(router, behind.address))
                near = await client.tcp_connect(behind.address, 80)
                socket = await client.udp()
                await socket.send_to(b"x", (behind.address, 80))
                await socket.receive()
            with trio.fail_after(10), pytest.raises(ConnectionResetError):
                await near.receive_some()
            await near.aclose()
            await socket.aclose()
        assert not net.host("router").udp
        assert all(stream.is_closed for stream in net.host("router").streams)


async def test_nothing_is_left_of_many_connections(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        client, router, behind = await routed(net)
        before = held_by(router)["tasks"]
        async with echoing(behind, 80):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(once, client, behind.address)
            await until(lambda: forwarding_of(router).statistics().connections == 0)
        assert held_by(router)["tasks"] == before
        assert inside(router).stack.forwarder.statistics().held == 0
        await until(lambda: inside(router).stack.forwarder.statistics().admitted == 0)


async def once(client: Device, host: str) -> None:
    assert await exchange(await client.tcp_connect(host, 80), b"hello") == b"hello"
