"""What moves under a mesh: addresses that change hands, callers from behind a subnet router, clocks that step back."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from mesh_scripts import EPOCH, FEATURES, PORT, bare_client, break_streams, greeted, hello_of, meshes, next_of
from tailnet_scripts import runtime_of, until
from trio.testing import MockClock

from tailscale import ConnectionRefused, Device
from tailscale.files.folders import Folder
from tailscale.mesh import Mesh
from tailscale.mesh.hash_cache import FileKey, HashCache
from tailscale.mesh.saved import Saved
from tailscale.mesh.source import Source
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


UPGRADE = (
    "connection: upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


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


# --- clocks that step back ------------------------------------------------------------------------


class Clock:
    """The wall clock of everybody in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.behind = 0.0
        real, real_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: real() - self.behind)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() - int(self.behind * 1e9))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def test_a_store_that_forgot_wins_though_its_clock_stepped_back(
    clock: Clock, autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    device = await tailnet.device("b")
    async with meshes(tailnet, "a") as (a,), a.store("count", int) as seen:
        for life in range(3):  # each a process of its own, an hour before the one before it
            async with Mesh(device, "notes") as b, b.store("count", int) as store:
                for value in range(3 - life):
                    store.set(10 * life + value)
                await until(lambda: [each.value for _, each in seen.items()] == [10 * life + 2 - life])  # noqa: B023
            clock.behind += 3600
        assert not a.drops["mesh.slice_old"]


async def test_a_store_opened_again_wins_though_the_clock_stepped_back(
    clock: Clock, autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), a.store("count", int) as seen:
        for value in range(3):
            async with b.store("count", int) as store:
                store.set(value)
                await until(lambda: [each.value for _, each in seen.items()] == [value])  # noqa: B023
                if value == 1:
                    await store.clear()
                    await until(lambda: not list(seen.items()))
            clock.behind += 3600


async def test_a_peer_without_epochs_is_believed_after_its_clock_stepped_back(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    x = await tailnet.device("x")
    async with meshes(tailnet, "a") as (a,), a.store("count", int) as seen:
        for life in range(2):
            async with bare_client(x, "a") as bare:
                await greeted(bare, hello_of(x))
                told = {
                    "type": "full",
                    "device_id": "ID-OF-x",
                    "data": life,
                    "version": 9 - life,
                    "updated_at": 9 - life,
                }
                await bare.say({"namespace": "ss:count", "msg_type": "full", "payload": told})
                await until(lambda: [each.value for _, each in seen.items()] == [life])  # noqa: B023
                late = {**told, "data": 7, "version": 1, "updated_at": 1}
                await bare.say({"namespace": "ss:count", "msg_type": "full", "payload": late})
                await until(lambda: a.drops["mesh.slice_old"] == life + 1)  # noqa: B023


async def test_messages_and_their_deadlines_know_no_wall_clock(
    clock: Clock, autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat", int, limit=1000) as inbox:
        for number in range(4):
            await a.send("b", "chat", number)
            clock.behind += 86_400
            tailnet.set_clock(("a", "b")[number % 2], ahead=-clock.behind)
            break_streams(a.device)
            await a.send("b", "chat", 10 + number, timeout=10)
            await trio.sleep(40)  # heartbeats
            assert a.peers["b"].connected
        got = [await next_of(inbox) for _ in range(8)]
        assert [message.data for message in got] == [0, 10, 1, 11, 2, 12, 3, 13]
        assert got[-1].sent_at is not None
        assert got[0].sent_at is not None
        assert got[-1].sent_at < got[0].sent_at


async def test_what_a_former_process_had_on_its_way_is_not_its_successors(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    x = await tailnet.device("x")
    async with meshes(tailnet, "a") as (a,), a.subscribe("chat", int) as inbox:
        async with bare_client(x, "a") as old, bare_client(x, "a") as new:
            await greeted(old, hello_of(x, features=FEATURES, epoch=EPOCH))
            await greeted(new, hello_of(x, features=FEATURES, epoch=EPOCH[::-1]))
            await old.say({"namespace": "chat", "msg_type": "message", "payload": 7, "n": 7})
            await trio.sleep(0.5)
            await new.say({"namespace": "chat", "msg_type": "message", "payload": 1, "n": 1})
            assert (await next_of(inbox)).data == 1
            assert a.drops["mesh.former_process"] == 1


def test_nodes_asked_in_the_future_are_asked_again(clock: Clock) -> None:
    saved = Saved(None, "notes")
    saved.remember("n1", is_member=False)
    assert saved.recently_asked() == {"n1": False}
    clock.behind = 60
    assert saved.recently_asked() == {}


def test_a_file_hashed_before_the_clock_stepped_back_is_known_only_as_it_was(
    clock: Clock, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path, cache = tmp_path / "file", HashCache(None)
    request.addfinalizer(cache.close)
    path.write_bytes(b"first")
    before = time.time_ns() - 3_600_000_000_000
    os.utime(path, ns=(before, before))

    def look() -> Source:
        source = Source(Folder.open(tmp_path), "file", cache, FileKey.of(path.stat()))
        source.root()
        source.close()
        return source

    assert [look().bytes_hashed for _ in range(2)] == [5, 0]
    clock.behind = 2 * 3600
    path.write_bytes(b"other")
    earlier = time.time_ns()
    os.utime(path, ns=(earlier, earlier))  # as it looks to who wrote it now: older than what was hashed
    assert [look().bytes_hashed for _ in range(2)] == [5, 5]  # not remembered: its clock may stand still
    os.utime(path, ns=(before, before + 1))  # of a time yet to come
    assert [look().bytes_hashed for _ in range(2)] == [5, 5]
