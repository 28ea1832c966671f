"""Requests and their answers: matched, typed, cancelled where they are given up, failed as they failed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import trio
from mesh_scripts import meshes
from tailnet_scripts import beside, until
from trio.testing import MockClock

from tailscale import ConnectionTimedOut
from tailscale.mesh import Message, NobodyListens, PeerGone, RemoteError, WrongShape
from tailscale.testing import Tailnet


@dataclass
class City:
    name: str


async def double(question: Message[int]) -> int:
    return question.data * 2


async def test_every_request_of_five_hundred_gets_its_own_answer(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b", "c", "d") as (a, *others), trio.open_nursery() as nursery:
        for mesh in others:
            await nursery.start(partial(mesh.serve, "double", double, type=int))
        answers: dict[int, int] = {}

        async def ask(number: int) -> None:
            answers[number] = await a.request("bcd"[number % 3], "double", number, type=int)

        async with trio.open_nursery() as asking:
            for number in range(500):
                asking.start_soon(ask, number)
        assert answers == {number: number * 2 for number in range(500)}
        nursery.cancel_scope.cancel()


async def test_what_a_handler_raises_is_told(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async def fail(question: Message[Any]) -> object:
        if question.data == "set":
            return {1, 2}
        if question.data == "huge":
            return bytes((16 << 20) + 1)
        raise KeyError(question.data)

    async with meshes(tailnet, "a", "b") as (a, b), beside(partial(b.serve, "broken", fail)):
        with pytest.raises(RemoteError, match="KeyError: 'x'") as caught:
            await a.request("b", "broken", "x")
        assert caught.value.kind == "KeyError"
        assert await a.request("b", "broken", "set") == [1, 2]
        with pytest.raises(RemoteError, match="MessageTooLarge"):
            await a.request("b", "broken", "huge")


async def test_shapes_are_checked_both_ways(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async def weather(question: Message[City]) -> object:
        return {"city": question.data.name, "degrees": "many"}

    @dataclass
    class Weather:
        city: str
        degrees: int

    async with meshes(tailnet, "a", "b") as (a, b), beside(partial(b.serve, "weather", weather, type=City)):
        with pytest.raises(WrongShape, match="the type that b expects"):
            await a.request("b", "weather", {"nam": "Oslo"})
        with pytest.raises(WrongShape, match="the answer of b does not fit") as caught:
            await a.request("b", "weather", City("Oslo"), type=Weather)
        assert caught.value.path == "$.degrees"
        assert await a.request("b", "weather", City("Oslo")) == {"city": "Oslo", "degrees": "many"}


async def test_a_request_that_is_given_up_ends_its_handler(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    ended = []

    async def slow(question: Message[int]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(question.data)

    async with meshes(tailnet, "a", "b") as (a, b), beside(partial(b.serve, "slow", slow, limit=1)):
        with pytest.raises(ConnectionTimedOut, match="did not answer within 1 s"):
            await a.request("b", "slow", 1, timeout=1)
        await until(lambda: ended == [1])
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.request, "b", "slow", 2)
                await trio.sleep(0.1)
                nursery.start_soon(a.request, "b", "slow", 3)
        await until(lambda: ended == [1, 2])
        await trio.sleep(1)
        assert ended == [1, 2]  # the third never began


async def test_nobody_serves(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("weather"):
        with pytest.raises(NobodyListens):
            await a.request("b", "weather", "Oslo")
        async with beside(partial(b.serve, "double", double)):
            with pytest.raises(NobodyListens):
                await a.send("b", "double", 1)  # a message is no question
            with pytest.raises(ValueError, match="somebody serves"):
                await b.serve("double", double)
        with pytest.raises(NobodyListens):
            await a.request("b", "double", 1)


async def test_a_server_answers_so_many_at_once(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    running = most = 0

    async def count(_: Message[Any]) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        return most

    async with meshes(tailnet, "a", "b") as (a, b), beside(partial(b.serve, "count", count, limit=3)):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(a.request, "b", "count", None)
        assert most == 3


async def test_a_server_that_is_gone_fails_its_requests(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async def never(_: Message[Any]) -> None:
        await trio.sleep_forever()

    async with meshes(tailnet, "a") as (a,):
        async with meshes(tailnet, "b") as (b,), trio.open_nursery() as nursery:
            await nursery.start(b.serve, "never", never)
            await a.peer("b", timeout=5)
            failures = []

            async def ask() -> None:
                with pytest.raises(PeerGone) as caught:
                    await a.request("b", "never", 1, timeout=60)
                failures.append(caught.value)

            async with trio.open_nursery() as asking:
                asking.start_soon(ask)
                await trio.sleep(1)
                tailnet.remove("b")
            assert len(failures) == 1
            nursery.cancel_scope.cancel()
