"""`device.events()`: every kind of fact, from the moment it was asked for, and no silent loss."""

from __future__ import annotations

import gc
from datetime import timedelta

import pytest
import trio
from tailnet_scripts import echo_service, echoed, runtime_of, until, world
from trio.testing import MockClock

import tailscale
from tailscale import events
from tailscale.runtime.bus import Message
from tailscale.runtime.messages import WarningsChanged
from tailscale.testing import Tailnet


async def gathered(stream: events.EventStream, seconds: float = 5.0) -> list[events.Event]:
    """Everything that arrives within some time."""
    found: list[events.Event] = []
    with trio.move_on_after(seconds):
        async for event in stream:
            found.append(event)  # noqa: PERF401 - what came before the time is up counts
    return found


def of_kind(found: list[events.Event], kind: type[events.Event]) -> list[events.Event]:
    return [event for event in found if isinstance(event, kind)]


async def test_peers_come_change_and_go(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a = await tailnet.device("a")
    stream = a.events()
    async with tailnet.device("b", ephemeral=False) as b:
        tailnet.rename(b, "carol")
        await trio.sleep(2)
    found = await gathered(stream, 30)
    up = of_kind(found, tailscale.PeerUp)[0]  # it appeared; another may say that it came online
    assert up.node.hostname == "b"
    renames = [
        e for e in of_kind(found, tailscale.PeerChanged) if e.before.hostname == "b" and e.node.hostname == "carol"
    ]
    assert renames
    assert of_kind(found, tailscale.PeerDown)[-1].node.hostname == "carol"


async def test_paths_states_and_health_are_told(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    stream = a.events()
    async with echo_service(b, 80):
        await echoed(a, "b", 80)
    await tailnet.control.stop()
    await trio.sleep(60)
    await tailnet.control.start()
    await trio.sleep(30)
    found = await gathered(stream)
    assert any(e.path.startswith("direct ") and e.node.hostname == "b" for e in of_kind(found, tailscale.PathChanged))
    states = [e.state for e in of_kind(found, tailscale.StateChanged)]
    assert "offline" in states
    assert states[-1] == "running"
    health = [(e.code, e.active) for e in of_kind(found, tailscale.HealthChanged)]
    assert health.index(("control-unreachable", True)) < health.index(("control-unreachable", False))


async def test_key_that_expires_soon_is_announced_once(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a = await tailnet.device("a")
    stream = a.events()
    server = tailnet.control.server
    at = world(tailnet).wall_clock() + timedelta(days=3).total_seconds()
    tailnet.control.do(server.set_key_expiry, tailnet.id_of(a), at)
    await trio.sleep(1)
    tailnet.control.do(server.set_tags, tailnet.id_of(a), ["tag:x"])
    expiring = of_kind(await gathered(stream), tailscale.KeyExpiring)
    assert [e.at.timestamp() for e in expiring] == [pytest.approx(at, abs=1)]


async def test_slow_reader_is_told_how_much_it_missed(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a = await tailnet.device("a")
    slow, fast = a.events(), a.events()
    for number in range(events.QUEUE_LIMIT + 44):
        runtime_of(a).watching.hear(_warnings(number))
        assert isinstance(await fast.__anext__(), tailscale.HealthChanged)
    first = await slow.__anext__()
    assert first == tailscale.Lagged(44)
    rest = await gathered(slow)
    assert len(rest) == events.QUEUE_LIMIT
    assert of_kind(rest, tailscale.Lagged) == []


def _warnings(number: int) -> Message:
    """One more kind of trouble each time, none of them over: one event."""
    codes = [f"test-{seen}" for seen in range(number + 1)]
    return WarningsChanged({code: tailscale.HealthWarning(code, "something", "nothing") for code in codes})


async def test_stream_that_is_forgotten_costs_nothing(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a = await tailnet.device("a")

    async def look() -> None:
        with trio.move_on_after(0.1):
            async for _ in a.events():
                break

    for _ in range(10):
        await look()
    gc.collect()
    assert len(runtime_of(a).readers) <= 1, "the last one may hang in trio's last exception"


async def test_reader_that_waits_hears_the_end(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    ended: list[bool] = []

    async def follow(device: tailscale.Device) -> None:
        async for _ in device.events():
            pass
        ended.append(True)

    async with trio.open_nursery() as nursery:
        async with tailnet.device("a") as a:
            nursery.start_soon(follow, a)
            await trio.sleep(1)
        with trio.fail_after(1):
            await until(lambda: ended)


async def test_login_address_is_told_but_not_in_any_repr(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    keys = ["", tailnet.auth_key()]
    a = await tailnet.device("a", auth_key=keys.pop)
    stream = a.events()
    tailnet.expire(a)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.login)
        found = await gathered(stream, 20)
        (needed, *_) = of_kind(found, tailscale.LoginNeeded)
        assert isinstance(needed, tailscale.LoginNeeded)
        assert "/register/" in needed.url
        assert needed.url not in repr(found)
        assert "register/" not in repr(found)
        tailnet.approve_login(needed.url)
    await until(lambda: a.status().state == "running")
