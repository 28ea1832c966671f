"""The connections of the peer API: who is there, whether the request may be believed, and who answers it.

Owns the listener's streams and their bounds, per peer and in all. Parsing is h11's, imported with this module, which is
when the first peer comes. What a peer sends ends its own connection and nothing else.
"""

from __future__ import annotations

import html
import logging
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import h11
import trio

from tailscale.http1 import framing
from tailscale.http1.asgi import ClientDisconnected, Receive, Scope, Send
from tailscale.http1.exchange import HttpExchange
from tailscale.http1.limits import Limits
from tailscale.http1.requests import headers_of, next_request
from tailscale.http1.visits import Visit, Visits
from tailscale.http1.wire import Wire
from tailscale.peerapi.callers import PeerCaller, caller_at, names_of_us
from tailscale.peerapi.checks import FOR_BROWSERS, INVALID, looks_like_a_browser, may_be_answered
from tailscale.peerapi.request import BodyTooLarge, PeerRequest
from tailscale.sockets.early import EarlyStream
from ts_base.ip import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailscale.peerapi.paths import PeerPaths
    from tailscale.runtime.directory import Directory
    from tailscale.sockets.tcp import TcpListener, TcpStream

LIMITS = Limits(connections=256, connections_per_peer=32, head=16 << 10, head_timeout=10.0, idle_timeout=30.0)
# A Funnel relay asks for a connection of its own for everybody who comes from the internet, often many at once.
RELAY_LIMITS = replace(LIMITS, connections_per_peer=192)
KEEPALIVE = 60.0  # a silent peer is asked this often whether it still exists
CLOSE_TIMEOUT = 1.0
HTML = "text/html; charset=utf-8"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"  # as upstream's peer API says it: no header at all

log = logging.getLogger("tailscale.peerapi")


class Known(NamedTuple):
    """Who asks, and what he may call us."""

    caller: PeerCaller
    names_of_us: frozenset[str]


class Connections:
    """All that peers have open to us."""

    def __init__(
        self, directory: Directory, paths: PeerPaths, drops: Counter[str], is_relay: Callable[[PeerCaller], bool]
    ) -> None:
        self._directory, self._paths, self.drops = directory, paths, drops
        self._is_relay = is_relay
        self._visits = Visits()
        self._idle: set[trio.CancelScope] = set()
        self.requests = 0

    @property
    def open(self) -> int:
        return self._visits.statistics().open

    async def serve(self, listener: TcpListener, first: TcpStream) -> None:
        """Until the listener is closed or this is cancelled."""
        async with trio.open_nursery() as nursery:
            stream = first
            while True:
                self._admit(stream, nursery)
                await self._visits.wait_for_room(LIMITS)
                try:
                    stream = await listener.accept()
                except trio.ClosedResourceError:
                    return

    def _admit(self, stream: TcpStream, nursery: trio.Nursery) -> None:
        # Everything that asks who somebody is goes by the source address, which WireGuard has proved.
        known = self._look_up(stream)
        if known is None:
            self.drops["peerapi.unknown_source"] += 1
            stream.abort()
            return
        limits = RELAY_LIMITS if self._is_relay(known.caller) else LIMITS
        visit = self._visits.admit(known.caller.node.stable_id, stream.shut, limits)
        if visit is None:
            self.drops["peerapi.too_many_connections"] += 1
            stream.abort()
        else:
            nursery.start_soon(self._serve_stream, stream, visit)

    def _look_up(self, stream: TcpStream) -> Known | None:
        """Who is behind a connection right now; None for nobody."""
        netmap, address = self._directory.netmap, stream.remote_address[0]
        raw = parse_address(address)
        peer = self._directory.wire_node(raw)
        if netmap is None or peer is None:
            return None
        caller = caller_at(netmap, peer, address, self._directory.capabilities_of(raw))
        return Known(caller, names_of_us(netmap, peer, stream.local_address[1])) if caller is not None else None

    async def _serve_stream(self, stream: TcpStream, visit: Visit) -> None:
        stream.set_keepalive(KEEPALIVE)
        try:
            await self._serve_requests(stream, visit)
        except trio.Cancelled:
            stream.abort()  # so that nobody takes the half of an answer for the whole
            raise
        except (ClientDisconnected, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            log.debug("%s: %r", stream, error)
        except Exception:
            log.exception("a connection of the peer API failed")
        finally:
            self._visits.leave(visit)
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await stream.aclose()

    async def _serve_requests(self, stream: TcpStream, visit: Visit) -> None:
        wire = Wire(stream, LIMITS)
        while (request := await next_request(wire, self._idle)) is not None:
            self._visits.on_request(visit)
            self.requests += 1
            if not await self._answer(wire, request, stream, visit):
                await wire.finish()
                return
            wire.http.start_next_cycle()
            self._visits.on_silence(visit)

    async def _answer(self, wire: Wire, request: h11.Request, stream: TcpStream, visit: Visit) -> bool:
        """Whether the connection can carry another request."""
        target = framing.read_target(request.method, request.target)
        assert target is not None, "a request without one was refused"
        headers = headers_of(request, target)
        known = self._look_up(stream)  # anew: it may have lost its rights meanwhile
        if known is None:
            self.drops["peerapi.unknown_source"] += 1
            return False
        if not may_be_answered(headers, known.names_of_us):
            self.drops["peerapi.invalid_request"] += 1
            await wire.refuse(403, INVALID, has_body=request.method != b"HEAD")
            return False
        method, path = request.method.decode("latin-1"), target.path.decode("latin-1")
        more = FOR_BROWSERS if looks_like_a_browser(headers) else []

        async def take_over() -> trio.abc.HalfCloseableStream:
            early = await exchange.take_over(SWITCHED)
            self._visits.leave(visit)  # whoever has it counts it
            return EarlyStream(stream, early) if early else stream

        async def app(_scope: Scope, receive: Receive, send: Send) -> None:
            query = target.query.decode("latin-1")
            await self._handle(PeerRequest(method, path, query, headers, known.caller, receive, send, more, take_over))

        scope: dict[str, Any] = {"type": "http", "method": method, "path": path}
        exchange = HttpExchange(wire, request, scope)
        return await exchange.run(app)

    async def _handle(self, request: PeerRequest) -> None:
        handler = front if request.path == "/" else self._paths.find(request.path)
        try:
            if handler is None:
                await request.answer(404, "unsupported peerapi path\n")
            else:
                await handler(request)
        except BodyTooLarge:
            self.drops["peerapi.body_too_large"] += 1
            if not request.has_begun:
                await request.answer(413, "the request is too large\n")
        except trio.BrokenResourceError as error:
            raise ClientDisconnected(str(error)) from error


async def front(request: PeerRequest) -> None:
    """`GET /` tells callers how they are seen; HEAD is what `ping --peerapi` asks."""
    if request.method not in ("GET", "HEAD"):
        await request.answer(405, "only GET and HEAD\n", headers=[("allow", "GET, HEAD")])
        return
    caller = request.caller
    page = (
        '<!doctype html><html><head><meta charset="utf-8"><title>pytailscale</title></head><body>'
        f"<p>Hello, {html.escape(caller.node.user or 'tagged device')} on {html.escape(caller.node.hostname)} "
        f"({html.escape(caller.address)}).</p><p>This is the peer API of a pytailscale node.</p></body></html>\n"
    )
    await request.answer(200, page, HTML)
