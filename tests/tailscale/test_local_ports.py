"""Device.forward and Device.expose: a local port into the tailnet, a port of the tailnet to this machine."""

from __future__ import annotations

import logging
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from tailnet_scripts import echo_service, runtime_of, until
from test_cancel_anywhere import EXPECTED, cancelled_after

import tailscale
from tailscale import local_ports
from tailscale.testing import Tailnet

Pair = tuple[tailscale.Device, tailscale.Device]


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    """On the machine's own clock, as the kernel's sockets are."""
    async with Tailnet() as net, net.device("left") as left, net.device("right") as right:
        with trio.fail_after(30):
            yield left, right


async def said(stream: trio.abc.HalfCloseableStream, data: bytes) -> bytes:
    async with stream:
        await stream.send_all(data)
        await stream.send_eof()
        return b"".join([bytes(chunk) async for chunk in stream])


@asynccontextmanager
async def local_echo() -> AsyncIterator[int]:
    """A server of this machine."""

    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def test_forward_works_with_and_without_await() -> None:
    async with pair() as (left, right), echo_service(right, 7):
        async with left.forward("right", 7) as way:
            assert way.host == "127.0.0.1"
            assert await said(await trio.open_tcp_stream(way.host, way.port), b"one") == b"one"
        async with await left.forward("right", 7) as way:
            assert await said(await trio.open_tcp_stream(way.host, way.port), b"two") == b"two"
        with pytest.raises(OSError):
            await trio.open_tcp_stream(way.host, way.port)


async def test_forward_takes_the_local_port_it_is_given() -> None:
    port = free_port()
    async with pair() as (left, right), echo_service(right, 7), left.forward("right", 7, local_port=port) as way:
        assert way.address == ("127.0.0.1", port)
        with pytest.raises(OSError):
            await left.forward("right", 7, local_port=port)


async def test_forward_by_unix_socket_is_private_and_takes_its_file_away(tmp_path: Path) -> None:
    path = tmp_path / "door"
    async with pair() as (left, right), echo_service(right, 7):
        async with left.forward("right", 7, path=path) as way:
            assert (way.host, way.port) == (str(path), 0)
            assert os.stat(path).st_mode & 0o777 == 0o600
            assert await said(await trio.open_unix_socket(str(path)), b"x" * 500_000) == b"x" * 500_000
        assert not path.exists()


@pytest.mark.parametrize("what", ["nothing", "a folder", "another socket", "no folder", "a file for its folder"])
async def test_what_became_of_its_path_is_no_matter_to_a_forward(tmp_path: Path, what: str) -> None:
    path = tmp_path / "folder" / "door"
    path.parent.mkdir()
    async with pair() as (left, right), echo_service(right, 7), left.forward("right", 7) as another:
        async with left.forward("right", 7, path=path):
            path.unlink()
            if what == "a folder":
                path.mkdir()
            elif what == "another socket":
                with socket.socket(socket.AF_UNIX) as door:
                    door.bind(str(path))
            elif what in ("no folder", "a file for its folder"):
                path.parent.rmdir()
            if what == "a file for its folder":
                path.parent.touch()
        assert path.exists() is (what in ("a folder", "another socket"))
        assert await said(await trio.open_tcp_stream(another.host, another.port), b"x") == b"x"


@pytest.mark.parametrize("host", ["a..b", "x" * 300, "\x00", ""])
async def test_a_peer_that_calls_an_exposed_port_for_a_host_that_is_none_is_reset(host: str) -> None:
    async with pair() as (left, right), right.expose(80, host) as exposed, right.expose(81, host):
        for port in (80, 81, 80):
            with pytest.raises(tailscale.ConnectionReset):
                await said(await left.tcp_connect("right", port), b"x")
        assert exposed.statistics().failed == 2


async def test_closing_a_forward_leaves_open_connections_alone() -> None:
    async with pair() as (left, right), echo_service(right, 7):
        async with left.forward("right", 7) as way:
            stream = await trio.open_tcp_stream(way.host, way.port)
            await stream.send_all(b"a")
            assert await stream.receive_some() == b"a"
        assert await said(stream, b"b") == b"b"


async def test_what_cannot_be_reached_is_reset_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async with pair() as (left, _):
        with caplog.at_level(logging.INFO, "tailscale"):
            async with left.forward("right", 9) as way:
                for _ in range(3):
                    stream = await trio.open_tcp_stream(way.host, way.port)
                    with pytest.raises(trio.BrokenResourceError):
                        await said(stream, b"x")
                assert way.statistics().failed == 3
        assert sum("could not be carried" in record.message for record in caplog.records) == 1


async def test_expose_leads_to_a_server_of_this_machine() -> None:
    async with pair() as (left, right), local_echo() as port:
        async with right.expose(8080, local_port=port) as way:
            assert way.port == 8080
            assert await said(await left.tcp_connect("right", 8080), b"one") == b"one"
        async with await right.expose(8080, "127.0.0.1", port):
            assert await said(await left.tcp_connect("right", 8080), b"two") == b"two"
        with pytest.raises(tailscale.ConnectionRefused):
            await left.tcp_connect("right", 8080)


async def test_no_peer_takes_more_than_its_share_of_an_exposed_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ports, "FLOWS_PER_PEER", 2)
    async with pair() as (left, right), local_echo() as port, right.expose(8080, local_port=port) as way:
        first, second = [await left.tcp_connect("right", 8080) for _ in range(2)]
        for stream in (first, second):
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
        third = await left.tcp_connect("right", 8080)
        with pytest.raises(tailscale.ConnectionReset):
            await third.receive_some()
        assert (way.statistics().open, way.statistics().refused) == (2, 1)
        assert await said(await right.tcp_connect("right", 8080), b"mine") == b"mine"
        await said(first, b"")
        await second.aclose()


async def test_statistics_count_flows_and_bytes() -> None:
    async with pair() as (left, right), echo_service(right, 7), left.forward("right", 7) as way:
        await said(await trio.open_tcp_stream(way.host, way.port), b"x" * 1000)
        await until(lambda: not way.statistics().open)
        assert way.statistics() == tailscale.PortStatistics(1, 0, 0, 0, 1000, 1000)


async def test_a_device_that_ends_takes_its_ports_along() -> None:
    async with Tailnet() as net, net.device("right") as right, echo_service(right, 7):
        async with net.device("left") as left:
            way = await left.forward("right", 7)
            exposed = await left.expose(8080, local_port=1)
            stream = await trio.open_tcp_stream(way.host, way.port)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()
        await way.aclose()
        await exposed.aclose()
        with pytest.raises(OSError):
            await trio.open_tcp_stream(way.host, way.port)
        with pytest.raises(tailscale.DeviceClosed):
            left.forward("right", 7)


async def test_cancelled_anywhere_no_port_and_no_flow_stays() -> None:
    chance = random.Random(1)
    async with pair() as (left, right), echo_service(right, 7):

        async def use() -> None:
            async with left.forward("right", 7) as way:
                ways.append(way)
                with suppress(*EXPECTED):
                    await said(await trio.open_tcp_stream(way.host, way.port), b"x" * 5000)

        cut = 0
        for _ in range(60):
            ways: list[tailscale.Forward] = []
            cut += await cancelled_after(1 + int(chance.expovariate(1 / 6)), use)
            for way in ways:
                await way.aclose()
                await until(lambda way=way: not way.statistics().open)
        assert cut > 15
        await until(lambda: not runtime_of(left).stack.connections)
