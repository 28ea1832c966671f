"""What each strategy does with two uplinks: who carries what, and that no line makes another worse than it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
import trio.testing
from tailnet_scripts import beside, echo_service, until
from uplink_scripts import Van, a_flow, a_van

from tailscale import Backup, Best, Redundant, Spread


def carried(made: Van) -> Counter[str]:
    return Counter({uplink.name: uplink.sent for uplink in made.van.uplinks})


async def moved(made: Van, seconds: float) -> Counter[str]:
    before = carried(made)
    await trio.sleep(seconds)
    return carried(made) - before


@pytest.mark.slow
async def test_redundant_hides_loss_on_both_lines(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van(paths=Redundant(2), seed=4, near=0.01, far=0.012) as made:
        await made.settle()
        for uplink in ("wlan0", "wwan0"):
            made.internet.link(f"van%{uplink}", "nas").change(loss=0.1)
        heard, socket = await made.nas.udp(7), await made.van.udp()
        sent_at: dict[bytes, float] = {}
        took: list[float] = []

        async def hear() -> None:
            while True:
                data, _ = await heard.receive_from()
                took.append(trio.current_time() - sent_at.pop(data))

        async with beside(hear):
            for number in range(1500):
                data = number.to_bytes(8, "big")
                sent_at[data] = trio.current_time()
                await socket.send_to(data, ("nas", 7))
                await trio.sleep(0.02)
            await trio.sleep(1)
        assert len(took) >= 0.985 * 1500
        assert sorted(took)[int(0.99 * len(took))] <= 0.01 + 0.005


async def test_redundant_leaves_bulk_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van(paths=Redundant(2)) as made, a_flow(made, True):
        await made.settle()
        await trio.sleep(3)
        share = await moved(made, 5)
        assert share["wwan0"] < 0.02 * share["wlan0"]
        await made.van.set(paths=Redundant(2, bulk=True))
        await trio.sleep(1)
        share = await moved(made, 5)
        assert share["wwan0"] > 0.9 * share["wlan0"]


async def test_backup_keeps_the_order_and_comes_back_to_it(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van(paths=Backup(["wwan0", "wlan0"])) as made, a_flow(made, True) as flow:
        await made.settle()
        await until(lambda: made.used == ["wwan0"], 15)
        made.block("wwan0")
        await until(lambda: made.used == ["wlan0"], 5)
        await trio.sleep(5)
        made.block("wwan0", blocked=False)
        await until(lambda: made.used == ["wwan0"], 15)
        assert flow.wrong == 0


async def test_spread_keeps_flows_apart_and_moves_those_of_a_dead_line_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_van(paths=Spread()) as made, echo_service(made.nas, 7):
        await made.settle()
        streams = [await made.van.tcp_connect("nas", 7) for _ in range(16)]

        async def talk() -> None:
            for stream in streams:
                await stream.send_all(bytes(1000))
                with trio.fail_after(10):
                    got = 0
                    while got < 1000:
                        got += len(await stream.receive_some())

        for _ in range(20):
            await talk()
        share = carried(made)
        assert min(share.values()) > 0.15 * sum(share.values())
        made.block("wlan0")
        await talk()
        await talk()
        before = carried(made)
        await talk()
        assert not (carried(made) - before)["wlan0"]
        for stream in streams:
            await stream.aclose()


async def test_a_strategy_is_by_peer_and_holds_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van() as made, a_flow(made, True):
        await made.settle()
        await trio.sleep(2)
        assert made.used == ["wlan0"]
        await made.van.set(paths={"nas": Redundant(2, bulk=True), "*": Best()})
        await trio.sleep(0.1)
        assert sorted(made.used) == ["wlan0", "wwan0"]
        await made.van.set(paths=Best())
        await trio.sleep(0.1)
        assert made.used == ["wlan0"]


async def test_a_metered_line_rests_while_another_is_as_good(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van(near=0.02, far=0.02) as made, a_flow(made, True):
        await made.settle()
        await trio.sleep(1)
        [used] = made.used
        other = "wwan0" if used == "wlan0" else "wlan0"
        await made.van.set_uplink(used, metered=True)
        await until(lambda: made.used == [other], 20)


Lines = dict[str, dict[str, float]]


def line(latency: float, loss: float = 0.0) -> dict[str, float]:
    return {"latency": latency, "loss": loss}


async def goodput(seed: int, lines: dict[str, Any], uplinks: list[str], paths: Any) -> float:
    """Bytes a second of one stream that wants a megabyte."""
    async with a_van(seed, uplinks=uplinks, paths=paths) as made:
        for uplink, faults in lines.items():
            made.change(uplink, **faults)
        async with a_flow(made, True) as flow:
            await until(lambda: all(state_of(made, one) for one in uplinks), 60)
            await trio.sleep(5)
            before = flow.received
            await trio.sleep(15)
            return (flow.received - before) / 15


# One line is nearer and loses nothing.
ONE_IS_BETTER: list[Lines] = [
    {"wlan0": line(0.005), "wwan0": line(0.05)},
    {"wlan0": line(0.15, 0.02), "wwan0": line(0.02)},
    {"wlan0": line(0.05), "wwan0": line(0.05, 0.02)},
    {"wlan0": line(0.15, 0.02), "wwan0": line(0.005)},
    {"wlan0": line(0.05), "wwan0": line(0.15, 0.005)},
]


@pytest.mark.slow
@pytest.mark.parametrize("lines", ONE_IS_BETTER)
async def test_nothing_is_worse_than_the_better_line_alone(
    lines: Lines, autojump_clock: trio.testing.MockClock
) -> None:
    better = min(lines, key=lambda uplink: (lines[uplink]["loss"], lines[uplink]["latency"]))
    alone = await goodput(1, lines, [better], Best())
    reached = {}
    for strategy in (Best(), Backup([better]), Redundant(2), Redundant(2, bulk=True)):
        reached[str(strategy)] = round(await goodput(1, lines, list(lines), strategy) / alone, 3)
    assert min(reached.values()) >= 0.95, reached


# Losses below 5 % move nobody, and only a trial of both would tell which carries more. This is not held, and said in
# docs/uplinks.md.
NOT_TOLD_APART: list[Lines] = [
    {"wlan0": line(0.1, 0.005), "wwan0": line(0.11)},
    {"wlan0": line(0.15, 0.02), "wwan0": line(0.15)},
    {"wlan0": line(0.02, 0.02), "wwan0": line(0.05)},  # the nearer one loses more
]
REACHED = 0.05


@pytest.mark.slow
async def test_of_lines_that_lose_alike_the_nearer_one_is_no_worse(autojump_clock: trio.testing.MockClock) -> None:
    lines = {"wlan0": line(0.05, 0.005), "wwan0": line(0.15, 0.005)}
    alone = max([await goodput(1, lines, [uplink], Best()) for uplink in lines])
    for strategy in (Best(), Redundant(2), Spread()):
        assert await goodput(1, lines, list(lines), strategy) >= 0.95 * alone, strategy


@pytest.mark.slow
@pytest.mark.parametrize("lines", NOT_TOLD_APART)
async def test_lines_that_are_not_told_apart_may_carry_a_tenth_of_the_better_one(
    lines: Lines, autojump_clock: trio.testing.MockClock
) -> None:
    alone = max([await goodput(1, lines, [uplink], Best()) for uplink in lines])
    reached = {}
    for strategy in (Best(), Redundant(2), Spread()):
        reached[str(strategy)] = round(await goodput(1, lines, list(lines), strategy) / alone, 3)
    assert REACHED <= min(reached.values()) < 0.95, reached


def state_of(made: Van, uplink: str) -> bool:
    return any(way.uplink == uplink and way.state == "good" for way in made.van.paths("nas") if way.kind == "direct")
