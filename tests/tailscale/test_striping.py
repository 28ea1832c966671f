"""One stream of a device by two uplinks at once: how much faster it is, and what ends it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from tailnet_scripts import beside, until
from uplink_scripts import Flow, Van, a_van, pattern, take_all

from tailscale import Best, Stripe, TcpStream
from tailscale.metrics import exposition

PIECE = 251 << 10


async def send_all_there_is(stream: TcpStream) -> None:
    while True:
        await stream.send_all(pattern(0, PIECE))


@asynccontextmanager
async def bulk(made: Van) -> AsyncIterator[Flow]:
    """As much as goes from the van to home."""
    flow = Flow()
    listener = await made.nas.listen(9)

    async def serve(stream: TcpStream) -> None:
        async with stream:
            await take_all(stream, flow)

    async with (
        beside(functools.partial(trio.serve_listeners, serve, [listener])),
        await made.van.tcp_connect("nas", 9) as stream,
        beside(functools.partial(send_all_there_is, stream)),
    ):
        yield flow


async def rate(made: Van, flow: Flow, seconds: float) -> float:
    before = flow.received
    await trio.sleep(seconds)
    return (flow.received - before) / seconds


def narrow(made: Van, mbit: float = 4, **trips: float) -> None:
    for uplink, trip in {"wlan0": 0.02, "wwan0": 0.045, **trips}.items():
        made.change(uplink, latency=trip / 2)
        made.internet.link(f"van%{uplink}", "nas").change(rate=mbit * 1e6 / 8, queue=max(int(mbit * 1e6 / 80), 40_000))


def carried(made: Van) -> Counter[str]:
    return Counter({uplink.name: uplink.sent for uplink in made.van.uplinks})


@pytest.mark.slow
async def test_one_stream_is_as_fast_as_both_lines_together(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van(paths=Best()) as made:
        narrow(made)
        await made.settle()
        async with bulk(made) as flow:
            await trio.sleep(1)
            alone = await rate(made, flow, 2)
            await made.van.set(paths=Stripe())
            await trio.sleep(1)
            both = await rate(made, flow, 2)
            assert both >= 1.6 * alone
            await made.van.set(paths=Best())
            await trio.sleep(0.5)
            before = carried(made)
            await trio.sleep(1)
            moved = carried(made) - before
            assert min(moved["wlan0"], moved["wwan0"]) < 0.1 * max(moved.values())
            assert flow.wrong == 0


async def test_a_line_that_is_far_slower_to_answer_is_left_to_others(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van(paths=Stripe()) as made:
        narrow(made, mbit=4, wwan0=0.3)
        await made.settle()
        async with bulk(made) as flow:
            await trio.sleep(1)
            before = carried(made)
            await trio.sleep(1)
            moved = carried(made) - before
            assert min(moved["wlan0"], moved["wwan0"]) < 0.1 * max(moved.values())
            assert flow.wrong == 0


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["wlan0", "wwan0"])
async def test_a_stream_outlives_the_silent_death_of_one_of_its_lines(
    dies: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_van(paths=Stripe()) as made:
        narrow(made, mbit=4)
        await made.settle()
        async with bulk(made) as flow:
            await trio.sleep(2)
            at = trio.current_time()
            made.block(dies)
            await trio.sleep(4)
            assert flow.longest_gap(at) < 1.5
            await until(lambda: any(w.uplink == dies and w.state == "dead" for w in made.van.paths("nas")), 10)
            made.block(dies, blocked=False)
            before = carried(made)
            await until(lambda: (carried(made) - before)[dies] > 500_000, 60)
            assert flow.wrong == 0


@pytest.mark.slow
async def test_keys_change_while_a_stream_is_divided(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van(paths=Stripe()) as made:
        narrow(made, mbit=0.4)
        await made.settle()
        async with bulk(made) as flow:
            await trio.sleep(130)  # WireGuard's keys are two minutes old
            assert await rate(made, flow, 10) > 0.6 * 0.4e6 / 8
            assert flow.wrong == 0


@pytest.mark.slow
async def test_a_line_that_loses_much_is_left_and_that_is_counted(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van(paths=Stripe(), seed=3) as made:
        narrow(made, mbit=4)
        await made.settle()
        async with bulk(made) as flow:
            await trio.sleep(2)
            made.change("wwan0", loss=0.2)
            await until(lambda: '_fallbacks_total{reason="loss"} 1' in exposition(made.van), 30)
            before = carried(made)
            await trio.sleep(2)
            moved = carried(made) - before
            assert moved["wwan0"] < 0.1 * moved["wlan0"]
            assert flow.wrong == 0
