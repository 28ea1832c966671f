"""An exception at any await of any actor: the Device lives, says so, forgets it, and carries as before.

The exception comes where an await would have returned, chosen by the name of a part and the number of the step. Steps
inside trio's own locks and nurseries are passed over: what they promise is not ours to break.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from inspect import CORO_CREATED, getcoroutinestate

import pytest
import trio
from tailnet_scripts import actors_of, collect, echo_service, echoed, held_by, host_of, runtime_of, until
from trio.testing import MockClock

import tailscale
from tailscale.runtime.messages import NetworkChanged, NodeKeyChanged, ProbeRequested
from tailscale.runtime.supervision import FAILURES_LIMIT
from tailscale.testing import Tailnet

PARTS = (
    *("events", "netmap", "relays", "paths", "probes", "identity", "link", "udp-readers", "flusher", "timers"),
    "control",
)
SAMPLE = ("netmap", "relays", "control")
FEW = (0, 2, 7)  # steps of a part and of each task below it
MANY = range(60)
PATIENCE = 90.0


class Injected(Exception):
    """Nothing any code of ours raises or expects."""


def below(nursery: trio.Nursery) -> Iterator[trio.lowlevel.Task]:
    for task in nursery.child_tasks:
        yield task
        for inner in task.child_nurseries:
            yield from below(inner)


def is_in_trios_care(task: trio.lowlevel.Task) -> bool:
    """Woken inside `acquire` a task has the lock already; the end of a nursery raises only what its tasks did.

    Also where it waits inside an async generator, as a context manager that opens a nursery does.
    """
    code = (frame.f_code for frame, _ in task.iter_await_frames())
    return any(one.co_name in ("acquire", "_nested_child_finished") and "/trio/" in one.co_filename for one in code)


class Injecting(trio.abc.Instrument):
    """Throws at one step, counted over all tasks that are chosen, or at every one."""

    def __init__(self, is_chosen: Callable[[trio.lowlevel.Task], bool], step: int, *, always: bool = False) -> None:
        self._is_chosen = is_chosen
        self._left = step
        self._always = always
        self._seen: set[trio.lowlevel.Task] = set()
        self.thrown = 0
        self.was_cancelled = False
        self.where = ""

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if (self.thrown and not self._always) or not self._is_chosen(task):
            return
        if task not in self._seen:  # a coroutine that has not begun can catch nothing
            self._seen.add(task)
            if getcoroutinestate(task.coro) == CORO_CREATED:
                return
        if is_in_trios_care(task):
            return
        self._left -= 1
        if self._left < 0:
            self.thrown += 1
            self.was_cancelled = task._cancel_status.effectively_cancelled
            self.where = f"{task.name} at {[frame.f_code.co_qualname for frame, _ in task.iter_await_frames()][-3:]}"
            task._next_send_fn = task.coro.throw
            task._next_send = Injected(f"step of {task.name}")


@contextmanager
def injecting(instrument: Injecting) -> Iterator[None]:
    trio.lowlevel.add_instrument(instrument)
    try:
        yield
    finally:
        with suppress(KeyError):
            trio.lowlevel.remove_instrument(instrument)


def part_of(device: tailscale.Device, name: str) -> Callable[[trio.lowlevel.Task], bool]:
    """Is this the task of that part, or one of those it has begun?"""
    nursery = actors_of(device)

    def is_chosen(task: trio.lowlevel.Task | None) -> bool:
        while task is not None and task.parent_nursery is not None:
            if task.parent_nursery is nursery:
                return task.name == name
            task = task.parent_nursery.parent_task
        return False

    return is_chosen


class World:
    """Two devices that talk, and everything that gives their parts work."""

    def __init__(self, net: Tailnet, ours: tailscale.Device, peer: tailscale.Device) -> None:
        self.net, self.ours, self.peer = net, ours, peer
        self._turn = itertools.count()

    async def stir(self) -> None:
        """Some seconds in which every part has something to do."""
        turn, bus, control = next(self._turn), runtime_of(self.ours).bus, self.net.control
        bus.publish(NetworkChanged(rebound=turn % 2 == 0))
        bus.publish(ProbeRequested("stirred", full=True))
        bus.publish(NodeKeyChanged(runtime_of(self.ours).relays.private))
        control.do(control.server.rename, self.peer.node.id, f"peer{turn}")
        host_of(self.net, ("relay", "control")[turn % 2]).reset_streams()
        with trio.move_on_after(1):
            await self.carries()
        await trio.sleep(3)  # what breaks is whole again
        control.do(control.server.ping, self.ours.node.id, types="disco,TSMP,ICMP,peerapi", ip=self.peer.ipv4)
        await trio.sleep(3)

    async def carries(self) -> bool:
        with suppress(OSError, trio.BrokenResourceError):
            return await echoed(self.ours, self.peer.ipv4, 80, timeout=5) == b"hello"
        return False

    def failed(self) -> list[str]:
        return [warning.code for warning in self.ours.health if warning.code.startswith("failed-")]

    def failures(self) -> int:
        return sum(runtime_of(self.ours).supervision.statistics().failures.values())

    async def inject(self, part: str, step: int) -> Injecting:
        instrument = Injecting(part_of(self.ours, part), step)
        with injecting(instrument):
            await self.stir()
        return instrument

    async def works_again(self) -> None:
        await until(lambda: self.ours.status().state == "running", PATIENCE)
        await until(lambda: runtime_of(self.ours).relays.connected, PATIENCE)
        for _ in range(20):
            if await self.carries():
                return
            await trio.sleep(1)
        raise AssertionError("the tailnet carries nothing any more")

    async def heal(self) -> None:
        await self.works_again()
        await until(lambda: not self.failed(), PATIENCE)

    async def settle(self) -> None:
        """Until what was in use for a while is not any more."""
        await self.stir()
        await trio.sleep(120)
        assert await self.carries()

    def held(self) -> dict[str, int]:
        collect()
        return {**held_by(self.ours), "sockets": len(host_of(self.net, "ours").udp)}


@asynccontextmanager
async def world(net: Tailnet) -> AsyncIterator[World]:
    ours, peer = await net.device("ours"), await net.device("peer")
    async with echo_service(peer, 80):
        assert await echoed(ours, "peer", 80) == b"hello"
        yield World(net, ours, peer)


async def inject_often(net: Tailnet, part: str, steps: Iterable[int]) -> int:
    """At each of these steps in turn; how many of them there were."""
    thrown = told = 0
    async with world(net) as here:
        await here.settle()
        before = here.held()
        for step in steps:
            instrument = await here.inject(part, step)
            if not instrument.thrown:
                break
            thrown += 1
            told += not instrument.was_cancelled  # else the cancellation may have taken its place
            assert here.failures() >= told, f"nobody told of {instrument.where}"
            await here.heal()
        await here.settle()
        assert here.held() == before
    return thrown


@pytest.mark.slow
async def test_exception_at_any_await_of_a_part_is_survived(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with world(tailnet) as here:
        await here.settle()
        before = here.held()
        for part in PARTS:
            for step in FEW:
                instrument = await here.inject(part, step)
                assert instrument.thrown or step, f"{part} has nothing to do"
                await here.works_again()
            assert any(code.startswith("failed-") for code in here.failed()), part
        await here.heal()
        await here.settle()
        assert here.held() == before


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
async def test_exception_at_every_await_of_a_part_is_survived(
    autojump_clock: MockClock, tailnet: Tailnet, part: str
) -> None:
    assert await inject_often(tailnet, part, MANY)


@pytest.mark.parametrize(
    "part", [part if part in SAMPLE else pytest.param(part, marks=pytest.mark.slow) for part in PARTS]
)
async def test_part_that_fails_at_every_await_ends_the_device_with_a_typed_error(
    autojump_clock: MockClock, tailnet: Tailnet, part: str
) -> None:
    peer = await tailnet.device("peer")
    host, key = host_of(tailnet, "ours"), tailnet.auth_key()
    with pytest.raises(tailscale.DeviceFailed, match=f"its {part} failed {FAILURES_LIMIT} times"):
        async with tailscale.Device.on(host, "ours", control_url=tailnet.control.url, auth_key=key) as ours:
            here = World(tailnet, ours, peer)
            chosen = part_of(ours, part)
            own = Injecting(lambda task: task.name == part and chosen(task), 0, always=True)
            with injecting(own):
                for _ in range(30):
                    await here.stir()
    assert not host.udp


@pytest.mark.parametrize("step", range(0, 40, 9))
async def test_exception_while_joining_is_survived(autojump_clock: MockClock, tailnet: Tailnet, step: int) -> None:
    """Of whatever part it is that takes the step."""
    host, key = host_of(tailnet, "ours"), tailnet.auth_key()
    device = tailscale.Device.on(host, "ours", control_url=tailnet.control.url, auth_key=key)
    instrument = Injecting(is_of_a_part, step)
    with injecting(instrument):
        async with device as ours:
            assert instrument.thrown, "fewer steps than that"
            await until(lambda: ours.status().state == "running", PATIENCE)
            await until(lambda: not [one for one in ours.health if one.code.startswith("failed-")], PATIENCE)
    assert not host.udp


def is_of_a_part(task: trio.lowlevel.Task | None) -> bool:
    while task is not None and task.parent_nursery is not None:
        if task.name in PARTS:
            return True
        task = task.parent_nursery.parent_task
    return False


@pytest.mark.parametrize(
    ("inner", "told_as"),
    [
        ("RelayLink.keep", "relay-link"),
        ("RelayLink._close_when_idle", "relay-link"),
        ("DerpClient._read", "relay-link"),
        ("Pings._report_ping", "control-answers"),
        ("ControlConnection.read", "control-conversation"),
        ("SelfReport.keep_told", "control-conversation"),
    ],
)
async def test_failure_of_one_part_of_a_part_stays_there(
    autojump_clock: MockClock, tailnet: Tailnet, inner: str, told_as: str
) -> None:
    async with world(tailnet) as here:
        await trio.sleep(30)
        chosen = [part_of(here.ours, part) for part in ("relays", "control")]
        instrument = Injecting(lambda task: task.name.endswith(inner) and any(one(task) for one in chosen), 0)
        with injecting(instrument):
            await here.stir()
            await trio.sleep(60)
        assert instrument.thrown
        assert runtime_of(here.ours).supervision.statistics().failures == {told_as: 1}
        await here.heal()


async def test_what_fails_in_a_senders_flush_is_not_the_senders(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tailnet) as here, await here.ours.tcp_connect("peer", 80) as stream:
        dataplane = runtime_of(here.ours).dataplane
        await stream.send_all(b"one")
        assert await stream.receive_some() == b"one"
        transmit, failed_in = dataplane.engine.transmit, []

        def fail_once(now: float) -> None:
            failed_in.append(trio.lowlevel.current_task())
            monkeypatch.setattr(dataplane.engine, "transmit", transmit)
            raise Injected

        monkeypatch.setattr(dataplane.engine, "transmit", fail_once)
        await stream.send_all(b"two")
        assert failed_in == [trio.lowlevel.current_task()], "not in this task: this test shows nothing"
        assert await stream.receive_some() == b"two"
        assert runtime_of(here.ours).supervision.statistics().failures == {"flusher": 1}


async def test_relay_that_restarts_without_end_fails_nothing(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """A dial that met a closing listener once ended both devices with a bare ClosedResourceError."""
    async with world(tailnet) as here:
        for number in range(50):
            await tailnet.relay.stop()
            await trio.sleep(number % 7 * 0.008)
            await tailnet.relay.start()
            await trio.sleep(number % 5 * 0.025)
        await here.heal()
        assert here.failures() == 0
