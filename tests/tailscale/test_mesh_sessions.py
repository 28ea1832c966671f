"""Sessions: who may have one, which of two stays, what survives a broken one, and members found without asking."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from mesh_scripts import PORT, bare_server, break_streams, hello_of, meshes, next_of, until_met
from tailnet_scripts import beside, held_by, until
from trio.testing import MockClock

from tailscale import ConnectionRefused, Device, MemoryStore
from tailscale.mesh import (
    Mesh,
    Message,
    PeerConnected,
    PeerDisconnected,
    PeerGone,
    PeerJoined,
    PeerLeft,
    PeerRenamed,
)
from tailscale.testing import Tailnet


@asynccontextmanager
async def heard(mesh: Mesh) -> AsyncIterator[list[Any]]:
    """The events of a mesh, while the block runs."""
    events: list[Any] = []

    async def read() -> None:
        stream = mesh.events()
        while True:
            try:
                events.append(await stream.__anext__())
            except StopAsyncIteration:
                return

    async with beside(read):
        yield events


# --- who is a member ------------------------------------------------------------------------------


async def count_callers(device: Device, callers: Counter[str], *, task_status: trio.TaskStatus[None]) -> None:
    """Stand where a mesh would listen, without being one."""
    async with await device.listen(PORT) as listener:
        task_status.started()
        while True:
            async with await listener.accept():
                callers[device.hostname] += 1


async def test_members_are_known_before_any_packet_and_within_a_second(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    callers = Counter[str]()
    async with Mesh(a, "notes") as first, trio.open_nursery() as nursery:
        for number in range(3):
            await nursery.start(count_callers, await tailnet.device(f"s{number}"), callers)
        began = trio.current_time()
        async with Mesh(b, "notes") as second:
            await until_met(first, 1)
            await until_met(second, 1)
            assert trio.current_time() - began < 1
            assert not first.peers["b"].connected
            await first.broadcast("chat", 1, timeout=1)
            assert first.peers["b"].connected
            await trio.sleep(60)
        assert not callers, "somebody who is no member was asked"
        nursery.cancel_scope.cancel()


async def test_who_leaves_and_comes_back_is_another_peer(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a") as (a,), heard(a) as events:
        b = await tailnet.device("b")
        async with Mesh(b, "notes"):
            await until_met(a, 1)
            before = await a.peer("b")
        await until(lambda: not a.peers)
        with pytest.raises(PeerGone, match="b left the mesh"):
            await before.send("chat", 1)
        async with Mesh(b, "notes") as again:
            after = await a.peer("b", timeout=5)
            assert after != before
            assert (after.generation, before.generation) == (2, 1)
            assert after == (await a.peer(again.id))
            tailnet.rename("b", "bee")
            await a.peer("bee", timeout=5)
        await until(lambda: not a.peers)
    kinds = [type(event) for event in events]
    assert kinds[:4] == [PeerJoined, PeerConnected, PeerDisconnected, PeerLeft]
    assert Counter(kinds)[PeerJoined] == Counter(kinds)[PeerLeft] == 2
    assert [(event.before, event.peer) for event in events if isinstance(event, PeerRenamed)] == [
        ("b.tailnet.test", after)
    ]


async def test_several_meshes_of_a_device_share_one_port(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with Mesh(a, "notes") as notes, Mesh(a, "wiki") as wiki, Mesh(b, "wiki") as other:
        with pytest.raises(ValueError, match="has a mesh 'notes'"):
            await Mesh(a, "notes").__aenter__()
        await until(lambda: b.peers["a"].announced == {"mesh:notes": 9417, "mesh:wiki": 9417})
        async with wiki.subscribe("page") as inbox, notes.subscribe("page"):
            await other.send("a", "page", "x", timeout=5)
            assert (await next_of(inbox)).sender.id == other.id
            assert not notes.peers
    async with Mesh(a, "notes"), Mesh(b, "notes") as again:
        await again.peer("a", timeout=5)


async def test_where_announcements_are_lost_chosen_nodes_are_asked_once(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    dialled = Counter[str]()
    async with trio.open_nursery() as nursery:
        for number in range(2):
            await nursery.start(count_callers, await tailnet.device(f"s{number}"), dialled)
        async with bare_server(b, hello_of(b)) as sessions:
            for _ in range(2):
                async with Mesh(a, "notes", state=tmp_path, discover=lambda node: node.hostname != "s0") as mesh:
                    bob = await mesh.peer("b", timeout=5)
                    assert (bob.id, bob.features) == ("ID-OF-b", frozenset())
                    await trio.sleep(10)
                    assert list(mesh.peers) == ["b.tailnet.test"]
                    await bob.send("chat", b"hello")  # at most once: written is all that can be said
                    envelope = await sessions[-1].hear()
                    assert envelope.pop("timestamp") > 0
                    assert envelope == {
                        "namespace": "chat",
                        "msg_type": "bytes",
                        "payload": {"encoding": "base64", "data": "aGVsbG8="},
                    }
            assert dialled == {"s1": 1}
        nursery.cancel_scope.cancel()


# --- what survives --------------------------------------------------------------------------------


async def test_nothing_is_lost_or_doubled_over_broken_connections(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat", int) as there, a.subscribe("chat", int) as here:
        await a.peer("b")
        chance = random.Random(1)
        got: dict[str, list[int]] = {"a": [], "b": []}

        async def send(mesh: Mesh, to: str) -> None:
            for number in range(100):
                await mesh.send(to, "chat", number)
                await trio.sleep(0.02)

        async def read(name: str, inbox: Any) -> None:
            while len(got[name]) < 100:
                got[name].append((await next_of(inbox, 600)).data)

        async def disturb() -> None:
            while True:
                await trio.sleep(chance.random())
                break_streams(a.device)

        async with beside(disturb), trio.open_nursery() as nursery:
            nursery.start_soon(send, a, "b")
            nursery.start_soon(send, b, "a")
            nursery.start_soon(read, "a", here)
            nursery.start_soon(read, "b", there)
        assert got == {"a": [*range(100)], "b": [*range(100)]}


async def test_an_outage_is_waited_out(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat", int) as inbox:
        await a.send("b", "chat", 0)
        for other in ("a", "relay"):
            tailnet.block("b", other)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(a.send, "b", "chat", 1))
            await trio.sleep(100)
            for other in ("a", "relay"):
                tailnet.unblock("b", other)
        assert [(await next_of(inbox)).data for _ in range(2)] == [0, 1]


async def test_a_dial_that_fails_at_first_is_the_senders_error(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with Mesh(a, "notes") as mesh:
        with b.announce("mesh:notes", 9417):
            await until_met(mesh, 1)
            with pytest.raises(ConnectionRefused):
                await mesh.send("b", "chat", 1)
            async with await b.listen(9417) as listener, beside(partial(_answer_http, listener)):
                with pytest.raises(ConnectionRefused, match="not as a mesh: HTTP 404"):
                    await mesh.send("b", "chat", 1)


async def _answer_http(listener: Any) -> None:
    async with await listener.accept() as stream:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        await trio.sleep_forever()


async def test_both_dial_at_once_and_one_connection_stays(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), a.subscribe("chat") as here, b.subscribe("chat") as there:
        for round_ in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.send, "b", "chat", round_)
                nursery.start_soon(b.send, "a", "chat", round_)
            assert (await next_of(here)).data == (await next_of(there)).data == round_
            await trio.sleep(2)
            assert held_by(a.device)["connections"] == held_by(b.device)["connections"] == 1
            if round_ % 2:
                break_streams(a.device, b.device)


async def test_a_new_process_gets_what_the_old_one_had_not_acknowledged(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    """To others, a program that cannot say goodbye is one that crashed."""
    state = MemoryStore()
    async with meshes(tailnet, "a") as (a,):
        device = await tailnet.device("b")
        async with Mesh(device, "notes", state=state) as b, b.subscribe("chat", int) as inbox:
            bob = await a.peer("b", timeout=5)
            await bob.send("chat", 0)
            assert (await next_of(inbox)).data == 0
            for other in ("a", "relay", "control"):
                tailnet.block("b", other)
            await bob.send("chat", 1, wait=False)
            await trio.sleep(0.5)
        async with Mesh(device, "notes", state=state) as b, b.subscribe("chat", int) as inbox:
            for other in ("a", "relay", "control"):
                tailnet.unblock("b", other)
            assert (await next_of(inbox, 120)).data == 1
            await bob.send("chat", 2)
            assert (await next_of(inbox)).data == 2


async def test_an_idle_session_is_closed_and_opened_again(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat") as inbox:
        await a.send("b", "chat", 1)
        await trio.sleep(14 * 60)
        assert a.peers["b"].connected
        await trio.sleep(2 * 60)
        assert not a.peers["b"].connected
        assert not b.peers["a"].connected
        await a.send("b", "chat", 2)
        assert [(await next_of(inbox)).data for _ in range(2)] == [1, 2]


async def test_a_dead_peer_is_noticed_in_thirty_seconds(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, _):
        await a.peer("b")
        for other in ("a", "relay"):
            tailnet.block("b", other)
        began = trio.current_time()
        await until(lambda: not a.peers["b"].connected, 60)
        assert trio.current_time() - began < 31


async def test_a_mesh_that_is_cancelled_ends_at_once(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    device = await tailnet.device("a")
    with trio.move_on_after(1) as scope:
        async with Mesh(device, "notes") as mesh, mesh.subscribe("chat") as inbox:
            async for _ in inbox:
                pass
    assert scope.cancelled_caught
    with pytest.raises(KeyError, match="mine"):
        async with Mesh(device, "notes"):
            raise KeyError("mine")
    async with Mesh(device, "notes") as mesh:
        pass
    with pytest.raises(RuntimeError, match="once"):
        async with mesh:
            pass


async def test_messages_say_when_they_were_sent(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat") as inbox:
        await a.send("b", "chat", None)
        message: Message[Any] = await next_of(inbox)
        assert message.data is None
        assert message.sent_at is not None
        assert message.sent_at.tzinfo is not None
