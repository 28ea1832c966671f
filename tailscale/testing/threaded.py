"""A tailnet on this machine's loopback, in a thread of its own: for tests without a trio loop, or with another one.

Owns the thread, and how what an administrator does is called from outside it. The devices are those of each face:
`tailscale.testing.sync.Tailnet` and `tailscale.testing.aio.Tailnet` make them.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

import trio

from tailscale.errors import TailscaleError
from tailscale.testing.tailnet import INTRODUCTION, Tailnet

if TYPE_CHECKING:
    from types import TracebackType

    from tailscale.device import Device
    from tailscale.nodes import Node
    from tailscale.testing.certificates import Certificates
    from tailscale.testing.servers import Running

P = ParamSpec("P")
T = TypeVar("T")
STARTING = 10.0  # seconds until the servers listen
ANSWERING = 10.0  # seconds for anything that is asked of them


class Named(Protocol):
    """A device of any face."""

    @property
    def node(self) -> Node: ...


def _inside(verb: Callable[Concatenate[Tailnet, P], T]) -> Callable[Concatenate[TailnetThread, P], T]:
    """The same verb, done in the thread. It takes a millisecond and may be called under any event loop."""

    @functools.wraps(verb)
    def call(net: TailnetThread, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return net.do(functools.partial(verb, net.inner, *args, **kwargs))

    return call


class Server:
    """The control server or the relay, to be stopped and started."""

    def __init__(self, net: TailnetThread, inner: Running) -> None:
        self._net = net
        self._inner = inner

    def stop(self) -> None:
        """Gone, as if its machine were."""
        self._net.wait_for(self._inner.stop)

    def start(self) -> None:
        """There again, at the same address."""
        self._net.wait_for(self._inner.start)

    def restart(self, **options: bool) -> None:
        """Stop and start; `forget_devices=True` lets the control server lose its database."""
        self._net.wait_for(functools.partial(self._inner.restart, **options))


class TailnetThread:
    """Use it in a `with` block. The arguments are those of `tailscale.testing.Tailnet`, which runs in the thread."""

    def __init__(self, **options: Any) -> None:
        self.inner = Tailnet(real=True, **options)
        self._opened: Future[trio.lowlevel.TrioToken] = Future()
        self._closing = trio.Event()
        self._thread = threading.Thread(target=self._run, name="tailnet", daemon=True)

    # Lifetime

    def __enter__(self) -> Self:
        self._thread.start()
        self._token = self._opened.result(STARTING)
        self.control, self.relay = Server(self, self.inner.control), Server(self, self.inner.relay)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._token.run_sync_soon(self._closing.set)
        self._thread.join()

    def _run(self) -> None:
        async def main() -> None:
            async with self.inner, trio.open_nursery() as self._work:
                self._opened.set_result(trio.lowlevel.current_trio_token())
                await self._closing.wait()
                self._work.cancel_scope.cancel()

        try:
            trio.run(main)
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    def do(self, work: Callable[[], T]) -> T:
        """Call it inside the thread. Trio's own way of doing so refuses to be used under another trio loop."""

        async def call() -> T:
            return work()

        return self.wait_for(call)

    def wait_for(self, work: Callable[[], Awaitable[T]], timeout: float = ANSWERING) -> T:
        """Await it inside the thread."""
        done: Future[T] = Future()

        async def run() -> None:
            try:
                done.set_result(await work())
            except Exception as error:
                done.set_exception(error)

        self._token.run_sync_soon(self._work.start_soon, run)
        return done.result(timeout)

    def start(self, task: Callable[..., Awaitable[object]], *arguments: Any, timeout: float = ANSWERING) -> Any:
        """Have a task run inside until the tailnet ends; returns what it gives to `task_status.started`."""
        return self.wait_for(functools.partial(self._work.start, task, *arguments), timeout)

    # Who joins

    def options(self, **options: Any) -> dict[str, Any]:
        """What a device needs to join, besides what it is given."""
        needed: dict[str, Any] = {"control_url": self.control_url, "auth_key": self.auth_key()}
        if self.inner.has_certificates:
            needed["certificates"] = self.certificates.source
        return needed | options

    @property
    def certificates(self) -> Certificates:
        """The authority of a `Tailnet(certificates=True)`."""
        return self.inner.certificates

    @property
    def control_url(self) -> str:
        """For programs in other processes, too."""
        return self.inner.control.url

    def who_may_meet(self, device: Named) -> frozenset[int]:
        """Control's numbers of those whom the policy lets this one see."""
        return self.do(lambda: self.inner.control.server.visible_to(self.inner.id_of(device.node.hostname)))

    # What an administrator does

    auth_key = _inside(Tailnet.auth_key)
    policy = _inside(Tailnet.policy)
    dns = _inside(Tailnet.dns)
    approve_login = _inside(Tailnet.approve_login)
    expire = _inside(Tailnet.expire)
    remove = _inside(Tailnet.remove)
    rename = _inside(Tailnet.rename)
    readdress = _inside(Tailnet.readdress)
    set_tags = _inside(Tailnet.set_tags)
    approve_routes = _inside(Tailnet.approve_routes)


class TrioTailnet(TailnetThread):
    """For tests under trio that pytest-trio does not run, as anyio's: `async with tailnet.device("a") as a:`."""

    @asynccontextmanager
    async def device(self, hostname: str, **options: Any) -> AsyncIterator[Device]:
        """A `tailscale.Device` in the test's own loop."""
        from tailscale.device import Device

        async with Device(hostname, **self.options(**options)) as device:
            yield device


def patience() -> Callable[[], bool]:
    """Whether there is still time for devices to learn of each other."""
    deadline = time.monotonic() + INTRODUCTION
    return lambda: time.monotonic() < deadline


def knows(peers: Any, other: Named) -> bool:
    """Whether these, of a status, have a route and a path to `other`: without a path the first packet is lost."""
    try:
        return any(peer.node.id == other.node.id and peer.path for peer in peers)
    except TailscaleError:
        return True  # that one has left
