"""Serve an ASGI app on the tailnet: HTTP/1.1, WebSocket, lifespan, and who is calling.

Owns the listener, the connections and their end. Parsing is h11's and wsproto's; an exchange is in `exchange.py` and
`websocket.py`.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import h11
import trio

from tailscale.http import framing
from tailscale.http.asgi import AsgiApp, ClientDisconnected, Scope
from tailscale.http.caller import describe_caller, trusted_headers
from tailscale.http.exchange import HttpExchange
from tailscale.http.heads import wants_websocket
from tailscale.http.lifespan import Lifespan
from tailscale.http.limits import Limits
from tailscale.http.requests import headers_of, next_request
from tailscale.http.visits import Visit, Visits
from tailscale.http.wire import Wire
from tailscale.sockets.tcp import TcpListener, TcpStream
from ts_base.optional import optional

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.http.websocket import WebSocketExchange

log = logging.getLogger("tailscale.http")
CLOSE_TIMEOUT = 1.0  # for a TLS goodbye
KEEPALIVE = 60.0  # a silent client is asked this often whether it still exists
DEFAULT_PORTS = {"http": 80, "https": 443}


async def serve(
    app: AsgiApp,
    device: Device,
    port: int = 80,
    *,
    host: str | None = None,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    shutdown: trio.Event | None = None,
    visits: Visits | None = None,
    announce: str = "",
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run an ASGI app for the tailnet until cancelled, or until `shutdown` is set and open requests are done.

    ```python forever=80
    await tailscale.http.serve(app, device, port=80)
    ```

    `scope["client"]` is the caller's tailnet address, `scope["extensions"]["tailscale"]` who that is. Under
    `nursery.start` the value is the server's URL. `visits=tailscale.http.Visits()` counts who is connected.
    `announce` is a word by which peers find the port: `node.announced[word]`.
    """
    limits = limits or Limits()
    shutdown = trio.Event() if shutdown is None else shutdown
    life = Lifespan(app)
    async with await device.listen(port, host=host, announce=announce) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(life.run)
        try:
            if await life.start(limits.startup_timeout):
                server = _Server(app, device, listener, tls, limits, life.state, visits or Visits())
                await server.run(shutdown, task_status)
        finally:
            await life.stop(limits.shutdown_timeout)
    if life.failure is not None:
        raise life.failure


class _Server:
    """One listener and its connections."""

    def __init__(
        self,
        app: AsgiApp,
        device: Device,
        listener: TcpListener,
        tls: ssl.SSLContext | None,
        limits: Limits,
        state: dict[str, Any],
        visits: Visits,
    ) -> None:
        self._app = app
        self._device = device
        self._listener = listener
        self._tls = tls
        self._limits = limits
        self._state = state
        self._is_stopping = False
        self._visits = visits
        self._idle: set[trio.CancelScope] = set()
        self._websockets: set[WebSocketExchange] = set()

    async def run(self, shutdown: trio.Event, task_status: trio.TaskStatus[str]) -> None:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, connections, accepting.cancel_scope)
                task_status.started(self._url())
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
            await self._serve_requests(Wire(stream, self._limits), tcp, visit)
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

    async def _serve_requests(self, wire: Wire, tcp: TcpStream, visit: Visit) -> None:
        while (request := await next_request(wire, self._idle)) is not None and not self._is_stopping:
            self._visits.on_request(visit)
            scope = await self._scope(request, tcp)
            if wants_websocket(request):
                await self._serve_websocket(wire, request, scope)
                return
            if not await HttpExchange(wire, request, scope).run(self._app) or self._is_stopping:
                await wire.finish()
                return
            wire.http.start_next_cycle()
            self._visits.on_silence(visit)

    async def _scope(self, request: h11.Request, tcp: TcpStream) -> Scope:
        caller = await describe_caller(self._device, tcp.remote_address)
        target = framing.read_target(request.method, request.target)
        assert target is not None, "a request without one was refused"
        is_websocket = wants_websocket(request)
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

    async def _serve_websocket(self, wire: Wire, request: h11.Request, scope: Scope) -> None:
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
            await exchange.run(self._app)
        finally:
            self._websockets.discard(exchange)
        await wire.finish()
