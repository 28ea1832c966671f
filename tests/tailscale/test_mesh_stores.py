"""State shared between devices: every owner writes its own slice, everybody reads all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from mesh_scripts import meshes, next_of, until_met
from tailnet_scripts import beside, until
from trio.testing import MockClock

from tailscale import StateLocked
from tailscale.mesh import Mesh, MeshLimits, MessageTooLarge, WrongShape
from tailscale.testing import Tailnet


@dataclass
class Presence:
    status: str = "away"
    tags: list[str] = field(default_factory=list)


async def test_a_value_reaches_everybody_who_opened_the_store(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b", "c") as (a, b, c), a.store("presence", Presence) as first:
        assert first.mine == Presence()
        first.mine = Presence("writing")
        async with b.store("presence", Presence) as second, c.store("other", Presence) as other:
            second.set(Presence("reading", ["quietly"]))
            await until(lambda: len(list(first.items())) == len(list(second.items())) == 1)
            ((peer, found),) = second.items()
            assert (peer.id, found.value, found.version, found.stale) == (a.id, Presence("writing"), 1, False)
            assert second.of(peer) == found
            ((peer, found),) = first.items()
            assert (peer.id, found.value) == (b.id, Presence("reading", ["quietly"]))
            assert list(other.items()) == []


async def test_who_joins_when_the_store_is_open_is_told_as_well(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    late = await tailnet.device("late")
    async with meshes(tailnet, "a") as (a,), a.store("presence") as first:
        first.mine = {"x": 1}
        async with Mesh(late, "notes") as b, b.store("presence") as second:
            await until(lambda: [found.value for _, found in second.items()] == [{"x": 1}])


async def test_what_is_set_often_is_told_rarely_and_the_last_always(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), a.store("count", int) as mine, b.store("count", int) as theirs:
        told: list[int] = []

        async def read() -> None:
            async for change in theirs.changes():
                assert change.slice is not None
                told.append(change.slice.value)

        async with beside(read):
            for number in range(101):
                mine.set(number)
                await trio.sleep(0.01)
            await until(lambda: told and told[-1] == 100)
            assert 10 <= len(told) <= 25


async def test_a_slice_of_somebody_else_is_dropped_and_counted(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.store("presence", dict) as store:
        lie = {"type": "update", "device_id": b.id, "data": {"forged": True}, "version": 9, "updated_at": 1}
        await a.send("b", "ss:presence", lie, kind="update")
        await a.send("b", "ss:presence", {**lie, "device_id": a.id, "data": "text"}, kind="update")
        assert list(store.items()) == []
        assert b.drops["mesh.slice_of_another"] == 1
        assert b.drops["mesh.wrong_shape"] == 1


async def test_truffles_words_about_a_store_are_understood(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.store("presence") as store, a.subscribe("ss:presence") as inbox:
        store.mine = {"x": 1}
        await until(lambda: b.peers["a"].connected)
        full = {"type": "full", "device_id": a.id, "data": {"y": 2}, "version": 1, "updated_at": 5}
        await a.send("b", "ss:presence", full, kind="full")
        assert [found.value for _, found in store.items()] == [{"y": 2}]
        await a.send("b", "ss:presence", {**full, "version": 1}, kind="update")  # not newer
        await a.send("b", "ss:presence", {"type": "request"}, kind="request")
        told = [await next_of(inbox) for _ in range(2)]
        while told[-1].kind != "full" or told[-1].data["data"] != {"x": 1}:
            told.append(await next_of(inbox))
        assert told[-1].data["device_id"] == b.id
        assert told[-1].data["type"] == "full"
        await a.send("b", "ss:presence", {"type": "clear", "device_id": a.id}, kind="clear")
        assert list(store.items()) == []
        assert b.drops["mesh.slice_old"] == 1


@pytest.mark.slow
async def test_a_slice_stays_while_its_owner_is_offline_and_goes_with_it(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), a.store("presence") as first, b.store("presence") as second:
        second.mine = {"x": 1}
        await until(lambda: list(first.items()))
        tailnet.block("b", "control")
        tailnet.block("a", "b")
        tailnet.block("b", "relay")
        await until(lambda: [found.stale for _, found in first.items()] == [True], 300)
        changes = first.changes()
        tailnet.remove("b")
        with trio.fail_after(10):
            assert (await changes.__anext__()).slice is None
        assert list(first.items()) == []


async def test_a_value_is_taken_back_everywhere(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), a.store("presence") as first, b.store("presence") as second:
        second.mine = {"x": 1}
        await until(lambda: list(first.items()))
        await second.clear()
        await until(lambda: not list(first.items()))
        second.mine = {"x": 2}
        await until(lambda: [found.value for _, found in first.items()] == [{"x": 2}])


async def test_a_restart_wins_over_what_was_told_before_it(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    async with meshes(tailnet, "a") as (a,), a.store("count", int) as store:
        device = await tailnet.device("b")
        identities = set()
        for number in range(3):
            async with Mesh(device, "notes", state=tmp_path if number else None) as b, b.store("count", int) as own:
                identities.add(b.id)
                if number < 2:
                    for value in range(5 - number):
                        own.set(10 * number + value)
                await until(lambda: [each.value for _, each in store.items()] == [[4], [13], [13]][number])  # noqa: B023
                assert own.mine == [4, 13, 13][number]
        assert len(identities) == 2


async def test_one_state_serves_one_mesh_at_a_time(autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path) -> None:
    async with Mesh(await tailnet.device("a"), "notes", state=tmp_path):
        with pytest.raises(StateLocked):
            await Mesh(await tailnet.device("b"), "notes", state=tmp_path).__aenter__()
        async with Mesh(await tailnet.device("c"), "other", state=tmp_path):
            pass


async def test_a_value_has_bounds(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    limits = MeshLimits(slice=100)
    async with meshes(tailnet, "a", "b") as (a, _):
        async with Mesh(await tailnet.device("c"), "notes", limits=limits) as c, c.store("s", str) as store:
            await until_met(c, 2)
            with pytest.raises(MessageTooLarge):
                store.set("x" * 99)
            with pytest.raises(WrongShape):
                store.set(object())  # type: ignore[arg-type]
            async with a.store("s", str) as large:
                large.set("x" * 200)
                await until(lambda: c.drops["mesh.slice_too_large"])
