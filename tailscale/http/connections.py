"""The connections of one server that speaks HTTP/1.1: requests one after the other, each answered by what is chosen.

Owns how a connection goes from its first request to its last, and how all of them end. Who listens, and which app or
proxy answers what, is handed in. Parsing is h11's and wsproto's; an exchange is in `exchange.py`, `websocket.py` and
`reverse.py`.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import h11
import trio

from tailscale.carry import reset
from tailscale.http.arrival import Arrival
from tailscale.http.caller import Caller, trusted_headers
from tailscale.http1 import framing
from tailscale.http1.asgi import AsgiApp, ClientDisconnected, Headers, Scope
from tailscale.http1.exchange import HttpExchange
from tailscale.http1.heads import wants_websocket
from tailscale.http1.limits import Limits
from tailscale.http1.requests import headers_of, next_request
from tailscale.http1.visits import Visit, Visits
from tailscale.http1.wire import Wire
from ts_base.optional import optional

if TYPE_CHECKING:
    from tailscale.carry import Stream
    from tailscale.http.reverse import Attendance, ReverseProxy
    from tailscale.http.websocket import WebSocketExchange

log = logging.getLogger("tailscale.http")
CLOSE_TIMEOUT = 1.0  # for a TLS goodbye


class ByApp(NamedTuple):
    """The answer is an app's."""

    app: AsgiApp
    scope: Scope


class ByServer(NamedTuple):
    """The answer is that of a server behind this one, which is asked for `target` with `head`."""

    proxy: ReverseProxy
    target: bytes
    head: Headers


Choose = Callable[[h11.Request, Arrival], Awaitable["ByApp | ByServer"]]
"""Who answers a request."""


class Connections:
    """All that are open of one server."""

    def __init__(self, owner: object, limits: Limits, visits: Visits, choose: Choose) -> None:
        self.limits = limits
        self._owner = owner  # the device whose callers these are
        self._visits = visits
        self._choose = choose
        self._is_stopping = False
        self._idle: set[trio.CancelScope] = set()
        self._websockets: set[WebSocketExchange] = set()

    async def wait_for_room(self) -> None:
        """Until one more connection may be accepted."""
        await self._visits.wait_for_room(self.limits)

    def admit(self, peer: str, hang_up: Callable[[], object]) -> Visit | None:
        """A place for a connection of that peer; None if it cannot have one more. Given back by `attend`."""
        return self._visits.admit(peer, hang_up, self.limits)

    def stop(self, nursery: trio.Nursery) -> None:
        """No request more than those that have begun; `nursery` is where the connections are attended."""
        self._is_stopping = True
        for scope in self._idle:
            scope.cancel()
        for websocket in tuple(self._websockets):
            nursery.start_soon(websocket.close)

    async def attend(self, stream: Stream, tls: ssl.SSLContext | None, arrival: Arrival, visit: Visit) -> None:
        """One connection to its end. Nothing that a client does is raised."""
        outer: trio.abc.Stream = stream
        try:
            if tls is not None:
                outer = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
                with trio.fail_after(self.limits.head_timeout):
                    await outer.do_handshake()
            await self._answer_requests(Wire(outer, self.limits), arrival, visit)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await reset(stream)  # so that nobody takes the half of an answer for the whole
            raise
        except (ClientDisconnected, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("%s: %r", stream, error)
        except Exception:
            log.exception("a connection failed")
        finally:
            self._visits.leave(visit)
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await outer.aclose()

    async def _answer_requests(self, wire: Wire, arrival: Arrival, visit: Visit) -> None:
        attendances: dict[ReverseProxy, Attendance] = {}
        try:
            while (request := await next_request(wire, self._idle)) is not None and not self._is_stopping:
                self._visits.on_request(visit)
                chosen = await self._choose(request, arrival)
                if isinstance(chosen, ByApp):
                    is_whole = await self._by_app(wire, request, chosen)
                else:
                    known = attendances.get(chosen.proxy)
                    if known is None:
                        known = attendances[chosen.proxy] = chosen.proxy.attend(self._owner, wire, arrival)
                    is_whole = await known.answer(request, chosen.target, chosen.head)
                if not is_whole or self._is_stopping:
                    await wire.finish()
                    return
                wire.http.start_next_cycle()
                self._visits.on_silence(visit)
        finally:
            for attendance in attendances.values():
                await attendance.end()

    async def _by_app(self, wire: Wire, request: h11.Request, chosen: ByApp) -> bool:
        if chosen.scope["type"] == "websocket":
            await self._by_websocket(wire, request, chosen)
            return False
        return await HttpExchange(wire, request, chosen.scope).run(chosen.app)

    async def _by_websocket(self, wire: Wire, request: h11.Request, chosen: ByApp) -> None:
        websocket = optional("tailscale.http.websocket")  # None without a wsproto that works
        if websocket is None:
            log.error("a client asked for a WebSocket: pip install 'pytailscale[asgi]' to serve them")
            await wire.refuse(501, "this server was installed without WebSocket support")
            return
        try:
            exchange: WebSocketExchange = websocket.WebSocketExchange(wire, request, chosen.scope)
        except websocket.RemoteProtocolError as error:
            await wire.refuse(400, str(error))
            return
        self._websockets.add(exchange)
        try:
            await exchange.run(chosen.app)
        finally:
            self._websockets.discard(exchange)


def scope_of(request: h11.Request, arrival: Arrival, caller: Caller | None, state: dict[str, Any]) -> Scope:
    """A request in ASGI's words, of the type "http"."""
    target = framing.read_target(request.method, request.target)
    assert target is not None, "a request without one was refused"
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": request.http_version.decode(),
        "method": request.method.decode(),
        "scheme": "https" if arrival.is_secure else "http",
        "path": unquote(target.path.decode("latin-1")),
        "raw_path": target.path,
        "query_string": target.query,
        "root_path": "",
        "headers": trusted_headers(headers_of(request, target), caller),
        "client": arrival.remote_address,
        "server": arrival.local_address,
        "state": state.copy(),
        "extensions": {"tailscale": caller} if caller is not None else {},
    }


def upgraded(request: h11.Request, scope: Scope) -> Scope:
    """The same for an app that takes WebSockets: of the type "websocket" where the client asks for one."""
    if not wants_websocket(request):
        return scope
    scope = {name: value for name, value in scope.items() if name != "method"}
    scheme = "wss" if scope["scheme"] == "https" else "ws"
    extensions = {**scope["extensions"], "websocket.http.response": {}}
    return scope | {"type": "websocket", "scheme": scheme, "extensions": extensions}
