"""Start, talk, stop, again and again: memory and tasks stay where they were."""

from __future__ import annotations

import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
import trio
from coverage import Coverage
from tailnet_scripts import collect, echo_service, echoed
from trio.testing import MockClock

from tailscale.testing import Tailnet

pytestmark = pytest.mark.skipif(Coverage.current() is not None, reason="coverage's own memory would be measured")

FEW, MANY = 30, 500
WARM_UP = 10
SLACK = 60_000  # bytes: timers, caches and trio's own lists breathe
KEPT_PER_CYCLE = 600


async def growth(deed: Callable[[], Awaitable[object]], times: int) -> int:
    """Bytes that are held after doing it so many times more; pauses let every timer run out."""
    tracemalloc.start()
    try:
        for _ in range(WARM_UP):
            await deed()
        await trio.sleep(600)
        collect()
        before, tasks = tracemalloc.get_traced_memory()[0], trio.lowlevel.current_statistics().tasks_living
        for _ in range(times):
            await deed()
        await trio.sleep(600)
        collect()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


async def cycles(net: Tailnet, times: int) -> int:
    """Two devices come, talk and go; only the servers live on. What a living peer remembers of others is bounded."""
    key = net.auth_key(reusable=True)

    async def cycle() -> None:
        async with net.device("a", auth_key=key) as a, net.device("b", auth_key=key) as b, echo_service(b, 80):
            assert await echoed(a, "b", 80) == b"hello"
            assert (await a.ping("b")).latency >= 0

    return await growth(cycle, times)


async def test_start_stop_cycles_leave_memory_flat(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    assert await cycles(tailnet, FEW) < SLACK + FEW * KEPT_PER_CYCLE


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_five_hundred_cycles_leave_memory_flat(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    assert await cycles(tailnet, MANY) < SLACK + MANY * KEPT_PER_CYCLE


async def test_connections_by_the_hundred_leave_memory_flat(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with echo_service(b, 80):
        for _ in range(100):
            await echoed(a, "b", 80)
        assert await growth(lambda: echoed(a, "b", 80), 150) < SLACK
