"""`Serve`: what is published, said in Python or read from a ServeConfig, and run on every kind of Device.

Owns the config, the apps of this process and who is let in; a change makes another plan, which counts at once. What
runs is `publisher.py`, always in the device's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import trio

from tailscale._faces import AsyncWithOnly, wrong_face
from tailscale.device import Device
from tailscale.errors import DeviceClosed, TailscaleError
from tailscale.http.loop_app import LoopApp
from tailscale.http.reverse import ReverseProxy
from tailscale.http1.limits import Limits
from tailscale.serve.config import OWN_HOST, BadServeConfig, ServeConfig, clean_mount, handler_of
from tailscale.serve.plan import Allow, Plan, plan_of
from tailscale.serve.publisher import Publisher, ServeStatistics, urls_of
from tailscale.serve.secure import Certificates, Given, OfDevice
from tailscale.serve.targets import App, Forward, Mounts, target_of, tcp
from tailscale.threads.awaiting import ended
from tailscale.threads.face import DeviceFace, thread_of
from ts_control.services import label_of

if TYPE_CHECKING:
    from tailscale.carry import Stream

Started = Callable[[tuple[str, ...]], object]


class Serve:
    """Publish web servers, folders, apps and TCP ports of this machine to the tailnet.

    ```python
    from tailscale.serve import Serve, files, proxy, text

    web = Serve(device)
    web.http(80, {"/": proxy("http://127.0.0.1:3000"), "/docs": files("site"), "/up": text("ok")})
    web.tcp(5432, "127.0.0.1:5432")
    await nursery.start(web.run)
    ```

    `device` is one of `tailscale`, `tailscale.aio` or `tailscale.sync`; `run` waits as its device does. What is changed
    while it runs counts at once. `certificates` gives the `ssl.SSLContext` for a name, for HTTPS and for TCP with TLS.
    `own_socket` is a Unix socket that is never led to: the one by which this program takes orders.
    """

    def __init__(
        self,
        device: Device | DeviceFace,
        *,
        certificates: Certificates | None = None,
        limits: Limits | None = None,
        own_socket: str = "",
    ) -> None:
        self._device = device
        self._certificates = certificates
        self._limits = limits or Limits()
        self._own_socket = own_socket
        self._config = ServeConfig()
        self._apps: dict[tuple[int, str], App] = {}
        self._allow = Allow()
        self._draining: frozenset[str] = frozenset()
        self._servers: dict[str, ReverseProxy] = {}
        self._plan = Plan()
        self._publisher: Publisher | None = None
        self._tell: Callable[[], None] = lambda: None
        self._adopt: Callable[[App], App] = _as_it_is
        self._known: dict[int, App] = {}

    # What is published

    def http(self, port: int, mounts: Mounts | Any) -> Self:
        """Serve HTTP: what stands behind each path, or one target for all of them. The longest path wins.

        A target is `proxy(...)`, `files(...)`, `text(...)`, `redirect(...)`, an ASGI app, or a text as `tailscale
        serve` takes it: `"3000"`, `"http://127.0.0.1:3000"`, `"/srv/site"`.
        """
        return self._web(port, mounts, tls=False)

    def https(self, port: int, mounts: Mounts | Any, *, funnel: bool = False) -> Self:
        """The same with the tailnet's certificate of this device; with `funnel` for the internet too."""
        self._web(port, mounts, tls=True)
        self._config.set_funnel(OWN_HOST, port, funnel)
        return self

    def tcp(self, port: int, target: str | int | Forward, *, tls: bool = False, proxy_protocol: int = 0) -> Self:
        """Lead a TCP port to `HOST:PORT` or `unix:/path`.

        `tls` takes TLS off before the server sees a byte; `proxy_protocol` 1 or 2 tells it who calls.
        """
        to = target if isinstance(target, Forward) else tcp(target, tls=tls, proxy_protocol=proxy_protocol)
        self._config.set_forward(_port(port), to)
        return self._change()

    def off(self, port: int) -> Self:
        """No longer serve a port."""
        for key in [key for key in self._apps if key[0] == port]:
            del self._apps[key]
        self._config.told.get("TCP", {}).pop(str(port), None)
        for place in [place for place in self._config.told.get("Web", {}) if place.endswith(f":{port}")]:
            del self._config.told["Web"][place]
        self._config.set_funnel(OWN_HOST, port, False)
        return self._change()

    def allow(self, *, users: Sequence[str] = (), tags: Sequence[str] = (), capability: str | None = None) -> Self:
        """Let in only these people, nodes with one of these tags, and whom the policy gives `capability`.

        Others get 403, or their connection is reset. Replaces what was said before; nothing said lets in all whom the
        packet filter lets in. This is not of a ServeConfig, and not in `to_json`.
        """
        if isinstance(users, str) or isinstance(tags, str):
            raise TypeError("users and tags are lists")
        self._allow = Allow(frozenset(users), frozenset(tags), capability)
        return self._change()

    def drain(self, *services: str) -> Self:
        """Ask control to send nobody new to these Services here: exactly these drain, and all others are advertised.

        Who is connected stays, as long as control lets this device answer at the Service's addresses.
        """
        self._draining = frozenset(f"svc:{label_of(service)}" for service in services)
        return self._change()

    def _web(self, port: int, mounts: Mounts | Any, *, tls: bool) -> Self:
        targets = mounts if isinstance(mounts, Mapping) else {"/": mounts}
        read = {clean_mount(path, target): target for path, target in ((p, target_of(t)) for p, t in targets.items())}
        config, apps = self._config.copy(), dict(self._apps)
        for mount, target in read.items():
            if isinstance(target, App):
                config.set_port_kind(_port(port), tls=tls)
                apps[port, mount] = target
            else:
                config.set_web(OWN_HOST, _port(port), mount, handler_of(target), tls=tls)
        self._config, self._apps = config, apps
        return self._change()

    def _adopted(self) -> dict[tuple[int, str], App]:
        """One for each app, wherever it stands and however often that is said: it is started once."""
        known = {id(app.app): self._known.get(id(app.app)) or self._adopt(app) for app in self._apps.values()}
        self._known = known
        return {key: known[id(app.app)] for key, app in self._apps.items()}

    def _change(self) -> Self:
        self._plan = plan_of(self._config, self._adopted(), self._allow, self._servers, self._draining)
        self._tell()
        return self

    # As a ServeConfig

    def to_json(self) -> str:
        """Upstream's ServeConfig. Raises BadServeConfig where an app of this process is served: it has no such word."""
        if self._apps:
            port, mount = next(iter(self._apps))
            raise BadServeConfig(f"{mount} on port {port} is an app of this process, which a ServeConfig cannot say")
        return self._config.to_json(own_name=self._own_name())

    @classmethod
    def from_json(cls, device: Device | DeviceFace, text: str | bytes, **options: Any) -> Serve:
        """Of a ServeConfig, as `tailscale serve status --json` prints it. Raises BadServeConfig."""
        made = cls(device, **options)
        made.use(ServeConfig.read(text))
        return made

    @property
    def config(self) -> ServeConfig:
        """What is published, as a ServeConfig: a copy."""
        return self._config.copy()

    def use(self, config: ServeConfig) -> Self:
        """Publish what a config says, in place of all else but apps."""
        self._config = config
        return self._change()

    # How it runs

    def run(
        self, *, started: Started | None = None, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
    ) -> Any:
        """Publish until cancelled. Under `nursery.start` the value is where: `("http://laptop.tail.ts.net",)`.

        Under asyncio it is awaited, with a device of `tailscale.sync` it blocks; ASGI apps run in an asyncio loop
        there. `started` is called with the same value.
        """

        def tell(urls: tuple[str, ...]) -> None:
            task_status.started(urls)
            if started is not None:
                started(urls)

        if isinstance(self._device, Device):
            return self._run(self._device, tell, lambda publisher: publisher.change)
        if isinstance(self._device, AsyncWithOnly):
            return self._under_asyncio(self._device, tell)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._under_asyncio(self._device, tell))
        raise wrong_face(
            "`run` of a Serve with a tailscale.sync.Device blocks, and this thread has a running event loop"
        )

    async def _run(self, device: Device, started: Started, teller: Callable[[Publisher], Callable[[], None]]) -> None:
        if self._publisher is not None:
            raise TailscaleError("this Serve runs already")
        certificates = Given(self._certificates) if self._certificates is not None else OfDevice(device)
        publisher = Publisher(device, lambda: self._plan, certificates, self._limits, self._own_socket)
        self._publisher, self._tell = publisher, teller(publisher)
        try:
            with device.include("serve", publisher):
                await publisher.run(lambda: started(urls_of(self._plan.places, publisher.site.own_name)))
        finally:
            self._publisher, self._tell = None, lambda: None

    async def _under_asyncio(self, device: DeviceFace, started: Started) -> None:
        """The publisher is a job of the device's thread; this waits for it, and lets apps run here meanwhile."""
        loop, thread = asyncio.get_running_loop(), thread_of(device)
        crossings: list[LoopApp] = []

        def to_tailnet(drain: Callable[[], None]) -> None:
            with contextlib.suppress(DeviceClosed):  # the apps' tasks are being cancelled
                thread.call_soon(drain)

        def adopt(app: App) -> App:
            crossings.append(LoopApp(app.app, to_tailnet))
            return App(crossings[-1])

        def on_started(urls: tuple[str, ...]) -> None:
            with contextlib.suppress(RuntimeError):  # that loop is gone
                loop.call_soon_threadsafe(started, urls)

        def teller(publisher: Publisher) -> Callable[[], None]:
            return partial(thread.call_soon, publisher.change)

        self._adopt, self._known = adopt, {}
        self._change()
        job = thread.submit(lambda: self._run(thread.device, on_started, teller))
        try:
            cancelled = await ended(job)
        finally:
            for crossing in crossings:
                await crossing.finish(self._limits.shutdown_timeout)
            self._adopt, self._known = _as_it_is, {}
        if cancelled is not None:
            raise cancelled
        with contextlib.suppress(DeviceClosed):  # as under trio: then it has served its time
            job.future.result()

    async def take(self, port: int, stream: Stream, *, source: tuple[str, int], funnel: bool = False) -> None:
        """Answer a connection that came another way as if it had come to `port`; it is closed in the end.

        One that came by `funnel` is nobody's: `source` is told to servers, and is no identity.
        """
        if self._publisher is None:
            raise TailscaleError("this Serve does not run")
        await self._publisher.take(port, stream, source, funnel)

    def statistics(self) -> ServeStatistics:
        """Connections and bytes so far, by port."""
        return self._publisher.statistics() if self._publisher is not None else ServeStatistics({})

    def problems(self) -> dict[int, str]:
        """Ports that cannot be opened at this moment, and why; they are tried again."""
        return self._publisher.problems() if self._publisher is not None else {}

    def _own_name(self) -> str:
        return self._device.name.rstrip(".")


def _as_it_is(app: App) -> App:
    """Under trio an app is called where it is."""
    return app


def _port(port: int) -> int:
    if type(port) is not int or not 0 < port < 65536:
        raise ValueError(f"a port that is served is a number from 1 to 65535, not {port!r}")
    return port
