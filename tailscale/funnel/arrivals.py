"""What relays bring from the internet: `POST /v0/ingress` of the peer API, and who takes what is behind it.

Owns which names and ports are published and how many connections are open. A request is judged in upstream's order and
answered in its words, so that a relay cannot tell the two apart. Refuses to know TLS.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tailscale.nodes import clean_name
from tailscale.peerapi.callers import INGRESS
from tailscale.runtime.messages import Offer
from tailscale.runtime.offers import offer
from ts_base.errors import BadPacket

if TYPE_CHECKING:
    from tailscale.funnel.streams import FunnelStream
    from tailscale.peerapi.callers import PeerCaller
    from tailscale.peerapi.request import PeerRequest
    from tailscale.runtime.bus import Bus
    from tailscale.runtime.directory import Directory

PATH = "/v0/ingress"
CONNECTIONS = 1024  # from the internet at once, through all relays
PUBLISHED = 64  # names and ports
SELF_INGRESS = "TS_ALLOW_SELF_INGRESS"
TRUE = {"1", "t", "T", "TRUE", "true", "True"}  # as upstream reads a switch

Handler = Callable[["FunnelStream"], Awaitable[None]]


class FunnelStatistics(NamedTuple):
    """`connections` is how many are open, `arrived` how many were let in since the device started."""

    connections: int
    arrived: int
    drops: dict[str, int]


class _Published(NamedTuple):
    """One name and port. Without a handler it is only made known that there will be one."""

    handler: Handler | None
    relays: tuple[str, ...]


class Arrivals:
    """One per device."""

    def __init__(self, bus: Bus, directory: Directory) -> None:
        self._bus, self._directory = bus, directory
        self._published: dict[tuple[str, int], _Published] = {}
        self._open = self._arrived = 0
        self.drops: Counter[str] = Counter()

    def statistics(self) -> FunnelStatistics:
        return FunnelStatistics(self._open, self._arrived, dict(self.drops))

    def publish(self, name: str, port: int, handler: Handler | None, relays: Sequence[str] = ()) -> Callable[[], None]:
        """From now on `handler` takes what comes for `name:port`. What takes that back. ValueError where one does."""
        key = name, port
        if key in self._published:
            raise ValueError(f"something answers {name}:{port} from the internet already")
        if len(self._published) >= PUBLISHED:
            raise ValueError(f"{PUBLISHED} names and ports are published by this device already")
        cleaned = tuple(clean_name(relay) if "." in relay else relay for relay in relays)  # an id has capitals
        self._published[key] = _Published(handler, cleaned)
        self._tell()

        def take_back() -> None:
            if self._published.pop(key, None) is not None:
                self._tell()

        return take_back

    def published(self) -> tuple[tuple[str, int], ...]:
        """Which names and ports lead here."""
        return tuple(key for key, one in self._published.items() if one.handler is not None)

    def _tell(self) -> None:
        """Control leads names to us only while there is something to lead to."""
        what = Offer(ingress=bool(self.published())) if self._published else None
        offer(self._bus, "funnel", what)

    async def __call__(self, request: PeerRequest) -> None:
        from tailscale.funnel.words import read_source_untrusted, read_target_untrusted  # few devices are published

        if not self.may_bring(request.caller):
            await self._refuse(request, 403, "funnel.no_capability", "denied; no ingress cap\n")
            return
        if request.method != "POST":
            await self._refuse(request, 405, "funnel.bad_request", "only POST allowed\n")
            return
        try:
            source = read_source_untrusted(request.header("tailscale-ingress-src"))
        except BadPacket:
            await self._refuse(
                request, 400, "funnel.bad_request", "Tailscale-Ingress-Src header invalid; want ip:port\n"
            )
            return
        try:
            name, port = read_target_untrusted(request.header("tailscale-ingress-target"))
        except BadPacket:
            sentence = "Tailscale-Ingress-Target header invalid; want host:port\n"
            await self._refuse(request, 400, "funnel.bad_request", sentence)
            return
        known = self._published.get((name, port))
        if known is None or known.handler is None or not self._may_lead(request.caller, known):
            await self._refuse(request, 403, "funnel.not_published", "denied\n")
        elif self._open >= CONNECTIONS:
            await self._refuse(request, 503, "funnel.too_many_connections", "this node has as many as it takes\n")
        else:
            await self._admit(request, known.handler, source, f"{name}:{port}")

    async def _admit(self, request: PeerRequest, handler: Handler, source: tuple[str, int], target: str) -> None:
        from tailscale.funnel.streams import FunnelStream

        self._open += 1
        self._arrived += 1
        try:
            stream = FunnelStream(await request.take_over(), source, target, relay=request.caller.node)
            try:
                await handler(stream)
            finally:
                stream.ended.set()
        finally:
            self._open -= 1

    def may_bring(self, caller: PeerCaller) -> bool:
        """Whether somebody may be a relay: by the policy, or because a published name says so."""
        if INGRESS in caller.capabilities:
            return True
        if caller.is_unsigned:
            return False
        return _is_own_relay(caller) or any(self._is_named(caller, one) for one in self._published.values())

    def _may_lead(self, caller: PeerCaller, known: _Published) -> bool:
        """Who is a relay only because a name says so leads to that name."""
        return INGRESS in caller.capabilities or _is_own_relay(caller) or self._is_named(caller, known)

    def _is_named(self, caller: PeerCaller, known: _Published) -> bool:
        """By a full name, an address or an id; a short name means a node of our own domain, never a shared one."""
        node, domain = caller.node, self._directory.self_node().name.partition(".")[2]
        names = {clean_name(node.name), node.stable_id, *node.addresses}
        return any(relay in names or f"{clean_name(relay)}.{domain}" in names for relay in known.relays)

    async def _refuse(self, request: PeerRequest, status: int, reason: str, sentence: str) -> None:
        self.drops[reason] += 1
        await request.answer(status, sentence)


def _is_own_relay(caller: PeerCaller) -> bool:
    """Upstream's switch for relays of one's own, where control grants no capability."""
    return caller.is_same_user and os.environ.get(SELF_INGRESS, "") in TRUE
