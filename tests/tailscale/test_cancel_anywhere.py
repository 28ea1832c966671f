"""Cancelled at a random checkpoint, a thousand times: the device stays usable and holds no more than before."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import trio
from tailnet_scripts import collect, echo_service, echoed, held_by, parts, until, world
from trio.testing import MockClock

import tailscale
from tailscale.testing import Tailnet

FEW, MANY = 100, 1000
EXPECTED = (tailscale.TailscaleError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)

Deed = Callable[[tailscale.Device, random.Random], Awaitable[object]]


class Cancelling(trio.abc.Instrument):
    """Cancels a scope before one particular step of its task: a checkpoint chosen by number."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, steps: int) -> None:
        self._task, self._scope, self._steps = task, scope, steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._steps -= 1
            if self._steps == 0:
                self._scope.cancel()


async def cancelled_after(steps: int, deed: Callable[[], Awaitable[object]]) -> bool:
    """Run `deed` and cancel it after so many steps. Whether it was cut short."""
    with trio.CancelScope() as scope:
        instrument = Cancelling(trio.lowlevel.current_task(), scope, steps)
        trio.lowlevel.add_instrument(instrument)
        try:
            with suppress(*EXPECTED):
                await deed()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


# What people do with a device


async def talk(a: tailscale.Device, chance: random.Random) -> None:
    async with await a.tcp_connect("b", 80, timeout=5) as stream:
        for _ in range(3):
            await stream.send_all(chance.randbytes(5000))
            await stream.receive_some()
        await stream.send_eof()
        async for _ in stream:
            pass


async def dial_closed(a: tailscale.Device, chance: random.Random) -> None:
    await a.tcp_connect("b", 81, timeout=2)


async def dial_nobody(a: tailscale.Device, chance: random.Random) -> None:
    await a.tcp_connect(chance.choice(["nobody", "192.0.2.1", "100.64.9.9"]), 81, timeout=2)


async def serve_self(a: tailscale.Device, chance: random.Random) -> None:
    async with (
        await a.listen(0) as listener,
        await a.tcp_connect("a", listener.port) as ours,
        await listener.accept() as theirs,
    ):
        await ours.send_all(b"x" * 100_000)
        await theirs.receive_some()


async def datagrams(a: tailscale.Device, chance: random.Random) -> None:
    async with await a.udp() as port:
        for _ in range(3):
            await port.send_to(b"x" * chance.choice([0, 10, 3000]), ("b", 53))
            with trio.move_on_after(2):  # a datagram may be lost while keys rotate
                await port.receive_from()


async def ping(a: tailscale.Device, chance: random.Random) -> None:
    await a.ping("b", chance.choice(["disco", "tsmp", "icmp"]), chance.choice([0, 500]), timeout=3)


async def resolve(a: tailscale.Device, chance: random.Random) -> None:
    await a.resolve(chance.choice(["b", "www.example", "nobody"]))


async def listen_to_events(a: tailscale.Device, chance: random.Random) -> None:
    stream = a.events()
    with trio.move_on_after(1):
        await stream.__anext__()


async def check_network(a: tailscale.Device, chance: random.Random) -> None:
    with trio.move_on_after(10):
        await a.netcheck()


async def change_preferences(a: tailscale.Device, chance: random.Random) -> None:
    await a.set(accept_routes=chance.random() < 0.5)
    await a.whois(str(a.ipv4))


async def log_in_again(a: tailscale.Device, chance: random.Random) -> None:
    await a.login()


DEEDS: list[Deed] = [
    *(talk, dial_closed, dial_nobody, serve_self, datagrams, ping, resolve, listen_to_events),
    *(check_network, change_preferences, log_in_again),
]


async def udp_echo(device: tailscale.Device) -> None:
    async with await device.udp(53) as port:
        while True:
            data, source = await port.receive_from()
            await port.send_to(data, source)


async def cancel_often(net: Tailnet, times: int, seed: int) -> None:
    chance = random.Random(seed)
    key = net.auth_key(reusable=True)
    a, b = await net.device("a", auth_key=key), await net.device("b")
    net.dns(nameservers=[str(b.ipv4)])
    async with echo_service(b, 80), trio.open_nursery() as nursery:
        nursery.start_soon(udp_echo, b)
        assert await echoed(a, "b", 80) == b"hello"
        await a.netcheck()
        await trio.sleep(30)
        before = held_by(a)
        cut = 0
        for number in range(times):
            deed = chance.choice(DEEDS)
            steps = 1 + int(chance.expovariate(1 / 6))
            cut += await cancelled_after(steps, lambda deed=deed: deed(a, chance))
            if number % 50 == 49:
                await until(lambda: a.status().state == "running", patience=90)
                assert await echoed(a, "b", 80) == b"hello"
        assert cut > times // 4
        await until(lambda: a.status().state == "running", patience=90)
        assert await echoed(a, "b", 80) == b"hello"
        await trio.sleep(300)
        collect()
        after = held_by(a)
        after["event readers"] = before["event readers"]
        assert after == before
        indices = parts(a).endpoint._indices
        assert len(indices.sessions) <= 3, "previous, current and next, of one peer"
        assert len(indices.pending) <= 1
        assert (await a.ping("b")).latency >= 0
        nursery.cancel_scope.cancel()


async def test_cancelled_anywhere_the_device_stays_usable(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    await cancel_often(tailnet, FEW, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 4))
async def test_cancelled_a_thousand_times_the_device_stays_usable(
    autojump_clock: MockClock, tailnet: Tailnet, seed: int
) -> None:
    await cancel_often(tailnet, MANY, seed)


async def join_and_cancel(net: Tailnet, times: int, seed: int) -> None:
    chance = random.Random(seed)
    host = world(net).network("a")
    cut = 0
    for _ in range(times):
        device = tailscale.Device.on(host, "a", control_url=net.control.url, auth_key=net.auth_key())

        async def live(device: tailscale.Device = device) -> None:
            async with device:
                await trio.sleep(1)

        cut += await cancelled_after(1 + int(chance.expovariate(1 / 8)), live)
        assert not host.udp  # type: ignore[attr-defined]
    assert cut > times // 4
    await trio.sleep(120)
    assert net.control._service is not None
    assert net.control._service.connections == 0
    a = await net.device("a")
    assert a.hostname.startswith("a")


async def test_cancelled_anywhere_while_joining_nothing_stays(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    await join_and_cancel(tailnet, 30, seed=1)


@pytest.mark.slow
async def test_cancelled_often_while_joining_nothing_stays(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    await join_and_cancel(tailnet, 300, seed=2)


async def test_cancelled_at_every_step_of_joining_and_leaving_nothing_stays(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    """One step further each time, from before the first to after the last."""
    host, key = world(tailnet).network("a"), tailnet.auth_key(reusable=True)
    before = trio.lowlevel.current_statistics().tasks_living
    for steps in count():
        device = tailscale.Device.on(host, "a", control_url=tailnet.control.url, auth_key=key)

        async def live(device: tailscale.Device = device) -> None:
            async with device:
                await trio.lowlevel.checkpoint()

        with trio.fail_after(60):
            was_cut = await cancelled_after(steps, live) if steps else await cancelled_already(live)
        assert not host.udp  # type: ignore[attr-defined]
        assert repr(device) in ("<Device 'a' new>", "<Device 'a' closed>")
        if steps and not was_cut:
            break
    assert steps > 20
    await trio.sleep(120)  # the server's side of what was cut
    assert trio.lowlevel.current_statistics().tasks_living == before


async def cancelled_already(deed: Callable[[], Awaitable[object]]) -> bool:
    with trio.CancelScope() as scope:
        scope.cancel()
        await deed()
    return scope.cancelled_caught


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_entered_after_the_deadline_a_device_lets_go_at_once(
    autojump_clock: MockClock, tmp_path: Path, seconds: float
) -> None:
    began = trio.current_time()
    with trio.CancelScope(deadline=began + seconds) as scope:
        async with tailscale.Device("a", control_url="http://127.0.0.1:9", auth_key="x", state=tmp_path):
            raise AssertionError("it was entered")
    assert scope.cancelled_caught
    assert trio.current_time() == began
    with tailscale.FileStore(tmp_path).lock():  # it was given back
        pass
