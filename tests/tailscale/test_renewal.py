"""Node keys that run out: renewed in time and without a lost connection, or told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from tailnet_scripts import echo_service, runtime_of, until
from trio.testing import MockClock

import tailscale
from tailscale.testing import Tailnet
from ts_control.wire_register import RegisterResponse

LIFETIME = 3600.0


@pytest.fixture
async def short_lived() -> AsyncIterator[Tailnet]:
    async with Tailnet(key_lifetime=LIFETIME) as net:
        yield net


def node_key(device: tailscale.Device) -> object:
    assert device.netmap is not None
    return device.netmap.self_node.key


def codes(device: tailscale.Device) -> set[str]:
    return {warning.code for warning in device.health}


async def echoes(stream: tailscale.TcpStream, text: bytes) -> bytes:
    await stream.send_all(text)
    got = b""
    while len(got) < len(text):
        got += await stream.receive_some()
    return got


@pytest.mark.slow
async def test_connections_outlive_a_renewed_key(autojump_clock: MockClock, short_lived: Tailnet) -> None:
    key = short_lived.auth_key(reusable=True)
    a, b = await short_lived.device("a", auth_key=key), await short_lived.device("b", auth_key=key)
    keys = {node_key(a)}
    async with echo_service(b, 80), await a.tcp_connect("b", 80) as stream:
        for number in range(36):
            await trio.sleep(LIFETIME / 12)
            assert await echoes(stream, b"%d" % number) == b"%d" % number
            assert a.state == b.state == "running"
            keys.add(node_key(a))
    assert len(keys) >= 3
    assert not codes(a)


async def test_while_somebody_is_asked_the_old_key_carries_on(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    asked: list[str] = []
    a = await tailnet.device("a", on_login_url=asked.append)
    b = await tailnet.device("b")
    before = node_key(a)
    async with echo_service(b, 80), await a.tcp_connect("b", 80) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(a.login)
        await until(lambda: asked)
        for _ in range(5):
            await trio.sleep(40)
            assert await echoes(stream, b"still here") == b"still here"
        assert runtime_of(a).control.machine.credentials.node.public == before
        tailnet.approve_login(asked[-1])
        await until(lambda: node_key(a) != before)
        assert await echoes(stream, b"after") == b"after"


async def test_a_spent_key_renews_nothing_and_says_so_in_time(autojump_clock: MockClock, short_lived: Tailnet) -> None:
    a = await short_lived.device("a")
    before = node_key(a)
    await trio.sleep(LIFETIME * 0.95)
    (warning,) = [warning for warning in a.health if warning.code == "key-expires-soon"]
    assert "could not be renewed" in warning.sentence
    assert "device.login()" in warning.remedy
    assert (a.state, node_key(a)) == ("running", before)
    await trio.sleep(LIFETIME * 0.1)
    assert a.state == "expired"


async def test_without_a_key_the_end_is_told_before_it_comes(autojump_clock: MockClock, short_lived: Tailnet) -> None:
    store = tailscale.MemoryStore()
    async with short_lived.device("a", state=store, ephemeral=False):
        pass
    async with short_lived.device("a", state=store, ephemeral=False, auth_key="") as a:
        await trio.sleep(LIFETIME * 0.95)
        assert "nothing was given to renew it by" in next(w.sentence for w in a.health if w.code == "key-expires-soon")


async def test_answer_that_is_lost_is_asked_for_again(autojump_clock: MockClock, short_lived: Tailnet) -> None:
    key = short_lived.auth_key(reusable=True)
    a = await short_lived.device("a", auth_key=key)
    machine = runtime_of(a).control.machine
    request = machine.begin_renewal(key)
    assert request is not None
    assert machine.begin_renewal(key) is None, "one at a time"
    machine.on_renewal_lost()
    assert machine.asks_about_next_key
    await short_lived.control.restart()
    await until(lambda: a.state == "running" and machine.credentials.next_node is None, 60)
    assert machine.credentials.is_registered


async def test_a_login_that_comes_between_wins(autojump_clock: MockClock, short_lived: Tailnet) -> None:
    key = short_lived.auth_key(reusable=True)
    a = await short_lived.device("a", auth_key=key)
    machine = runtime_of(a).control.machine
    assert machine.begin_renewal(key) is not None
    await a.login()
    won = machine.credentials.node
    assert machine.on_renewed(RegisterResponse(machine_authorized=True)) == "another login came between"
    machine.on_renewal_lost()
    machine.on_renewal_refused()
    assert machine.credentials.node == won
    await until(lambda: a.state == "running" and node_key(a) == won.public)


@pytest.mark.slow
async def test_a_function_that_fails_ends_no_running_device(autojump_clock: MockClock, short_lived: Tailnet) -> None:
    keys = [short_lived.auth_key()]
    a = await short_lived.device("a", auth_key=keys.pop)
    await trio.sleep(LIFETIME * 0.95)
    assert "the program's own function raised IndexError" in next(
        w.sentence for w in a.health if w.code == "key-expires-soon"
    )
    keys.append(short_lived.auth_key())
    await until(lambda: not codes(a), LIFETIME)
    assert a.state == "running"
