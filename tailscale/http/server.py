"""Serve an app on the tailnet from within the device's own loop: HTTP/1.1, WebSocket, lifespan, and who is calling.

Owns the listener, the connections and their end. Parsing is h11's and wsproto's; an exchange is in `exchange.py`,
`websocket.py` and `reverse.py`. In which loop the app itself runs is not known here.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import h11
import trio

from tailscale.http.caller import describe_caller, trusted_headers
from tailscale.http.lifespan import Lifespan
from tailscale.http.reverse import ReverseProxy
from tailscale.http.wsgi import WsgiApp
from tailscale.http1 import framing
from tailscale.http1.asgi import AsgiApp, ClientDisconnected, Receive, Scope, Send
from tailscale.http1.exchange import HttpExchange
from tailscale.http1.heads import wants_websocket
from tailscale.http1.limits import Limits
from tailscale.http1.requests import headers_of, next_request
from tailscale.http1.visits import Visit, Visits
from tailscale.http1.wire import Wire
from tailscale.sockets.tcp import TcpListener, TcpStream
from ts_base.optional import optional

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.http.websocket import WebSocketExchange

log = logging.getLogger("tailscale.http")
CLOSE_TIMEOUT = 1.0  # for a TLS goodbye
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
        return await device.tls_context()
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
        self._limits = how.limits
        self._state = state
        self._is_stopping = False
        self._visits = how.visits
        self._idle: set[trio.CancelScope] = set()
        self._websockets: set[WebSocketExchange] = set()

    async def run(self, shutdown: trio.Event, started: Callable[[str], object]) -> None:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, connections, accepting.cancel_scope)
                started(self._url())
                await shutdown.wait()
                accepting.cancel_scope.cancel()
            await self._listener.aclose()
            self._is_stopping = True
            connections.cancel_scope.deadline = trio.current_time() + self._limits.grace
            for scope in self._idle:
                scope.cancel()
            for websocket in tuple(self._websockets):
                connections.start_soon(websocket.close)

    def _url(self) -> str:
        scheme, port = "https" if self._tls else "http", self._listener.port
        suffix = "" if port == DEFAULT_PORTS[scheme] else f":{port}"
        return f"{scheme}://{self._device.name}{suffix}"

    async def _accept(self, connections: trio.Nursery, accepting: trio.CancelScope) -> None:
        try:
            while True:
                await self._visits.wait_for_room(self._limits)
                self._admit(await self._listener.accept(), connections)
        except trio.ClosedResourceError:
            accepting.cancel()  # the device is closing: nobody can call any more

    def _admit(self, tcp: TcpStream, connections: trio.Nursery) -> None:
        peer = tcp.peer
        visit = self._visits.admit(peer.stable_id if peer else tcp.remote_address[0], tcp.shut, self._limits)
        if visit is None:
            tcp.abort()
        else:
            connections.start_soon(self._serve_stream, tcp, visit)

    async def _serve_stream(self, tcp: TcpStream, visit: Visit) -> None:
        tcp.set_keepalive(KEEPALIVE)
        stream: trio.abc.Stream = tcp
        try:
            if self._tls is not None:
                stream = trio.SSLStream(tcp, self._tls, server_side=True, https_compatible=True)
                with trio.fail_after(self._limits.head_timeout):
                    await stream.do_handshake()
            wire = Wire(stream, self._limits)
            if isinstance(self._app, ReverseProxy):
                await self._pass_requests(wire, tcp, visit, self._app)
            else:
                await self._serve_requests(wire, tcp, visit, self._app)
        except trio.Cancelled:
            tcp.abort()  # so that nobody takes the half of an answer for the whole
            raise
        except (ClientDisconnected, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("%s: %r", tcp, error)
        except Exception:
            log.exception("a connection failed")
        finally:
            self._visits.leave(visit)
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await stream.aclose()

    async def _pass_requests(self, wire: Wire, tcp: TcpStream, visit: Visit, proxy: ReverseProxy) -> None:
        attendance = proxy.attend(self._device, wire, tcp)
        try:
            while (request := await next_request(wire, self._idle)) is not None and not self._is_stopping:
                self._visits.on_request(visit)
                if not await attendance.answer(request, await self._scope(request, tcp)) or self._is_stopping:
                    await wire.finish()
                    return
                wire.http.start_next_cycle()
                self._visits.on_silence(visit)
        finally:
            await attendance.end()

    async def _serve_requests(self, wire: Wire, tcp: TcpStream, visit: Visit, app: AsgiApp) -> None:
        while (request := await next_request(wire, self._idle)) is not None and not self._is_stopping:
            self._visits.on_request(visit)
            scope = await self._scope(request, tcp)
            if scope["type"] == "websocket":
                await self._serve_websocket(wire, request, scope, app)
                return
            if not await HttpExchange(wire, request, scope).run(app) or self._is_stopping:
                await wire.finish()
                return
            wire.http.start_next_cycle()
            self._visits.on_silence(visit)

    async def _scope(self, request: h11.Request, tcp: TcpStream) -> Scope:
        caller = await describe_caller(self._device, tcp.remote_address)
        target = framing.read_target(request.method, request.target)
        assert target is not None, "a request without one was refused"
        is_websocket = not isinstance(self._app, WsgiApp) and wants_websocket(request)  # who cannot, ignores it
        extensions: dict[str, Any] = {"tailscale": caller} if caller is not None else {}
        if is_websocket:
            extensions["websocket.http.response"] = {}
        scheme = ("ws" if is_websocket else "http") + ("s" if self._tls else "")
        scope: Scope = {
            "type": "websocket" if is_websocket else "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.http_version.decode(),
            "scheme": scheme,
            "path": unquote(target.path.decode("latin-1")),
            "raw_path": target.path,
            "query_string": target.query,
            "root_path": "",
            "headers": trusted_headers(headers_of(request, target), caller),
            "client": tcp.remote_address,
            "server": tcp.local_address,
            "state": self._state.copy(),
            "extensions": extensions,
        }
        if not is_websocket:
            scope["method"] = request.method.decode()
        return scope

    async def _serve_websocket(self, wire: Wire, request: h11.Request, scope: Scope, app: AsgiApp) -> None:
        websocket = optional("tailscale.http.websocket")  # None without a wsproto that works
        if websocket is None:
            log.error("a client asked for a WebSocket: pip install 'pytailscale[asgi]' to serve them")
            await wire.refuse(501, "this server was installed without WebSocket support")
            await wire.finish()
            return
        try:
            exchange: WebSocketExchange = websocket.WebSocketExchange(wire, request, scope)
        except websocket.RemoteProtocolError as error:
            await wire.refuse(400, str(error))
            await wire.finish()
            return
        self._websockets.add(exchange)
        try:
            await exchange.run(app)
        finally:
            self._websockets.discard(exchange)
        await wire.finish()
