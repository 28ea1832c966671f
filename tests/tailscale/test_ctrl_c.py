"""Ctrl-C is for the program: a Device at work finishes its step, and leaves the tailnet before the program ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import trio
from tailnet_scripts import echo_service, echoed, runtime_of
from trio.testing import MockClock

from tailscale.testing import Tailnet
from ts_dataplane.engine import Engine
from ts_dataplane.paths import PathFinder
from ts_netstack.stack import Stack
from ts_netstack.tcp import TcpConnection
from ts_netstack.tcp_buffers import SendBuffer

OURS = ("/tailscale/", "/ts_")


@contextmanager
def watching_calls(look: Callable[[FrameType], None]) -> Iterator[None]:
    """`look` at every Python function of this thread as it is entered."""

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            look(frame)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def is_below(nursery: trio.Nursery | None, task: trio.lowlevel.Task) -> bool:
    while (parent := task.parent_nursery) is not None:
        if parent is nursery:
            return True
        task = parent.parent_task
    return False


@pytest.mark.parametrize("step", [Engine.receive, Engine.transmit, PathFinder.receive], ids=lambda f: f.__qualname__)
def test_ctrl_c_in_the_middle_of_a_step_still_says_goodbye(step: Any) -> None:
    left_behind: list[str] = []

    def press(frame: FrameType) -> None:
        if frame.f_code is step.__code__:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with Tailnet() as net:
            with pytest.raises(KeyboardInterrupt):
                async with net.device("a") as a, net.device("b") as b, echo_service(b, 80):
                    with watching_calls(press):
                        await a.ping("b")
                        await echoed(a, "b", 80)
            left_behind.extend(node.label for node in net.control.server.directory)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert left_behind == []


@pytest.mark.parametrize(
    "step",
    [Stack.connect, SendBuffer.append, Engine.transmit, TcpConnection.read, TcpConnection.close],
    ids=lambda f: f.__qualname__,
)
def test_ctrl_c_while_our_own_task_is_inside_the_stack_waits_for_the_next_checkpoint(step: Any) -> None:
    """The program's own calls take a Device's steps too: what is sent at once, what is read and written."""
    left_behind: list[str] = []
    pressed = trio.Event()

    async def main() -> None:
        ours = trio.lowlevel.current_task()

        def press(frame: FrameType) -> None:
            if frame.f_code is step.__code__ and trio.lowlevel.current_task() is ours:
                sys.setprofile(None)
                pressed.set()
                assert trio.lowlevel.currently_ki_protected()
                signal.raise_signal(signal.SIGINT)

        async with Tailnet() as net:
            with pytest.raises(KeyboardInterrupt):
                async with net.device("a") as a, net.device("b") as b, echo_service(b, 80):
                    await a.ping("b")
                    with watching_calls(press):
                        for _ in range(3):
                            async with await a.tcp_connect("b", 80) as stream:
                                for _ in range(3):  # who answers a burst alone is sent from here
                                    await stream.send_all(b"x")
                                    await stream.receive_some()
            left_behind.extend(node.label for node in net.control.server.directory)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert pressed.is_set()
    assert left_behind == []


async def test_no_task_of_a_device_hears_ctrl_c() -> None:
    """It would end in the middle of a step; so protected, trio hands the signal to the main task."""
    protected: set[str] = set()
    exposed: set[str] = set()
    async with Tailnet(real=True) as net, net.device("a") as a:
        nursery = runtime_of(a)._nursery

        def look(frame: FrameType) -> None:
            if any(part in frame.f_code.co_filename for part in OURS) and trio.lowlevel.in_trio_task():
                task = trio.lowlevel.current_task()
                if is_below(nursery, task):
                    (protected if trio.lowlevel.currently_ki_protected() else exposed).add(task.name)

        with watching_calls(look):
            async with net.device("b") as b, echo_service(b, 80):
                await a.ping("b")
                await echoed(a, "b", 80, b"x" * 100_000)
                await a.netcheck()
                await a.set(hostname="c")
                await net.control.restart()
                async with net.device("late"):  # has met `a`, so `a` is back
                    pass
    assert len(protected) > 10
    assert not exposed
