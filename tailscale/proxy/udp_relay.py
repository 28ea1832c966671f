"""One UDP association of a SOCKS client: datagrams to wherever it wants, and what comes back. RFC 1928, section 7.

Hears nobody but its client, and sends it nothing from whom it has not spoken to: the port is no open door, and no
mirror for attacks on others. Lives as long as the connection over which it was asked for.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from tailscale.carry import LOST
from tailscale.errors import TailscaleError
from tailscale.proxy.datagrams import Address, Datagrams, FarSockets, Route
from ts_base.errors import BadPacket
from ts_base.ip import MAXIMUM_DATAGRAM
from ts_proxy.destinations import Destination
from ts_proxy.socks5 import decode_datagram_untrusted, encode_datagram, is_fragment

if TYPE_CHECKING:
    from tailscale.proxy.requests import Request
    from tailscale.proxy.service import Client, Service

log = logging.getLogger("tailscale.proxy")
QUEUE_BYTES = 64 << 10  # of datagrams that wait until their destination has been looked up
LOOKED_UP_AT_ONCE = 16
ROUTE_LIFETIME = 60.0  # seconds that what a name led to is believed
READ = 4096
PAUSE = 0.1  # seconds, after an error of the socket towards the client
FAILED = (OSError, TailscaleError, trio.BrokenResourceError, trio.ClosedResourceError, UnicodeError)


async def associate(service: Service, client: Client, request: Request, near: Datagrams) -> None:
    """Until the client closes its connection, or has been silent for too long."""
    async with trio.open_nursery() as nursery:
        association = _Association(service, client, request, near, nursery)
        service.associations.add(association)
        try:
            await association.run()
        finally:
            service.associations.discard(association)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await association.aclose()


@dataclass(slots=True)
class _Target:
    """A destination that the client speaks to."""

    route: Route
    until: float


class _Association:
    def __init__(
        self, service: Service, client: Client, request: Request, near: Datagrams, nursery: trio.Nursery
    ) -> None:
        self._service = service
        self._client = client
        self._request = request
        self._near = near
        self._nursery = nursery
        self._host = client.address[0]
        self._port = request.port  # of the client; 0 until its first datagram tells
        self._far = FarSockets(service.gate, service.gate.session_of(request), self._on_opened)
        self._targets: OrderedDict[Destination, _Target] = OrderedDict()
        self._spoken_to: Counter[str] = Counter()  # addresses, by how many targets
        self._waiting: dict[Destination, list[bytes]] = {}
        self._waiting_bytes = 0
        self._last_heard = trio.current_time()

    async def run(self) -> None:
        self._nursery.start_soon(self._hear_client)
        self._nursery.start_soon(self._wait_until_idle)
        await self._wait_until_hung_up()

    async def aclose(self) -> None:
        await self._far.aclose()

    def _on_opened(self, way: str, far: Datagrams) -> None:
        self._nursery.start_soon(self._hear_far, way, far)

    # How it ends

    async def _wait_until_hung_up(self) -> None:
        """RFC 1928, section 7: an association ends with the connection that asked for it."""
        try:
            while await self._client.stream.receive_some(READ):
                pass  # nothing is said there any more, and whoever says something is not answered
        except LOST:
            return

    async def _wait_until_idle(self) -> None:
        patience = self._service.limits.udp_idle
        while (until := self._last_heard + patience) > trio.current_time():  # noqa: ASYNC110 - it moves on
            await trio.sleep_until(until)
        self._nursery.cancel_scope.cancel()

    # From the client

    async def _hear_client(self) -> None:
        drops = self._service.drops
        while True:
            try:
                data, source = await self._near.receive_from()
            except trio.ClosedResourceError:  # the device is closing
                self._nursery.cancel_scope.cancel()
                return
            except OSError as problem:  # some systems tell here that the client's port was closed for a moment
                log.debug("an association: %s", problem)
                await trio.sleep(PAUSE)
                continue
            if source[0] != self._host or self._port not in (0, source[1]):
                drops["proxy.udp_stranger"] += 1
                continue
            self._port = source[1]
            if is_fragment(data):
                drops["proxy.udp_fragment"] += 1
                continue
            try:
                destination, payload = decode_datagram_untrusted(data)
            except BadPacket:
                drops["proxy.udp_malformed"] += 1
                continue
            self._last_heard = trio.current_time()
            await self._pass_on(destination, payload)

    async def _pass_on(self, destination: Destination, payload: bytes) -> None:
        target = self._targets.get(destination)
        if target is not None and target.until > self._last_heard:
            self._targets.move_to_end(destination)
            await self._send(target.route, payload)
            return
        if self._waiting_bytes + len(payload) > QUEUE_BYTES or len(self._waiting) >= LOOKED_UP_AT_ONCE:
            self._service.drops["proxy.udp_queue_full"] += 1
            return
        self._waiting_bytes += len(payload)
        if destination in self._waiting:
            self._waiting[destination].append(payload)
        else:
            self._waiting[destination] = [payload]
            self._nursery.start_soon(self._look_up, destination)

    async def _look_up(self, destination: Destination) -> None:
        """Find the way there, once for all that waits for it."""
        request = replace(self._request, host=destination.host, port=destination.port)
        route: Route | None = None
        try:
            with trio.fail_after(self._service.limits.dial):
                await self._service.gate.check(request)
                route = await self._far.route_to(*destination)
        except (*FAILED, trio.TooSlowError) as problem:
            self._service.fail(problem, request)
        waiting = self._waiting.pop(destination)
        self._waiting_bytes -= sum(map(len, waiting))
        if route is None:
            self._service.drops["proxy.udp_unreachable"] += len(waiting)
            return
        self._remember(destination, route)
        for payload in waiting:
            await self._send(route, payload)

    def _remember(self, destination: Destination, route: Route) -> None:
        self._forget(destination)
        while len(self._targets) >= self._service.limits.udp_targets:
            self._forget(next(iter(self._targets)))
        self._targets[destination] = _Target(route, trio.current_time() + ROUTE_LIFETIME)
        self._spoken_to[route.address[0]] += 1

    def _forget(self, destination: Destination) -> None:
        if (target := self._targets.pop(destination, None)) is not None:
            host = target.route.address[0]
            self._spoken_to[host] -= 1
            if not self._spoken_to[host]:
                del self._spoken_to[host]

    async def _send(self, route: Route, payload: bytes) -> None:
        try:
            out = await self._far.socket_for(route.way)
            await out.send_to(payload, route.address)
        except FAILED as problem:
            self._service.drops["proxy.udp_unreachable"] += 1
            log.debug("an association cannot reach %s: %s", route.address, problem)
            return
        self._service.relay.count(sent=len(payload))

    # From the destinations

    async def _hear_far(self, way: str, far: Datagrams) -> None:
        """Until its exit is gone."""
        try:
            while True:
                data, source = await far.receive_from()
                await self._pass_back(data, source)
        except FAILED as problem:
            log.debug("an association lost its way by %s: %s", way, problem)
            await self._far.lose(way, far)

    async def _pass_back(self, data: bytes, source: Address) -> None:
        drops = self._service.drops
        if source[0] not in self._spoken_to:
            drops["proxy.udp_unasked"] += 1
            return
        datagram = encode_datagram(*source, data)
        if len(datagram) > MAXIMUM_DATAGRAM:
            drops["proxy.udp_too_large"] += 1
            return
        self._last_heard = trio.current_time()
        try:
            await self._near.send_to(datagram, (self._host, self._port))
        except OSError as problem:
            drops["proxy.udp_unreachable"] += 1
            log.debug("an association cannot reach its client: %s", problem)
            return
        self._service.relay.count(received=len(data))
