"""Start, talk, stop, again and again: memory and tasks stay where they were."""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Awaitable, Callable

import pytest
import trio
from source import ROOMS
from tailnet_scripts import attributes, collect, echo_service, echoed, module_of
from trio.testing import MockClock

from tailscale.testing import Tailnet

FEW, MANY = 30, 500
WARM_UP = 10
SLACK = 12  # a timer that is set, a message that is retained
BOUNDED = {"DiscoInbox._seen_pings", "Tables._verdicts"}  # caches that forget when they are full


def held() -> Counter[str]:
    """How many objects of ours are alive, and how much their containers owner. Counted, not weighed: bytes depend on
    what else the process did."""
    collect()
    found: Counter[str] = Counter()
    for one in gc.get_objects():
        kind = type(one)
        if module_of(one).split(".")[0] in ROOMS:
            found[kind.__qualname__] += 1
            for name, value in attributes(one):
                place = f"{kind.__qualname__}.{name}"
                if isinstance(value, dict | list | set | deque | bytearray) and place not in BOUNDED:
                    found[place] += len(value)
    return found


async def growth(deed: Callable[[], Awaitable[object]], times: int) -> Counter[str]:
    """What is held after doing it so many times more; pauses let every timer run out."""
    for _ in range(WARM_UP):
        await deed()
    await trio.sleep(600)
    before, tasks = held(), trio.lowlevel.current_statistics().tasks_living
    for _ in range(times):
        await deed()
    await trio.sleep(600)
    more = held() - before
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    return more


async def cycles(net: Tailnet, times: int) -> Counter[str]:
    """Two devices come, talk and go; only the servers live on. What a living peer remembers of others is bounded."""
    key = net.auth_key(reusable=True)

    async def cycle() -> None:
        async with net.device("a", auth_key=key) as a, net.device("b", auth_key=key) as b, echo_service(b, 80):
            assert await echoed(a, "b", 80) == b"hello"
            assert (await a.ping("b")).latency >= 0

    return await growth(cycle, times)


@pytest.mark.slow
async def test_start_stop_cycles_leave_memory_flat(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    more = await cycles(tailnet, FEW)
    assert more.total() < SLACK, more.most_common(10)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_five_hundred_cycles_leave_memory_flat(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    more = await cycles(tailnet, MANY)
    assert more.total() < SLACK, more.most_common(10)


@pytest.mark.slow
async def test_connections_by_the_hundred_leave_memory_flat(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with echo_service(b, 80):
        for _ in range(100):
            await echoed(a, "b", 80)
        more = await growth(lambda: echoed(a, "b", 80), 150)
        assert more.total() < SLACK, more.most_common(10)


async def test_what_is_kept_is_noticed(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a = await tailnet.device("a")
    kept = []

    async def listen() -> None:
        kept.append(await a.listen(0))

    more = await growth(listen, 20)
    assert more["TcpListener"] == more["TcpSockets.listeners"] == 20
    for listener in kept:
        await listener.aclose()
