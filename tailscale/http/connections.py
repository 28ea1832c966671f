"""The connections of one server: of HTTP/1.1 requests one after the other, each answered by what is chosen.

Owns how a connection goes from its first request to its last, and how all of them end; one that has agreed on HTTP/2 is
handed to `tailscale.http2`. Who listens, and which app or
proxy answers what, is handed in. Parsing is h11's and wsproto's; an exchange is in `exchange.py`, `websocket.py` and
`reverse.py`.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import h11
import trio

from tailscale.carry import reset
from tailscale.http.arrival import Arrival
from tailscale.http.choice import ByApp, Choose
from tailscale.http1.asgi import ClientDisconnected
from tailscale.http1.exchange import HttpExchange
from tailscale.http1.limits import Limits
from tailscale.http1.requests import next_request
from tailscale.http1.visits import Visit, Visits
from tailscale.http1.wire import Wire
from ts_base.optional import optional

if TYPE_CHECKING:
    from tailscale.carry import Stream
    from tailscale.http.reverse import Attendance, ReverseProxy
    from tailscale.http.streams import ServedLink
    from tailscale.http.websocket import WebSocketExchange

log = logging.getLogger("tailscale.http")
HTTP2 = "h2"
PROTOCOLS = [HTTP2, "http/1.1"]
CLOSE_TIMEOUT = 1.0  # for a TLS goodbye


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
        self._links: set[ServedLink] = set()

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
        for link in tuple(self._links):
            link.stop()

    async def attend(self, stream: Stream, tls: ssl.SSLContext | None, arrival: Arrival, visit: Visit) -> None:
        """One connection to its end. Nothing that a client does is raised."""
        outer: trio.abc.Stream = stream
        try:
            if tls is not None:
                outer = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
                with trio.fail_after(self.limits.head_timeout):
                    await outer.do_handshake()
                if outer.selected_alpn_protocol() == HTTP2:
                    await self._answer_streams(outer, arrival, visit)
                    return
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

    async def _answer_streams(self, stream: trio.abc.Stream, arrival: Arrival, visit: Visit) -> None:
        from tailscale.http.streams import ServedLink  # few callers speak it

        of_visit = partial(self._visits.on_request, visit), partial(self._visits.on_silence, visit)
        link = ServedLink(self._owner, self.limits, arrival, self._choose, *of_visit)
        self._links.add(link)
        try:
            await link.run(stream)
        finally:
            self._links.discard(link)

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
