"""Messages between the devices of one app: acknowledged, in order, from a proven sender."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio
from mesh_scripts import meshes, next_of
from trio.testing import MockClock

from tailscale import ConnectionTimedOut
from tailscale.mesh import Lagged, Mesh, MeshLimits, MessageTooLarge, NobodyListens, NotInMesh, WrongShape
from tailscale.testing import Tailnet


@dataclass
class Chat:
    text: str


async def test_a_message_is_delivered_when_send_returns(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat") as inbox:
        bob = await a.peer("b", timeout=5)
        assert (bob.id, bob.name, bob.online, bob.connected) == (b.id, "b", True, True)
        for number in range(3):
            await bob.send("chat", {"number": number}, timeout=5)
        await a.send("b", "chat", b"bytes", timeout=5)
        got = [await next_of(inbox) for _ in range(4)]
        assert [message.data for message in got] == [*({"number": n} for n in range(3)), b"bytes"]
        assert [message.kind for message in got] == ["message"] * 3 + ["bytes"]
        assert {(message.sender.id, message.sender.node.hostname) for message in got} == {(a.id, "a")}


async def test_a_message_waits_a_moment_for_its_subscriber(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b):
        for number in (1, 2):
            await a.send("b", "chat", number, wait=False)
        await trio.sleep(1.5)
        async with b.subscribe("chat", int) as inbox:
            assert [(await next_of(inbox)).data for _ in range(2)] == [1, 2]


async def test_nobody_listens_after_two_seconds(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("other") as other:
        bob = await a.peer("b")
        began = trio.current_time()
        with pytest.raises(NobodyListens, match="nobody on b listens to 'chat'") as caught:
            await bob.send("chat", 1)
        assert caught.value.namespace == "chat"
        assert trio.current_time() - began == pytest.approx(2, abs=0.5)
        await bob.send("other", 2)
        assert (await next_of(other)).data == 2


async def test_a_payload_of_another_shape_is_refused_to_its_sender(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat", Chat) as inbox:
        with pytest.raises(WrongShape, match="does not fit the type that b expects"):
            await a.send("b", "chat", {"text": 3})
        with pytest.raises(WrongShape):
            await a.send("b", "chat", b"bytes")
        with pytest.raises(WrongShape, match="cannot be sent as JSON"):
            await a.send("b", "chat", object())
        await a.send("b", "chat", Chat("hello"))
        assert (await next_of(inbox)).data == Chat("hello")
        assert b.drops["mesh.wrong_shape"] == 2


async def test_a_message_that_is_too_large_is_refused_on_either_side(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with Mesh(await tailnet.device("a"), "notes", limits=MeshLimits(message=1000)) as a:
        async with Mesh(await tailnet.device("b"), "notes", limits=MeshLimits(message=100)) as b:
            async with b.subscribe("chat") as inbox:
                bob = await a.peer("b", timeout=5)
                with pytest.raises(MessageTooLarge, match="at most 1000"):
                    await bob.send("chat", "x" * 1000)
                with pytest.raises(MessageTooLarge, match="b takes no message"):
                    await bob.send("chat", "x" * 200)
                await bob.send("chat", "x" * 98)
                assert len((await next_of(inbox)).data) == 98


async def test_a_message_may_have_sixteen_mebibytes(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat", bytes) as inbox:
        data = bytes(16 << 20)
        await a.send("b", "chat", data)
        assert (await next_of(inbox)).data == data
        with pytest.raises(MessageTooLarge):
            await a.send("b", "chat", data + b"1")


async def test_a_slow_subscriber_makes_its_senders_wait_and_nobody_else(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("slow") as slow, b.subscribe("fast") as fast:
        bob = await a.peer("b")
        for number in range(256):
            await bob.send("slow", number)
        with pytest.raises(ConnectionTimedOut, match="whether the message arrived is unknown"):
            await bob.send("slow", 256, timeout=5)
        for number in range(20):
            await bob.send("fast", number)
            assert (await next_of(fast)).data == number
        assert (await next_of(slow)).data == 0
        await bob.send("slow", 257, timeout=5)
        assert [(await next_of(slow)).data for _ in range(256)] == [*range(1, 256), 257]


async def test_the_limit_of_a_subscription_is_how_many_wait(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b", "c") as (a, b, c), b.subscribe("chat", limit=3) as inbox:
        for number in range(3):
            await a.send("b", "chat", number)
        with trio.move_on_after(5) as patience:
            await c.send("b", "chat", 3)
        assert patience.cancelled_caught
        assert [(await next_of(inbox)).data for _ in range(4)] == [0, 1, 2, 3]  # unknown whether it arrives: it did


async def test_a_subscription_that_drops_says_how_many(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat", limit=2, overflow="drop") as inbox:
        for number in range(300):
            await a.send("b", "chat", number, timeout=5)
        assert await inbox.__anext__() == Lagged(298)
        assert [(await next_of(inbox)).data for _ in range(2)] == [298, 299]
        assert b.drops["mesh.reader_lagged"] == 298


async def test_every_subscription_of_a_namespace_hears_every_message(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat") as first, b.subscribe("chat") as second:
        for number in range(300):
            await a.send("b", "chat", number, timeout=5)
            assert (await next_of(first)).data == (await next_of(second)).data == number


async def test_without_waiting_a_message_is_only_queued(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat") as inbox:
        tailnet.block("a", "b")
        for number in range(256):
            await a.send("b", "chat", number, wait=False, timeout=1)
        with pytest.raises(ConnectionTimedOut):
            await a.send("b", "chat", 256, wait=False, timeout=1)
        tailnet.unblock("a", "b")
        assert [(await next_of(inbox, 60)).data for _ in range(256)] == [*range(256)]


async def test_a_broadcast_says_who_heard_it(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b", "c", "d") as (a, b, c, d), b.subscribe("chat") as inbox:
        async with c.subscribe("chat", limit=1) as slow:
            await a.send("c", "chat", 0)
            began = trio.current_time()
            report = await a.broadcast("chat", 1, timeout=3)
            assert trio.current_time() - began < 3.5
            assert [peer.id for peer in report.delivered] == [b.id]
            failed = {peer.id: type(problem) for peer, problem in report.failed.items()}
            assert failed == {c.id: ConnectionTimedOut, d.id: NobodyListens}
            assert (await next_of(inbox)).data == 1
            assert (await next_of(slow)).data == 0


async def test_names_that_are_no_namespaces_are_refused(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a") as (a,):
        for name in ("", "Chat", "_", "_f", "a b", "x" * 65, "chat\n"):
            with pytest.raises(ValueError, match="is no namespace"):
                await a.send("b", name, 1)
            with pytest.raises(ValueError, match="is no namespace"):
                a.subscribe(name)


async def test_who_is_not_in_the_mesh_is_told_with_suggestions(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "laptop", "desktop") as (a, _):
        await tailnet.device("stranger")
        with pytest.raises(NotInMesh, match="did you mean 'desktop'") as caught:
            await a.send("destop", "chat", 1)
        assert list(caught.value.suggestions) == ["desktop"]
        with pytest.raises(NotInMesh):
            await a.peer("stranger", timeout=1)
        assert list(a.peers) == ["desktop.tailnet.test"]
        assert a.peers["desktop"] == a.peers[a.peers["desktop"].node.ipv4 or ""]
