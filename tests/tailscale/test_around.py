"""Our own connections past our own tunnel: every address is tried, and a host is found where it was last."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from tailscale.runtime.around import NAMES_LIMIT, LastAddresses
from tailscale.runtime.network import HostNetwork
from ts_base.ip import parse_address


class Resolver(trio.abc.HostnameResolver):
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    async def getaddrinfo(self, host: object, port: object, *rest: object, **more: object) -> list[tuple[object, ...]]:
        await trio.lowlevel.checkpoint()
        if not self.addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise NotImplementedError


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    made = Resolver()
    before = trio.socket.set_custom_hostname_resolver(made)
    yield made
    trio.socket.set_custom_hostname_resolver(before)


@asynccontextmanager
async def server() -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:

        async def greet(stream: trio.SocketStream) -> None:
            await stream.send_all(b"hello")

        [listener] = await nursery.start(partial(trio.serve_tcp, greet, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_every_address_is_tried_and_each_is_asked_for_its_interface(resolver: Resolver) -> None:
    asked: list[bytes] = []

    def uplink_for(address: bytes) -> str:
        asked.append(address)
        return "" if address == parse_address("127.0.0.1") else "nosuch0"

    network = HostNetwork()
    network.go_around(uplink_for)
    resolver.addresses = ["127.0.0.2", "127.0.0.1"]  # no socket is bound to an interface that is not there
    async with server() as port:
        async with await network.open_tcp("relay.example", port) as stream:
            assert await stream.receive_some(5) == b"hello"
    assert asked == [parse_address("127.0.0.2"), parse_address("127.0.0.1")]
    assert network.last_addresses("relay.example") == (parse_address("127.0.0.1"),)


async def test_name_that_nobody_answers_is_tried_where_it_was_last(resolver: Resolver) -> None:
    network = HostNetwork()
    async with server() as port:
        resolver.addresses = ["127.0.0.1"]
        await (await network.open_tcp("relay.example", port)).aclose()
        resolver.addresses = []
        network.go_around(lambda _: "")
        await (await network.open_tcp("relay.example", port)).aclose()
        with pytest.raises(OSError, match="no answer"):
            await network.open_tcp("stranger.example", port)
    with pytest.raises(ConnectionRefusedError):
        await network.open_tcp("relay.example", port)
    network.go_around(None)
    with pytest.raises(OSError, match="no answer"):
        await network.open_tcp("relay.example", port)


async def test_datagrams_are_bound_past_the_tunnel_as_well() -> None:
    network = HostNetwork()
    network.go_around(lambda _: "nosuch0")
    with pytest.raises(OSError, match=r"[Nn]o such device|interface"):
        await network.connect_udp("127.0.0.1", 9)
    network.go_around(None)
    (await network.connect_udp("127.0.0.1", 9)).close()


async def test_names_are_remembered_within_bounds() -> None:
    known = LastAddresses()
    async with server() as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            for number in range(NAMES_LIMIT + 1):
                known.keep(f"host{number}.example", stream.socket)
            known.keep("127.0.0.1", stream.socket)
    assert known.of("host0.example") == ()
    assert known.of(f"host{NAMES_LIMIT}.example") == (parse_address("127.0.0.1"),)
    assert known.of("198.51.100.1") == (parse_address("198.51.100.1"),)
