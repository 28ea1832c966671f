"""What tests of the daemon share: a tailnet on loopback in another thread, and daemons in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tailscale.cli.hosted import run_hosted
from tailscale.daemon.client import Client
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.keeper import Wishes
from tailscale.daemon.places import places
from tailscale.device import Device
from tailscale.testing import Tailnet
from tailscale.testing.threaded import TailnetThread

ECHO_PORT, PATIENCE = 7, 40.0


class World:
    """A tailnet with one peer, `db`, that echoes on port 7. Its loop lives in a thread of its own."""

    def __init__(self, thread: TailnetThread) -> None:
        self.thread = thread
        self.net = thread.inner
        self.url, self.auth_key = thread.control_url, thread.auth_key(reusable=True)
        self.db: Device = thread.wait_for(partial(joined, self.net, "db"))
        thread.start(trio.serve_listeners, echo, [self.within(self.db.listen, ECHO_PORT)])

    def within(self, verb: Callable[..., Any], *arguments: Any) -> Any:
        """Have the loop run an async function."""
        return self.thread.wait_for(partial(verb, *arguments), PATIENCE)

    @contextmanager
    def daemon(self, state: Path, *, run: Any = run_hosted, auth_key: str = "", **more: Any) -> Iterator[Daemon]:
        """One that has joined."""
        options = {"hostname": "keeper", "control_url": self.url, "auth_key": auth_key or self.auth_key}
        make = partial(Device, state=state)
        daemon = Daemon(places(state), make, run, wishes=Wishes(options=options), **more)
        ended = threading.Event()

        async def live(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            try:
                await daemon.run(task_status=task_status)
            finally:
                ended.set()

        self.thread.start(live, timeout=PATIENCE)
        self.within(daemon.keeper.settle)
        try:
            yield daemon
        finally:
            self.thread.do(daemon.end)
            assert ended.wait(PATIENCE)


async def joined(net: Tailnet, name: str) -> Device:
    return await net.device(name)


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


@contextmanager
def world() -> Iterator[World]:
    with TailnetThread(certificates=True) as thread:
        yield World(thread)


def client_of(daemon: Daemon) -> Client:
    return Client(daemon.places.socket)
