"""What control asks of us in passing: proofs of life, c2n requests, pings of others. Each is answered once.

Owns: which request gets which answer, and the bound on answers under way. Failures are logged, never raised: an answer
that does not arrive is control's to notice.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import trio

from tailscale.runtime.control_line import ControlLine, Jobs
from ts_base.errors import BadPacket
from ts_control.c2n import Facts, answer_c2n_untrusted
from ts_control.client import ControlClient
from ts_control.connection import BROKEN
from ts_control.errors import ControlLost, RequestRefused
from ts_control.gojson import encode_json
from ts_control.location import answer_target_untrusted
from ts_control.wire import PingRequest, PingResponse

log = logging.getLogger("tailscale.control")

MAX_ANSWERS_UNDER_WAY = 8
SENT_AS = {"disco": "disco", "TSMP": "tsmp", "ICMP": "icmp"}  # control's words for the kinds of `Device.ping`
PEER_API = "peerapi"
KINDS = (*SENT_AS, PEER_API)
PINGS_FULL = "control.pings_full"

PingPeer = Callable[[str, str], Awaitable[PingResponse]]


async def no_ping(host: str, kind: str) -> PingResponse:
    """The answer of a control actor that has no packet path beside it."""
    return PingResponse(type=kind, ip=host, err="nothing to ping with")


class PingStatistics(NamedTuple):
    under_way: int
    drops: dict[str, int]


class Pings:
    """Answers ping requests over one line."""

    def __init__(
        self, client: ControlClient, line: ControlLine, jobs: Jobs, ping_peer: PingPeer, look: Callable[[], Facts]
    ) -> None:
        self._client = client
        self._line = line
        self._jobs = jobs
        self._ping_peer = ping_peer
        self._look = look
        self._last_url = ""
        self._under_way = 0
        self.drops: Counter[str] = Counter()

    def statistics(self) -> PingStatistics:
        return PingStatistics(self._under_way, dict(self.drops))

    def hear(self, request: PingRequest) -> None:
        """Begin to answer, unless it is the last request again or too much is under way."""
        if not request.url or request.url == self._last_url:
            return
        if self._under_way >= MAX_ANSWERS_UNDER_WAY:
            self.drops[PINGS_FULL] += 1
        elif self._jobs.start(partial(self._answer, request)):
            self._last_url = request.url
            self._under_way += 1

    @trio.lowlevel.enable_ki_protection
    async def _answer(self, request: PingRequest) -> None:
        try:
            await self._dispatch(request)
        except* (ControlLost, RequestRefused, BadPacket, trio.TooSlowError, *BROKEN) as problem:
            log.info("a ping request of the control server could not be answered: %s", problem.exceptions[0])
        finally:
            self._under_way -= 1

    async def _dispatch(self, request: PingRequest) -> None:
        if request.types == "c2n":
            # Upstream answers these inside the control channel only.
            await self._line.ask("POST", _path(request.url), answer_c2n_untrusted(request.payload, self._look))
        elif request.types:
            async with trio.open_nursery() as nursery:
                for kind in dict.fromkeys(request.types.split(",", 8)):
                    if kind in KINDS:
                        nursery.start_soon(self._report_ping, request, kind)
        elif request.url_is_noise:
            await self._line.ask("HEAD", _path(request.url))
        else:
            await self._client.answer_ping(request.url)

    @trio.lowlevel.enable_ki_protection
    async def _report_ping(self, request: PingRequest, kind: str) -> None:
        answer = encode_json(await self._ping_peer(request.ip, kind))
        if request.url_is_noise:
            await self._line.ask("POST", _path(request.url), answer)
        else:
            await self._client.answer_ping(request.url, answer)


def _path(url: str) -> str:
    return answer_target_untrusted(url)[1]
