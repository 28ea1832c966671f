"""An uplink dies without a word, and a stream goes on: how long it stands still, and how often the path changes."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing
from uplink_scripts import UPLINKS, Van, a_flow, a_van

SILENT_GAP = 0.5
OWN_PATIENCE = 4.2  # of a device without uplinks: a heartbeat, a second of doubt, and the round trips
DEATHS = 50 if os.environ.get("DRAWS") == "all" else 8  # each way


async def failed_over(made: Van, *, upward: bool, phase: float = 0.0) -> float:
    """The longest pause of a stream around the death of the uplink in use."""
    async with a_flow(made, upward) as flow:
        await made.settle()
        await trio.sleep(3 + phase)
        assert made.used == ["wlan0"]
        made.changes.clear()
        died_at = trio.current_time()
        made.block("wlan0")
        await trio.sleep(4)
        assert flow.wrong == 0
        assert made.used == ["wwan0"]
        assert [(one.path.uplink, one.reason) for one in made.changes] == [("wwan0", "silent")]
        assert made.changes[0].gap is not None
        return flow.longest_gap(died_at)


@pytest.mark.parametrize("upward", [True, False])
async def test_a_stream_outlives_the_silent_death_of_its_uplink(
    upward: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_van() as made:
        assert await failed_over(made, upward=upward) <= SILENT_GAP


@pytest.mark.slow
@pytest.mark.parametrize("upward", [True, False])
async def test_no_death_costs_more_than_half_a_second_whenever_it_comes(
    upward: bool, autojump_clock: trio.testing.MockClock
) -> None:
    gaps = []
    for seed in range(DEATHS):
        async with a_van(seed) as made:
            gaps.append(await failed_over(made, upward=upward, phase=seed * 3.1 / DEATHS))  # all over a heartbeat
    print(f"longest gaps of {DEATHS} deaths: {sorted(gaps)[-3:]}")
    assert max(gaps) <= SILENT_GAP, gaps


@pytest.mark.slow
@pytest.mark.parametrize("upward", [True, False])
@pytest.mark.parametrize("phase", [0.0, 1.6])
async def test_a_machine_without_uplinks_keeps_its_own_patience(
    upward: bool, phase: float, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_van(home=()) as made, a_flow(made, upward) as flow:
        await made.settle()
        await trio.sleep(2 + phase)
        died_at = trio.current_time()
        made.internet.link("nas", "van%wlan0").change(udp_blocked=True)
        await trio.sleep(6)
        assert flow.longest_gap(died_at) <= OWN_PATIENCE
        assert flow.wrong == 0


@pytest.mark.slow
async def test_it_comes_back_once_when_the_uplink_does(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van() as made, a_flow(made, True):
        await made.settle()
        made.block("wlan0")
        await trio.sleep(10)
        made.changes.clear()
        made.block("wlan0", blocked=False)
        await trio.sleep(4.5)
        assert made.used == ["wwan0"]
        await trio.sleep(7)
        assert made.used == ["wlan0"]
        assert [one.reason for one in made.changes] == ["better"]


@pytest.mark.slow
async def test_an_uplink_that_comes_and_goes_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van() as made, a_flow(made, True) as flow:
        await made.settle()
        made.changes.clear()
        began = trio.current_time()
        for number in range(300):
            made.block("wlan0", blocked=number % 2 == 0)
            await trio.sleep(0.2)
        assert len(made.changes) <= 6
        assert flow.longest_gap(began) <= 1.0
        assert flow.wrong == 0


@pytest.mark.slow
async def test_where_only_the_relay_is_left_a_stream_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van() as made:
        made.block("wwan0")
        async with a_flow(made, True) as flow:
            await trio.sleep(12)
            assert made.used == ["wlan0"]
            died_at = trio.current_time()
            made.block("wlan0")
            await trio.sleep(6)
            assert made.used == [""]
            assert flow.longest_gap(died_at) <= 1.5
            assert flow.wrong == 0


@pytest.mark.parametrize("there", [True, False])
async def test_a_way_that_is_blocked_in_one_direction_is_left(
    there: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_van() as made, a_flow(made, True) as flow:
        await made.settle()
        await trio.sleep(2)
        died_at = trio.current_time()
        ends = ("van%wlan0", "nas") if there else ("nas", "van%wlan0")
        made.internet.link(*ends).change(udp_blocked=True)
        await trio.sleep(6)
        assert made.used == ["wwan0"]
        assert flow.longest_gap(died_at) <= 1.0


async def test_status_names_the_uplink_of_each_path(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van() as made:
        await made.settle()
        [peer] = made.van.status().peers
        assert peer.path.uplink == "wlan0"
        assert str(peer.path).endswith(" via wlan0")


async def test_an_interface_that_goes_down_costs_no_patience(autojump_clock: trio.testing.MockClock) -> None:
    async with a_van() as made, a_flow(made, True) as flow:
        await made.settle()
        made.changes.clear()
        down_at = trio.current_time()
        made.internet.find("van").set_up("wlan0", False)
        await trio.sleep(3)
        assert made.used == ["wwan0"]
        assert made.changes[0].reason in ("error", "network")
        assert flow.longest_gap(down_at) <= 0.15
        assert [(one.name, one.up) for one in made.van.uplinks] == [("wlan0", False), ("wwan0", True)]


@pytest.mark.slow
async def test_a_healthy_path_costs_no_packet_more_and_a_standby_one_in_ten_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sent: dict[str, int] = {}
    async with a_van() as made, a_flow(made, True):
        await made.settle()
        await trio.sleep(20)
        carry = made.internet.carry

        def counting(source, destination, datagrams, drops):
            if made.internet.has(source[0]) and datagrams and datagrams[0][:3] == b"TS\xf0":
                sent[source[0]] = sent.get(source[0], 0) + len(datagrams)
            carry(source, destination, datagrams, drops)

        made.internet.carry = counting  # type: ignore[method-assign]
        await trio.sleep(60)
    addresses = dict(made.internet.find("van").uplinks)
    assert set(addresses) == set(UPLINKS)
    # Heartbeats of both sides, asked and answered, as without uplinks.
    assert sent.get(addresses["wlan0"], 0) <= 2 * 20 + 8  # path MTU discovery asks now and then
    # A ping and the answer to the other side's.
    assert sent.get(addresses["wwan0"], 0) <= 2 * 7 + 2
