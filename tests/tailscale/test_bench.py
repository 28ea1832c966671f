"""`device.bench`: what is measured, who may ask for it, and what is told where nobody answers."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import tailscale
import tailscale.sync
from tailscale import BenchResult, Device, RoundTrips
from tailscale.measuring.answering import CAPABILITY, MOST_OF_ONE, PATH
from tailscale.testing import Tailnet
from tailscale.testing.threaded import TailnetThread

RATE = 1_000_000.0  # bytes a second of the line
DELAY = 0.01


async def pair(net: Tailnet, **options: Any) -> tuple[Device, Device]:
    """With a line between them that takes its time, and no way around it."""
    here, there = await net.device("here", **options), await net.device("there")
    net.link("here", "there", latency=DELAY, rate=RATE)
    while here.peer_status("there").path.kind != "direct":
        await here.ping("there")
    return here, there


async def test_rates_and_round_trips_are_those_of_the_line(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        here, _ = await pair(net)
        heard: list[tuple[str, float]] = []
        began = trio.current_time()
        result = await here.bench("there", seconds=2, streams=2, tell=lambda *told: heard.append(told))
        assert trio.current_time() - began < 10  # with what fills queues
        assert result.up is not None
        assert result.down is not None
        assert 0.6 * RATE < result.up < RATE
        assert 0.6 * RATE < result.down < RATE
        assert result.idle is not None
        assert result.loaded is not None
        assert result.idle.median == pytest.approx(2 * DELAY, rel=0.2)
        assert result.loaded.median > result.idle.median
        assert (result.peer, result.streams, result.why, result.uplinks) == ("there", 2, "", {})
        assert result.path.startswith("direct ")
        assert [phase for phase, _ in heard] == ["idle", "down", "up", ""]
        assert heard[-1][1] == 1.0
        one_way = await here.bench("there", seconds=1, direction="up")
        assert (one_way.down, one_way.up is not None) == (None, True)
        assert json.loads(json.dumps(result.to_dict()))["idle"]["count"] > 10
        assert "Mbit/s" in str(result)


async def test_who_is_of_another_user_needs_a_grant(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    here, _ = await pair(tailnet, auth_key=tailnet.auth_key(tags=["tag:ci"]))
    refused = await here.bench("there", seconds=1)
    assert (refused.up, refused.down, refused.loaded) == (None, None, None)
    assert refused.idle is not None
    assert refused.idle.count == 10
    assert CAPABILITY in refused.why
    everything = {"src": ["*"], "dst": ["*"], "ip": ["*"]}
    grant = {"src": ["tag:ci"], "dst": ["*"], "app": {CAPABILITY: [{}]}}
    tailnet.policy({"tagOwners": {"tag:ci": []}, "grants": [everything, grant]})
    await trio.sleep(1)
    assert (await here.bench("there", seconds=1, direction="down")).down


async def test_who_has_no_peer_api_or_another_is_pinged(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    here, _ = await tailnet.device("here"), await tailnet.device("bare", peerapi=False)
    assert "it has no peer API" in (await here.bench("bare", seconds=1)).why
    with pytest.raises(tailscale.NoSuchPeer):
        await here.bench("nobody")
    for wrong in ({"seconds": 0}, {"seconds": 61}, {"streams": 0}, {"streams": 17}, {"direction": "across"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            await here.bench("bare", **wrong)


async def ask(device: Device, line: str) -> tuple[int, tailscale.TcpStream]:
    stream = await device.tcp_connect(device.peers["there"].addresses[0], 56_001)
    head = f"{line} HTTP/1.1\r\nHost: peer\r\nConnection: upgrade\r\nUpgrade: measure\r\n\r\n"
    await stream.send_all(head.encode())
    return int((await stream.receive_some()).split()[1]), stream


async def answer_to(device: Device, line: str) -> int:
    status, stream = await ask(device, line)
    stream.abort()
    return status


async def test_what_is_asked_for_is_bounded(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    here, there = await pair(tailnet)
    numbers = ("0", "61", "1e9", "-1", "nan", "9" * 9)
    for query in ("", "?way=up", "?way=x&seconds=1", *(f"?way=up&seconds={number}" for number in numbers)):
        assert await answer_to(here, f"POST {PATH}{query}") == 400, query
    assert await answer_to(here, f"GET {PATH}?way=up&seconds=1") == 405
    held = [await ask(here, f"POST {PATH}?way=up&seconds=5") for _ in range(MOST_OF_ONE)]
    assert {status for status, _ in held} == {101}
    assert await answer_to(here, f"POST {PATH}?way=up&seconds=5") == 503
    assert there.status().counters.drops["peerapi.measurements_full"] == 1
    assert (await here.bench("there", seconds=1)).why.endswith("this node measures with others already")
    await trio.sleep(16)  # who says nothing is not waited for
    assert await answer_to(here, f"POST {PATH}?way=up&seconds=5") == 101
    for _, stream in held:
        stream.abort()


async def test_a_measurement_that_is_cut_off_leaves_nothing(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    here, there = await pair(tailnet)
    for moment in (0.01, 0.5, 1.05, 2.5):
        with trio.move_on_after(moment):
            await here.bench("there", seconds=30, streams=3)
    await trio.sleep(60)
    assert not here.flows()
    assert not there.flows()


def test_other_faces_measure_too() -> None:
    with TailnetThread() as net:
        net.wait_for(partial(joined, net.inner, "there"))
        with tailscale.sync.Device("here", control_url=net.control_url, auth_key=net.auth_key()) as here:
            result = here.bench("there", seconds=0.1)
            assert isinstance(result, BenchResult)
            assert isinstance(result.idle, RoundTrips)
            assert result.up
            assert result.down


async def joined(net: Tailnet, name: str) -> Device:
    return await net.device(name)
