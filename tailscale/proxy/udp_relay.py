"""One UDP association of a SOCKS client: datagrams to wherever it wants, and what comes back. RFC 1928, section 7.

Hears nobody but its client, and sends it nothing from whom it has not spoken to: the port is no open door, and no
mirror for attacks on others. Lives as long as the connection over which it was asked for.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from tailscale.carry import LOST
from tailscale.errors import TailscaleError
from tailscale.proxy.datagrams import Address, Datagrams, FarSockets, Route, open_near
from ts_base.errors import BadPacket
from ts_base.ip import MAXIMUM_DATAGRAM
from ts_proxy.destinations import Destination
from ts_proxy.socks5 import Reply, Socks5Server, decode_datagram_untrusted, encode_datagram, is_fragment

if TYPE_CHECKING:
    from tailscale.proxy.requests import Request
    from tailscale.proxy.service import Client, Service

log = logging.getLogger("tailscale.proxy")
QUEUE_BYTES = 64 << 10  # of datagrams that wait until their destination has been looked up
ROUTE_LIFETIME = 60.0  # seconds that what a name led to is believed
FAILED = (OSError, TailscaleError, trio.BrokenResourceError, trio.ClosedResourceError, UnicodeError)


async def associate(service: Service, client: Client, machine: Socks5Server, request: Request) -> None:
    """Until the client closes its connection, or has been silent for too long."""
    service.admit(client, request)
    near = await open_near(service.gate, client)
    try:
        machine.reply(Reply.SUCCEEDED, near.local_address)
        await client.send(machine.transmit())
        await _Association(service, client, request, near).run()
    finally:
        with trio.CancelScope(shield=True):
            await near.aclose()


@dataclass(slots=True)
class _Target:
    """A destination that the client speaks to."""

    route: Route
    until: float


class _Association:
    def __init__(self, service: Service, client: Client, request: Request, near: Datagrams) -> None:
        self._service = service
        self._client = client
        self._request = request
        self._near = near
        self._host = client.address[0]
        self._port = request.port  # of the client; 0 until its first datagram tells
        self._far = FarSockets(service.gate, request)
        self._sockets: dict[str, Datagrams] = {}
        self._targets: OrderedDict[Destination, _Target] = OrderedDict()
        self._spoken_to: Counter[str] = Counter()  # addresses, by how many targets
        self._waiting: dict[Destination, list[bytes]] = {}
        self._waiting_bytes = 0
        self._last_heard = trio.current_time()
        self._is_over = False

    async def run(self) -> None:
        self._service.associations.add(self)
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._contained, self._hear_client)
                self._nursery.start_soon(self._contained, self._wait_until_idle)
                await self._wait_until_hung_up()
                self._nursery.cancel_scope.cancel()
        finally:
            self._service.associations.discard(self)
            with trio.CancelScope(shield=True):
                for one in self._sockets.values():
                    await one.aclose()
