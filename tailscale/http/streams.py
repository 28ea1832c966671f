"""The connections of a server that speak HTTP/2: many requests at once, each answered as over HTTP/1.1.

Owns the streams of one connection and their tasks. Who answers is chosen by the same function; servers behind this one
are asked by `relays.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import h11
import trio

from tailscale.http.choice import ByApp, Choose
from tailscale.http.relays import Relays
from tailscale.http1 import framing
from tailscale.http1.limits import Limits
from tailscale.http2.exchange import CONNECTIONS_OWN, StreamExchange, refuse
from tailscale.http2.link import Channel, Link
from tailscale.http2.machine import STREAMS, Head, Http2Machine
from ts_base.errors import BadPacket

if TYPE_CHECKING:
    from tailscale.http.arrival import Arrival

log = logging.getLogger("tailscale.http")
COOKIE = b"cookie"


class ServedLink:
    """One connection. `on_request` and `on_silence` are told when it begins and ceases to be of use."""

    def __init__(
        self,
        owner: object,
        limits: Limits,
        arrival: Arrival,
        choose: Choose,
        on_request: Callable[[], object],
        on_silence: Callable[[], object],
    ) -> None:
        self._limits = limits
        self._arrival = arrival
        self._choose = choose
        self._on_request, self._on_silence = on_request, on_silence
        self._relays = Relays(owner, arrival, limits)
        self._is_stopping = False
        self._link: Link | None = None

    def stop(self) -> None:
        """No request more than those that have begun."""
        self._is_stopping = True
        self._end_if_idle()

    async def run(self, stream: trio.abc.Stream) -> None:
        """To its end."""
        machine = Http2Machine(is_client=False, head=self._limits.head)
        link = self._link = Link(stream, machine, self._limits.stall_timeout)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._relays.run)
            async with (
                trio.open_nursery() as requests
            ):  # whose apps hear that the client is gone, and end by themselves

                def begin(channel: Channel, head: Head) -> None:
                    # Of those given up, some apps may not have ended yet.
                    if self._is_stopping or len(link.channels) > STREAMS:
                        link.leave(channel)
                        return
                    self._on_request()
                    requests.start_soon(self._answer, link, channel, head)

                await link.run(begin, self._limits.idle_timeout)
            nursery.cancel_scope.cancel()

    async def _answer(self, link: Link, channel: Channel, head: Head) -> None:
        """One request; a mistake of ours costs this one, not the others."""
        try:
            await self._exchange(channel, head)
        except Exception:
            log.exception("a request over HTTP/2 failed")
        finally:
            link.leave(channel)
            if not link.channels:
                self._on_silence()
            self._end_if_idle()

    async def _exchange(self, channel: Channel, head: Head) -> None:
        try:
            request = request_of(head)
        except (BadPacket, h11.LocalProtocolError) as problem:
            await refuse(channel, 400, str(problem), self._limits)
            return
        chosen = await self._choose(request, self._arrival)
        if isinstance(chosen, ByApp):
            chosen.scope["extensions"] = {**chosen.scope["extensions"], "http.response.trailers": {}}
            await StreamExchange(channel, chosen.scope, self._limits).run(chosen.app)
        else:
            await self._relays.answer(channel, request, chosen, has_body=not head.ends)

    def _end_if_idle(self) -> None:
        if self._is_stopping and self._link is not None and not self._link.channels and not self._link.is_over:
            self._link.close()


def request_of(head: Head) -> h11.Request:
    """A request in the words of HTTP/1.1, which the rest of the server speaks; h11 refuses what could be two things."""
    pseudo: dict[bytes, bytes] = {}
    headers: list[tuple[bytes, bytes]] = []
    cookies: list[bytes] = []
    for name, value in head.headers:
        if name.startswith(b":"):
            pseudo[name] = value
        elif name == COOKIE:
            cookies.append(value)  # RFC 9113, 8.2.3: one again for whoever speaks HTTP/1.1
        else:
            headers.append((name, value))
    if cookies:
        headers.append((COOKIE, b"; ".join(cookies)))
    method, authority, target = (pseudo.get(name, b"") for name in (b":method", b":authority", b":path"))
    if method == b"CONNECT" or b":protocol" in pseudo:
        raise BadPacket("this server is no proxy")
    if not target.startswith(b"/") and (method, target) != (b"OPTIONS", b"*"):
        raise BadPacket("the request target is no path")
    if framing.read_target(method, target) is None:
        raise BadPacket("the request target is no path")
    hosts = [value for name, value in headers if name == b"host"]
    if authority and any(host.lower() != authority.lower() for host in hosts):
        raise BadPacket("Host and :authority are two hosts")
    others = [one for one in headers if one[0] != b"host"]
    host = authority or (hosts[0] if hosts else b"")
    if any(name in CONNECTIONS_OWN for name, _ in others):
        raise BadPacket("a field of HTTP/1.1 about its connection")  # RFC 9113, 8.2.2
    return h11.Request(method=method, target=target, headers=[(b"host", host), *others], http_version=b"2")
