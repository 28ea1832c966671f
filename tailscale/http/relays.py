"""Requests of HTTP/2 that a server behind this one answers: over HTTP/1.1, or where they are gRPC's over HTTP/2.

Owns the connections to servers that one client's connection uses; they stand for that client and are nobody else's. The
exchange itself is `passing.py`'s. gRPC needs HTTP/2 to the end: a server behind `http://` is spoken to without TLS and
without asking (RFC 9113, 3.3), as stock nodes do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, NoReturn

import h11
import trio

from tailscale.carry import Stream, reset
from tailscale.errors import ConnectionReset
from tailscale.http.passing import Ending, Exchange, Upstream
from tailscale.http.reverse import SILENCE, ReverseProxy, uncounted
from tailscale.http1.asgi import ClientDisconnected
from tailscale.http1.limits import Limits
from tailscale.http2.exchange import CONNECTIONS_OWN, head_of, refuse
from tailscale.http2.link import Channel, Link
from tailscale.http2.machine import Body, Ended, Headers, Http2Machine, Interim, Trailers
from tailscale.local_ports import UNREACHED
from ts_base.errors import BadPacket

if TYPE_CHECKING:
    from tailscale.http.arrival import Arrival
    from tailscale.http.choice import ByServer

log = logging.getLogger("tailscale.http")
GRPC = b"application/grpc"
MOST_IDLE = 8  # connections to one server that rest
TOLD = (b"te", b"trailers")  # RFC 9113, 8.2.2; servers of gRPC insist on it


def is_grpc(request: h11.Request) -> bool:
    """By its content type: application/grpc, application/grpc+proto, ..."""
    kind = next((value for name, value in request.headers if name == b"content-type"), b"")
    return kind.startswith(GRPC) and kind[len(GRPC) :][:1] in (b"", b"+", b";")


class StreamClient:
    """A stream of HTTP/2 that asks, as the events of h11."""

    is_modern = True

    def __init__(self, channel: Channel, patience: float) -> None:
        self._channel = channel
        self._patience = patience
        self._trailers: Headers = []
        self._has_ended = False

    async def next_event(self) -> Any:
        while True:
            event = await self._channel.next_event(self._patience)
            if isinstance(event, Body):
                return h11.Data(data=event.data)
            if isinstance(event, Trailers):
                self._trailers = event.headers
            if isinstance(event, Ended):
                return h11.EndOfMessage(headers=self._trailers)

    async def until_gone(self) -> NoReturn:
        while True:
            await self._channel.next_event(math.inf)

    async def tell(self, event: Any, *, ends: bool = False) -> None:
        if isinstance(event, h11.Data):
            await self._channel.send(bytes(event.data), self._patience)
        elif not isinstance(event, h11.EndOfMessage):
            self._has_ended = ends
            await self._channel.answer(head_of({"status": event.status_code, "headers": event.headers}), ends=ends)
        elif not self._has_ended:
            self._has_ended = True
            if trailers := [(bytes(name), bytes(value)) for name, value in event.headers]:
                await self._channel.answer(trailers, ends=True)
            else:
                await self._channel.send(b"", self._patience, ends=True)

    async def switch(self, head: h11.InformationalResponse, rest: bytes) -> None:
        raise ConnectionReset("the server switched to another protocol, which nobody asked for")

    @property
    def is_whole(self) -> bool:
        return True


class StreamServer:
    """A stream of HTTP/2 that is asked, as the events of h11."""

    is_used = False
    has_trailers = True
    rest = b""

    def __init__(self, link: Link) -> None:
        self.has_ended = False
        self._link = link
        self._channel: Channel | None = None
        self._is_asked = trio.Event()
        self._trailers: Headers = []

    async def send(self, event: Any) -> None:
        if isinstance(event, h11.Request):
            try:
                self._channel = self._link.open(_asking(event), ends=False)
            except BadPacket as problem:
                raise ConnectionReset(str(problem)) from problem
            finally:
                self._is_asked.set()
            return
        assert self._channel is not None, "a request begins with its head"
        data = bytes(event.data) if isinstance(event, h11.Data) else b""
        try:
            await self._channel.send(data, SILENCE, ends=isinstance(event, h11.EndOfMessage))
        except ClientDisconnected as problem:
            raise ConnectionReset(str(problem)) from problem

    async def next_event(self) -> Any:
        await self._is_asked.wait()
        if self._channel is None:
            raise ConnectionReset("the server takes no more requests over this connection")
        try:
            while True:
                event = await self._channel.next_event(SILENCE)
                if isinstance(event, Body):
                    return h11.Data(data=event.data)
                if isinstance(event, Ended):
                    return h11.EndOfMessage(headers=self._trailers)
                if isinstance(event, Trailers):
                    self._trailers = event.headers
                    continue
                status, headers = _status_of(event.headers)
                if isinstance(event, Interim):
                    return h11.InformationalResponse(status_code=status, headers=headers)
                self.has_ended = event.ends
                return h11.Response(status_code=status, headers=headers)
        except (ClientDisconnected, BadPacket, h11.LocalProtocolError) as problem:
            raise ConnectionReset(f"the server broke off its answer: {problem}") from problem

    def length_past_h11(self, answer: h11.Response, method: bytes) -> int:
        return 0

    def body(self, length: int) -> AsyncGenerator[bytes, None]:
        raise AssertionError("nothing goes past h11 here")

    async def give_up(self) -> None:
        self.leave()

    def leave(self) -> None:
        """The exchange is over."""
        if self._channel is not None:
            self._link.leave(self._channel)


class Relays:
    """Of one client's connection."""

    def __init__(self, owner: object, arrival: Arrival, limits: Limits) -> None:
        self._owner = owner
        self._arrival = arrival
        self._limits = limits
        self._resting: dict[ReverseProxy, list[Upstream]] = {}
        self._links: dict[ReverseProxy, Link] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Keep connections until cancelled; then all of them are reset."""
        try:
            async with trio.open_nursery() as self._nursery:
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for upstreams in self._resting.values():
                    for upstream in upstreams:
                        await reset(upstream.stream)

    async def answer(self, channel: Channel, request: h11.Request, chosen: ByServer, *, has_body: bool) -> None:
        """Ask the server. Nothing that a client or a server does is raised."""
        client = StreamClient(channel, self._limits.stall_timeout)
        try:
            if is_grpc(request) and chosen.proxy.to.startswith("http://"):
                await self._by_http2(client, request, chosen)
            else:
                await self._by_http1(client, request, chosen, has_body)
            return
        except ClientDisconnected:
            return
        except UNREACHED as problem:
            log.warning("%s cannot be reached for a request: %s", chosen.proxy.to, problem)
            sentence, status = "the server behind this one cannot be reached", 502
        except h11.RemoteProtocolError as problem:
            sentence, status = str(problem), problem.error_status_hint
        except Exception as problem:
            log.warning("%s broke off a request: %s", chosen.proxy.to, problem)
            sentence, status = "the server behind this one broke off", 502
        await refuse(channel, status, sentence, self._limits)

    async def _by_http1(self, client: StreamClient, request: h11.Request, chosen: ByServer, has_body: bool) -> None:
        upstream = await self._upstream(chosen.proxy)
        exchange = Exchange(client, upstream, uncounted, is_gateway=True)
        is_long_told = any(name == b"content-length" for name, _ in chosen.head)
        head = [*chosen.head, (b"transfer-encoding", b"chunked")] if has_body and not is_long_told else chosen.head
        ending = await exchange.run(h11.Request(method=request.method, target=chosen.target, headers=head))
        if ending is Ending.BROKEN:
            return
        resting = self._resting.setdefault(chosen.proxy, [])
        if upstream.is_reusable and len(resting) < MOST_IDLE:
            upstream.begin_again()
            resting.append(upstream)
        else:
            await upstream.stream.aclose()

    async def _upstream(self, proxy: ReverseProxy) -> Upstream:
        resting = self._resting.get(proxy, [])
        while resting:
            upstream = resting.pop()
            if upstream.is_alive:
                return upstream
            await reset(upstream.stream)
        stream = await proxy.dial(self._owner, self._arrival)
        return Upstream(stream, None, self._limits.head, SILENCE)

    async def _by_http2(self, client: StreamClient, request: h11.Request, chosen: ByServer) -> None:
        server = StreamServer(await self._link(chosen.proxy))
        exchange = Exchange(client, server, uncounted, is_gateway=True)
        head = [one for one in chosen.head if one[0] not in CONNECTIONS_OWN]
        try:
            await exchange.run(
                h11.Request(method=request.method, target=chosen.target, headers=head, http_version=b"2")
            )
        finally:
            server.leave()

    async def _link(self, proxy: ReverseProxy) -> Link:
        """One connection for all; another one where that has no place, or has ended."""
        known = self._links.get(proxy)
        if known is not None and not known.is_over and known.machine.has_place:
            return known
        stream = await proxy.dial(self._owner, self._arrival)
        machine = Http2Machine(is_client=True, head=self._limits.head)
        link = self._links[proxy] = Link(stream, machine, self._limits.stall_timeout)
        assert self._nursery is not None, "`run` runs"
        self._nursery.start_soon(self._keep, link, stream)
        return link

    async def _keep(self, link: Link, stream: Stream) -> None:
        try:
            await link.run(None, self._limits.idle_timeout)
        finally:
            with trio.CancelScope(shield=True):
                await reset(stream)


def _asking(request: h11.Request) -> Headers:
    headers = [(bytes(name), bytes(value)) for name, value in request.headers]
    host = next((value for name, value in headers if name == b"host"), b"")
    pseudo = [
        (b":method", bytes(request.method)),
        (b":scheme", b"http"),
        (b":path", bytes(request.target)),
        (b":authority", host),
    ]
    return [*pseudo, *(one for one in headers if one[0] not in (b"host", b"te")), TOLD]


def _status_of(came: Headers) -> tuple[int, Headers]:
    status = next((value for name, value in came if name == b":status"), b"")
    if len(status) != 3 or not status.isdigit():
        raise BadPacket("an answer without a status")
    return int(status), [one for one in came if not one[0].startswith(b":")]
