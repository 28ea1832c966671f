"""Pings of peers on control's behalf: each kind sent through the Device, what came of it in control's own words.

Owns: the translation between the dialer's answers and PingResponse. Refuses to know: who asked, and where the
answer goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from msgspec.structs import replace as change

from tailscale.dial.peerapi import ping_peerapi
from tailscale.errors import NoRoute, TailscaleError
from tailscale.runtime.control_pings import PEER_API, SENT_AS
from ts_base.errors import BadPacket
from ts_base.ip import format_address, parse_address
from ts_control.wire import PingResponse

if TYPE_CHECKING:
    from tailscale.dial.dialing import Dialer

PING_TIMEOUT = 10.0
WAYS = {"direct": "endpoint", "relay": "derp_region_code", "peer relay": "peer_relay"}


async def ping_for_control(dialer: Dialer, host: str, kind: str) -> PingResponse:
    """What came of it; a failure is an answer too."""
    try:
        address = parse_address(host)
    except BadPacket:
        return PingResponse(type=kind, ip=host, err="not an IP address")
    node = dialer.identify(address)
    if dialer.directory.is_ours(address):
        return PingResponse(type=kind, ip=host, is_local_ip=True, err=f"{host} is local Tailscale IP")
    answer = PingResponse(type=kind, ip=host, node_ip=format_address(address), node_name=node.name if node else "")
    try:
        if kind == PEER_API:
            return await _head_peer_api(dialer, host, address, answer)
        result = await dialer.ping(host, SENT_AS[kind], 0, PING_TIMEOUT)
    except TailscaleError as problem:
        return change(answer, err=str(problem))
    path = result.path
    found = {WAYS[path.kind]: path.where} if path.kind else {}
    return change(answer, latency_seconds=result.latency, **found)


async def _head_peer_api(dialer: Dialer, host: str, address: bytes, answer: PingResponse) -> PingResponse:
    with trio.move_on_after(PING_TIMEOUT):
        latency, port = await ping_peerapi(dialer, address, host)
        return change(answer, peer_api_port=port, latency_seconds=latency)
    raise NoRoute(f"the peer API of {host} did not answer within {PING_TIMEOUT:.0f} s")
