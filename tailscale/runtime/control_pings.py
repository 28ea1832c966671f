"""What control asks of us in passing: proofs of life, c2n requests, pings of others. Each is answered once.

Owns: which request gets which answer, and the bound on answers under way. Failures are logged, never raised: an answer
that does not arrive is control's to notice.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import trio

from ts_base.errors import BadPacket
from ts_control.c2n import answer_c2n_untrusted
from ts_control.client import ControlClient
from ts_control.connection import BROKEN, ControlConnection
from ts_control.errors import ControlLost, RequestRefused
from ts_control.gojson import encode_json
from ts_control.wire import PingRequest, PingResponse

log = logging.getLogger("tailscale.control")

MAX_ANSWERS_UNDER_WAY = 8
SENT_AS = {"disco": "disco", "TSMP": "tsmp", "ICMP": "icmp"}  # control's words for the kinds of `Device.ping`
PEER_API = "peerapi"
KINDS = (*SENT_AS, PEER_API)

PingPeer = Callable[[str, str], Awaitable[PingResponse]]


class Pings:
    """Answers ping requests over one client."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client
        self.ping_peer: PingPeer | None = None
        self._last_url = ""
        self._under_way = 0
        self.dropped = 0

    def hear(self, request: PingRequest, connection: ControlConnection, nursery: trio.Nursery) -> None:
        """Begin to answer, unless it is the last request again or too much is under way."""
        if not request.url or request.url == self._last_url:
            return
        if self._under_way >= MAX_ANSWERS_UNDER_WAY:
            self.dropped += 1
            return
        self._last_url = request.url
        self._under_way += 1
        nursery.start_soon(self._answer, request, connection)

    @trio.lowlevel.enable_ki_protection
    async def _answer(self, request: PingRequest, connection: ControlConnection) -> None:
        try:
            await self._dispatch(request, connection)
        except* (ControlLost, RequestRefused, BadPacket, trio.TooSlowError, ValueError, *BROKEN) as problem:
            log.info("a ping request of the control server could not be answered: %s", problem.exceptions[0])
        finally:
            self._under_way -= 1

    async def _dispatch(self, request: PingRequest, connection: ControlConnection) -> None:
        if request.types == "c2n":
            # Upstream answers these inside the control channel only.
            await connection.request("POST", _path(request.url), answer_c2n_untrusted(request.payload))
        elif request.types:
            async with trio.open_nursery() as nursery:
                for kind in dict.fromkeys(request.types.split(",", 8)):
                    if kind in KINDS:
                        nursery.start_soon(self._report_ping, request, kind, connection)
        elif request.url_is_noise:
            await connection.request("HEAD", _path(request.url))
        else:
            await self._client.answer_ping(request.url)

    @trio.lowlevel.enable_ki_protection
    async def _report_ping(self, request: PingRequest, kind: str, connection: ControlConnection) -> None:
        if self.ping_peer is None:
            answer = PingResponse(type=kind, ip=request.ip, err="nothing to ping with")
        else:
            answer = await self.ping_peer(request.ip, kind)
        if request.url_is_noise:
            await connection.request("POST", _path(request.url), encode_json(answer))
        else:
            await self._client.answer_ping(request.url, encode_json(answer))


def _path(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
