"""What moves under a mesh: addresses that change hands, callers from behind a subnet router, clocks that step back."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from mesh_scripts import PORT, meshes, next_of
from tailnet_scripts import runtime_of, until
from trio.testing import MockClock

from tailscale import ConnectionRefused, Device
from tailscale.mesh import Mesh
from tailscale.testing import Tailnet
from ts_base.ip import parse_address

# --- addresses ------------------------------------------------------------------------------------


async def test_a_peer_that_is_readdressed_is_followed(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat", int) as inbox, b.subscribe("news", int) as news:
        async with a.store("presence") as ours, b.store("presence") as theirs:
            bob, before = await a.peer("b"), b.device.ipv4
            ours.mine, theirs.mine = {"at": 1}, {"at": 1}
            await bob.send("chat", 0)
            tailnet.readdress("b")
            await until(lambda: a.device.peers["b"].ipv4 not in (None, before))
            await bob.send("chat", 1, timeout=30)
            assert [(await next_of(inbox)).data for _ in range(2)] == [0, 1]
            ours.mine, theirs.mine = {"at": 2}, {"at": 2}
            await until(lambda: [each.value for _, each in (*ours.items(), *theirs.items())] == [{"at": 2}] * 2, 60)
            assert a.peers[b.device.ipv4 or ""] == bob == a.peers["b"]
            assert before not in a.peers
            await a.broadcast("news", 3)
            assert (await next_of(news)).sender == b.peers["a"]


async def test_the_new_owner_of_an_address_is_nobody_else(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with (
        meshes(tailnet, "a", "b", "c") as (a, b, c),
        b.subscribe("chat") as theirs,
        c.subscribe("chat") as others,
    ):
        bob, carol, address = await a.peer("b"), await a.peer("c"), b.device.ipv4
        await bob.send("chat", "to b")
        tailnet.readdress("b")
        tailnet.readdress("c", address)
        await until(lambda: a.device.peers["c"].ipv4 == address)
        await bob.send("chat", "to b", timeout=60)
        await carol.send("chat", "to c", timeout=60)
        await a.send(address or "", "chat", "to c", timeout=60)
        assert [(await next_of(theirs)).data for _ in range(2)] == ["to b"] * 2
        assert [(await next_of(others)).data for _ in range(2)] == ["to c"] * 2
        assert (a.peers["b"], a.peers["c"]) == (bob, carol)


async def test_a_dial_that_ends_at_the_new_owner_of_an_address_says_nothing_there(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with meshes(tailnet, "a", "b") as (a, b):
        c, address = await tailnet.device("c"), b.device.ipv4
        line = a.line_of(await a.peer("b"))
        async with await c.listen(PORT) as listener:
            old = line.node
            tailnet.readdress("b")
            tailnet.readdress("c", address)
            await until(lambda: a.device.peers["c"].ipv4 == address == c.ipv4)
            line.node = old  # what a dial knows that was begun just before
            with pytest.raises(ConnectionRefused, match="b has another address now"):
                await line.connect_port(timeout=10)
            async with await listener.accept() as stream:
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()


# --- behind a subnet router -----------------------------------------------------------------------


async def asked(device: Device, head: str) -> bytes:
    """The first line of what a mesh port answers."""
    async with await device.tcp_connect("b", PORT) as stream:
        await stream.send_all(head.encode())
        answer = b""
        while b"\r\n" not in answer and (data := await stream.receive_some()):
            answer += data
        return answer.split(b"\r\n")[0]


UPGRADE = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


async def test_whoever_calls_from_behind_a_subnet_router_is_403(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """A router that keeps source addresses: the node is the router, but who calls is somebody behind it."""
    printer = tailnet.host("printer").address
    router = await tailnet.device("router", advertise_routes=[f"{printer}/32"])
    async with meshes(tailnet, "b") as (b,), Mesh(router, "notes"):
        tailnet.approve_routes(router, f"{printer}/32")
        await until(lambda: f"{printer}/32" in b.device.peers["router"].routes)
        assert await asked(router, "GET / HTTP/1.1\r\nhost: b\r\n\r\n") == b"HTTP/1.1 404 "
        own = runtime_of(router).stack
        own.set_addresses([parse_address(printer), *map(parse_address, router.node.addresses)])
        identity: Any = await b.device.whois(printer)
        assert identity.node.hostname == "router"
        for request in (f"GET /ws HTTP/1.1\r\nhost: b\r\n{UPGRADE}", "GET / HTTP/1.1\r\nhost: b\r\n"):
            assert (await asked(router, f"{request}\r\n")).startswith(b"HTTP/1.1 403 ")
        put = f"PUT /f/{'0' * 32}/0 HTTP/1.1\r\nhost: b\r\ncontent-length: 3\r\n\r\nabc"
        assert (await asked(router, put)).startswith(b"HTTP/1.1 403 ")
        assert not b.peers["router"].connected
