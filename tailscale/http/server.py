"""Serve an app on the tailnet from within the device's own loop: HTTP/1.1, WebSocket, lifespan, and who is calling.

Owns the listener and the app's life. How a connection goes is `connections.py`'s. In which loop the app itself runs is
not known here.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import h11
import trio

from tailscale.http.arrival import Arrival
from tailscale.http.caller import describe_caller
from tailscale.http.choice import ByApp, ByServer, scope_of, upgraded
from tailscale.http.connections import PROTOCOLS, Connections
from tailscale.http.lifespan import Lifespan
from tailscale.http.reverse import ReverseProxy, head_for_server, target_of
from tailscale.http.wsgi import WsgiApp
from tailscale.http1.asgi import AsgiApp, Receive, Scope, Send
from tailscale.http1.limits import Limits
from tailscale.http1.visits import Visits
from tailscale.sockets.tcp import TcpListener, TcpStream

if TYPE_CHECKING:
    from tailscale.device import Device

KEEPALIVE = 60.0  # a silent client is asked this often whether it still exists
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Serving:
    """How an app is served; what `serve` was told."""

    port: int
    host: str | None = None
    tls: ssl.SSLContext | Callable[[str | None], ssl.SSLContext] | Literal["tailnet"] | None = None
    limits: Limits = field(default_factory=Limits)
    visits: Visits = field(default_factory=Visits)
    announce: str = ""


async def serve_within(
    app: AsgiApp | ReverseProxy, device: Device, how: Serving, shutdown: trio.Event, started: Callable[[str], object]
) -> None:
    """Until cancelled, or until `shutdown` is set and open requests are done. `started` is told the server's URL."""
    tls = await context_of(how.tls, device)
    life, limits = Lifespan(no_app if isinstance(app, ReverseProxy) else app), how.limits
    listening = device.listen(how.port, host=how.host, announce=how.announce)
    async with await listening as listener, trio.open_nursery() as nursery:
        nursery.start_soon(life.run)
        try:
            if await life.start(limits.startup_timeout):
                await _Server(app, device, listener, how, tls, life.state).run(shutdown, started)
        finally:
            await life.stop(limits.shutdown_timeout)
    if life.failure is not None:
        raise life.failure


async def context_of(
    tls: ssl.SSLContext | Callable[[str | None], ssl.SSLContext] | Literal["tailnet"] | None, device: Device
) -> ssl.SSLContext | None:
    """What `serve(tls=...)` means."""
    if tls is None or isinstance(tls, ssl.SSLContext):
        return tls
    if tls == "tailnet":
        context = await device.tls_context()
        context.set_alpn_protocols(PROTOCOLS)
        return context
    if not callable(tls):
        raise TypeError(f'tls= is an ssl.SSLContext, a function of the name, or "tailnet", not {tls!r}')
    from tailscale.certificates.contexts import chosen_by  # few have one

    return chosen_by(tls)


async def no_app(scope: Scope, receive: Receive, send: Send) -> None:
    """The lifespan of what has none."""


class _Server:
    """One listener and its connections."""

    def __init__(
        self,
        app: AsgiApp | ReverseProxy,
        device: Device,
        listener: TcpListener,
        how: Serving,
        tls: ssl.SSLContext | None,
        state: dict[str, Any],
    ) -> None:
        self._app = app
        self._device = device
        self._listener = listener
        self._tls = tls
        self._state = state
        self._connections = Connections(device, how.limits, how.visits, self._choose)

    async def run(self, shutdown: trio.Event, started: Callable[[str], object]) -> None:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, connections, accepting.cancel_scope)
                started(self._url())
                await shutdown.wait()
                accepting.cancel_scope.cancel()
            await self._listener.aclose()
            connections.cancel_scope.deadline = trio.current_time() + self._connections.limits.grace
            self._connections.stop(connections)

    def _url(self) -> str:
        scheme, port = "https" if self._tls else "http", self._listener.port
        suffix = "" if port == DEFAULT_PORTS[scheme] else f":{port}"
        return f"{scheme}://{self._device.name}{suffix}"

    async def _accept(self, connections: trio.Nursery, accepting: trio.CancelScope) -> None:
        try:
            while True:
                await self._connections.wait_for_room()
                self._admit(await self._listener.accept(), connections)
        except trio.ClosedResourceError:
            accepting.cancel()  # the device is closing: nobody can call any more

    def _admit(self, tcp: TcpStream, connections: trio.Nursery) -> None:
        peer = tcp.peer
        visit = self._connections.admit(peer.stable_id if peer else tcp.remote_address[0], tcp.shut)
        if visit is None:
            tcp.abort()
            return
        tcp.set_keepalive(KEEPALIVE)
        arrival = Arrival(tcp.remote_address, tcp.local_address, self._tls is not None)
        connections.start_soon(self._connections.attend, tcp, self._tls, arrival, visit)

    async def _choose(self, request: h11.Request, arrival: Arrival) -> ByApp | ByServer:
        app = self._app
        scope = scope_of(request, arrival, await describe_caller(self._device, arrival.remote_address), self._state)
        if isinstance(app, ReverseProxy):
            return ByServer(app, target_of(scope), head_for_server(scope, is_modern=request.http_version == b"1.1"))
        # Who cannot have WebSockets ignores that one is asked for.
        return ByApp(app, scope if isinstance(app, WsgiApp) else upgraded(request, scope))
