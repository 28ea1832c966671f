"""Start, talk, stop, again and again: memory, tasks and sockets stay where they were."""

from __future__ import annotations

import tracemalloc

import pytest
import trio
from tailnet_scripts import collect, echo_service, echoed
from trio.testing import MockClock

import tailscale
from tailscale.testing import Tailnet

FEW, MANY = 30, 500
WARM_UP = 10
KEPT_PER_CYCLE = 3000  # bytes: the server's directory, and tables of strangers that fill up to their bounds


async def cycle(net: Tailnet, b: tailscale.Device) -> None:
    async with net.device("a") as a:
        assert await echoed(a, "b", 80) == b"hello"
        assert (await a.ping("b")).latency >= 0


async def grow_by(net: Tailnet, times: int) -> int:
    """Bytes more after so many cycles than after the warm-up."""
    b = await net.device("b")
    async with echo_service(b, 80):
        for _ in range(WARM_UP):
            await cycle(net, b)
        await trio.sleep(600)
        collect()
        tracemalloc.start()
        try:
            tasks = trio.lowlevel.current_statistics().tasks_living
            for _ in range(times):
                await cycle(net, b)
            await trio.sleep(600)
            collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
    return held


async def test_start_stop_cycles_leave_memory_flat(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    assert await grow_by(tailnet, FEW) < FEW * KEPT_PER_CYCLE + 200_000


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_five_hundred_cycles_leave_memory_flat(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    assert await grow_by(tailnet, MANY) < MANY * KEPT_PER_CYCLE


async def test_connections_by_the_thousand_leave_memory_flat(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with echo_service(b, 80):
        for _ in range(100):
            await echoed(a, "b", 80)
        await trio.sleep(300)
        collect()
        tracemalloc.start()
        try:
            for _ in range(300):
                await echoed(a, "b", 80)
            await trio.sleep(300)
            collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert held < 300_000  # a kilobyte a connection; coverage adds its own to what is traced
