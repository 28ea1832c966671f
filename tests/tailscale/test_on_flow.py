"""A program that takes flows itself: what it is asked, what its answers do, and what its mistakes cost."""

from __future__ import annotations

import asyncio
import logging
import socket as sockets
from typing import Any

import pytest
import trio
from tailnet_scripts import until
from test_exit_node import exit_and_client
from test_forward import echoing, exchange, inside
from trio.testing import MockClock

from tailscale import REFUSE, ConnectionRefused, IncomingFlow, TcpStream, UdpSocket
from tailscale.testing import Tailnet
from tailscale.testing import aio as aio_testing
from tailscale.testing import sync as sync_testing

LAN = "192.168.7.0/24"


async def greet(stream: TcpStream) -> None:
    await stream.send_all(b"hello " + await stream.receive_some())
    await stream.send_eof()


async def shout(socket: UdpSocket) -> None:
    while True:
        await socket.send((await socket.receive()).upper())


class Program:
    """Takes port 80 and 53, refuses 23, is broken at 666 and leaves the rest to the host."""

    def __init__(self) -> None:
        self.asked: list[IncomingFlow] = []

    def on_flow(self, flow: IncomingFlow) -> Any:
        self.asked.append(flow)
        if flow.destination[1] == 666:
            raise RuntimeError("a mistake of the program's")
        if flow.destination[1] == 667:
            return "nonsense"
        return {80: greet, 53: shout, 23: REFUSE, 668: fail}.get(flow.destination[1])


async def fail(stream: TcpStream) -> None:
    await stream.receive_some()
    raise RuntimeError("a handler's mistake")


async def test_a_program_takes_refuses_or_leaves_a_flow(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        lan, program = net.lan(LAN), Program()
        behind = lan.host("printer")
        client, router = await net.device("client"), await net.router("pi", lan, on_flow=program.on_flow)
        assert await exchange(await client.tcp_connect("192.168.7.200", 80), b"world") == b"hello world"
        [flow] = program.asked
        assert flow.caller is not None
        assert (flow.protocol, flow.caller.hostname, flow.destination) == ("tcp", "client", ("192.168.7.200", 80))
        assert flow.source[0] == client.ipv4
        async with echoing(behind, 7):
            assert await exchange(await client.tcp_connect(behind.address, 7), b"dialled") == b"dialled"
        with pytest.raises(ConnectionRefused):
            await client.tcp_connect(behind.address, 23)
        async with await client.udp() as socket:
            for word in (b"one", b"two"):
                await socket.send_to(word, ("192.168.7.9", 53))
                assert await socket.receive_from() == (word.upper(), ("192.168.7.9", 53))
            assert router.forwarding.udp == 1
            await trio.sleep(31)
            assert router.forwarding.udp == 0, "its handler ends with it"
        assert program.asked[-1].protocol == "udp"
        async with await client.udp() as socket:
            await socket.connect((behind.address, 23))
            await socket.send(b"?")
            with pytest.raises(ConnectionRefused):
                await socket.receive()
        assert router.forwarding.refused == {"forward.by_program": 2}
        await until(lambda: router.forwarding.flows == 0)


async def test_mistakes_of_a_program_end_one_flow_and_are_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with Tailnet() as net:
        lan, program = net.lan(LAN), Program()
        client, router = await net.device("client"), await net.router("pi", lan, on_flow=program.on_flow)
        with caplog.at_level(logging.ERROR, "tailscale.forward"):
            for port in (666, 667):
                with pytest.raises(ConnectionRefused):
                    await client.tcp_connect("192.168.7.9", port)
            async with await client.tcp_connect("192.168.7.9", 668) as stream:
                await stream.send_all(b"?")
                with pytest.raises(ConnectionResetError):
                    await stream.receive_some()
        assert [record.exc_info is not None for record in caplog.records] == [True] * 3
        refused = router.forwarding.refused
        assert (refused["forward.on_flow_failed"], refused["forward.handler_failed"]) == (2, 1)
        assert await exchange(await client.tcp_connect("192.168.7.9", 80), b"still here") == b"hello still here"
        assert not router.health


async def test_what_no_route_leads_to_is_not_even_asked(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        program = Program()
        client, router = await exit_and_client(net)
        lan = net.lan("169.254.169.0/24")
        await net.router("metadata", lan, on_flow=program.on_flow)
        await until(lambda: inside(client).reach.routes_to(bytes([169, 254, 169, 254])))
        with pytest.raises(OSError):
            await client.tcp_connect("169.254.169.254", 80, timeout=5)
        assert program.asked == []
        assert router.forwarding.refused == {}


async def test_a_program_that_never_decides_is_waited_for_as_long_as_a_dial(autojump_clock: MockClock) -> None:
    async def undecided(flow: IncomingFlow) -> None:
        await trio.sleep_forever()

    async with Tailnet() as net:
        client, router = await net.device("client"), await net.router("pi", net.lan(LAN), on_flow=undecided)
        began = trio.current_time()
        with pytest.raises(OSError):
            await client.tcp_connect("192.168.7.9", 80)
        assert trio.current_time() - began < 12
        assert router.forwarding.dials == 0


async def test_a_handler_that_never_looks_ends_with_its_flow(autojump_clock: MockClock) -> None:
    ended = trio.Event()

    async def sleep(socket: UdpSocket) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with Tailnet() as net:
        client, router = await net.device("client"), await net.router("pi", net.lan(LAN), on_flow=lambda flow: sleep)
        async with await client.udp() as socket:
            await socket.send_to(b"?", ("192.168.7.9", 53))
            await until(lambda: router.forwarding.udp)
            with trio.fail_after(31):
                await ended.wait()
        assert router.forwarding.udp == 0


# Programs that are not trio's


async def aio_greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello " + await reader.read(100))
    await writer.drain()


async def aio_shout(socket: Any) -> None:
    data = await socket.receive()
    await socket.send(data.upper())


def test_an_asyncio_program_takes_flows_in_its_own_loop() -> None:
    async def main(net: aio_testing.Tailnet) -> None:
        home = asyncio.get_running_loop()

        async def on_flow(flow: IncomingFlow) -> Any:
            assert asyncio.get_running_loop() is home
            return aio_greet if flow.protocol == "tcp" else aio_shout

        client = await net.device("client")
        router = await net.device("router", advertise_routes=[LAN], on_flow=on_flow)
        net.approve_routes("router", LAN)
        while not (router.forwarding.approved and client.peers["router"].routes):  # noqa: ASYNC110 - two facts
            await asyncio.sleep(0.01)
        reader, writer = await client.tcp_connect("192.168.7.9", 80)
        writer.write(b"asyncio")
        assert await reader.read() == b"hello asyncio"
        writer.close()
        async with await client.udp() as socket:
            await socket.send_to(b"quiet", ("192.168.7.9", 53))
            assert await socket.receive() == b"QUIET"

    with aio_testing.Tailnet() as net:
        asyncio.run(main(net))


def test_a_program_of_threads_takes_flows_in_threads() -> None:
    def blocking_greet(sock: sockets.socket) -> None:
        sock.sendall(b"hello " + sock.recv(100))

    with sync_testing.Tailnet() as net:
        client = net.device("client")
        router = net.device("router", advertise_routes=[LAN], on_flow=lambda flow: blocking_greet)
        net.approve_routes("router", LAN)
        net.wait_for(lambda: until(lambda: router.forwarding.approved and client.peers["router"].routes))
        sock = client.connect("192.168.7.9", 80, timeout=10)
        with sock:
            sock.sendall(b"threads")
            assert sock.recv(100) == b"hello threads"
            assert sock.recv(100) == b""
