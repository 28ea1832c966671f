"""What tests of the daemon share: a tailnet on loopback in another thread, and daemons in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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

ECHO_PORT, PATIENCE = 7, 40.0


@dataclass
class World:
    """A tailnet with one peer, `db`, that echoes on port 7. Its loop lives in a thread of its own."""

    url: str = ""
    auth_key: str = ""
    net: Any = None
    db: Any = None
    token: Any = None
    nursery: Any = None
    daemons: list[Daemon] = field(default_factory=list)

    def within(self, verb: Callable[..., Any], *arguments: Any) -> Any:
        """Have the loop run an async function."""
        return trio.from_thread.run(verb, *arguments, trio_token=self.token)

    @contextmanager
    def daemon(self, state: Path, *, run: Any = run_hosted, **more: Any) -> Iterator[Daemon]:
        """One that has joined."""
        options = {"hostname": "keeper", "control_url": self.url, "auth_key": self.auth_key}
        make = partial(Device, state=state)
        daemon = Daemon(places(state), make, run, wishes=Wishes(options=options), **more)
        ended = threading.Event()

        async def live(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            try:
                await daemon.run(task_status=task_status)
            finally:
                ended.set()

        async def start() -> None:
            with trio.fail_after(PATIENCE):
                await self.nursery.start(live)
                await daemon.keeper.settle()

        self.within(start)
        try:
            yield daemon
        finally:
            self.token.run_sync_soon(daemon.end)
            assert ended.wait(PATIENCE)


@contextmanager
def world() -> Iterator[World]:
    made, ready = World(), threading.Event()
    scopes: list[trio.CancelScope] = []

    async def echo(stream: trio.abc.HalfCloseableStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async def live() -> None:
        with trio.CancelScope() as scope:
            async with Tailnet(real=True) as net, trio.open_nursery() as nursery:
                db: Device = await net.device("db")
                nursery.start_soon(trio.serve_listeners, echo, [await db.listen(ECHO_PORT)])
                made.url, made.auth_key, made.net = net.control.url, net.auth_key(reusable=True), net
                made.db = db
                made.token, made.nursery = trio.lowlevel.current_trio_token(), nursery
                scopes.append(scope)
                ready.set()
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(live,))
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        yield made
    finally:
        made.token.run_sync_soon(scopes[0].cancel)
        thread.join(PATIENCE)


def client_of(daemon: Daemon) -> Client:
    return Client(daemon.places.socket)
