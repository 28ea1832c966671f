"""What every conversation of one proxy shares, and one client as all of them see it. Owns the counts."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tailscale.carry import LOST, Stream
from tailscale.errors import TailscaleError
from tailscale.proxy.dials import Dials
from tailscale.proxy.outcomes import ClientGone, Outcome, ProxyBusy, outcome_of
from tailscale.proxy.requests import Kind, Request
from ts_proxy.user_names import UserName

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.proxy.gate import Gate
    from tailscale.proxy.limits import ProxyLimits
    from tailscale.proxy.places import Places
    from tailscale.proxy.relay import Relay
    from tailscale.proxy.users import Doorkeeper

log = logging.getLogger("tailscale.proxy")
READ = 64 << 10
NOBODY = UserName("")


class ProxyStatistics(NamedTuple):
    """What a proxy has done, and what it is doing."""

    clients: int
    """Let in since it began."""
    open: int
    """Of those, still there."""
    carried: int
    """Connections that bytes are being carried for right now."""
    associations: int
    """UDP associations that are open."""
    requests: dict[str, int]
    """By kind: socks, udp, connect, http."""
    failures: dict[str, int]
    """Requests that failed, by the error types of RFC 9209."""
    hung_up: int
    """Clients that had said nothing yet, or rested, and made room for others."""
    turned_away: int
    """That came while all places were taken."""
    logins_refused: int
    timed_out: int
    """Connections that carried nothing for `limits.idle`."""
    bytes_sent: int
    """Towards the destinations."""
    bytes_received: int
    drops: dict[str, int]
    """Datagrams that were not passed on, and clients that were not understood; docs/drops.md says what each means."""


@dataclass(frozen=True, slots=True)
class Service:
    """One proxy's parts."""

    gate: Gate
    doorkeeper: Doorkeeper
    places: Places
    relay: Relay
    limits: ProxyLimits
    dials: Dials = field(default_factory=Dials)
    requests: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    associations: set[object] = field(default_factory=set)
    _said: set[str] = field(default_factory=set)

    async def connect(self, client: Client, request: Request) -> Stream:
        """An open stream to where the request leads, given up when the client goes."""
        return await self.dials.make(client.stream, client.early, partial(self._connect, client, request))

    async def _connect(self, client: Client, request: Request) -> Stream:
        self.admit(client, request)
        return await self.gate.connect(request)

    def admit(self, client: Client, request: Request) -> None:
        self.requests[request.kind] += 1
        if not client.is_welcome:
            raise ProxyBusy("this proxy has as many clients as it may")

    def fail(self, problem: Exception, request: Request) -> Outcome:
        """Count and log a failure; how it is told."""
        if not isinstance(problem, (OSError, TailscaleError, UnicodeError)):
            log.error("%s failed", request, exc_info=problem)
        outcome = outcome_of(problem, is_key_expired=self.gate.device.node.expired)
        self.failures[outcome.error] += 1
        log.debug("%s: %s", request, problem)
        return outcome

    def say_once(self, sentence: str, *facts: object) -> None:
        """A warning the first time, so that clients cannot fill the log with it."""
        log.log(logging.DEBUG if sentence in self._said else logging.WARNING, sentence, *facts)
        self._said.add(sentence)

    def statistics(self) -> ProxyStatistics:
        """Counts so far."""
        return ProxyStatistics(
            clients=self.places.accepted,
            open=self.places.open,
            carried=self.relay.open,
            associations=len(self.associations),
            requests=dict(self.requests),
            failures=dict(self.failures),
            hung_up=self.places.hung_up,
            turned_away=self.places.turned_away,
            logins_refused=self.doorkeeper.refused,
            timed_out=self.relay.timed_out,
            bytes_sent=self.relay.sent,
            bytes_received=self.relay.received,
            drops=dict(self.drops),
        )


@dataclass(slots=True)
class Client:
    """One client's stream, who that is, and what it has sent that nobody has read yet."""

    stream: Stream
    address: tuple[str, int]
    door: tuple[str, int]
    """Our end of its connection."""
    peer: Node | None
    is_welcome: bool
    """False: all places are taken, which is all it will hear."""
    early: bytearray = field(default_factory=bytearray)

    async def more(self) -> None:
        """Wait until it has sent something more."""
        try:
            data = await self.stream.receive_some(READ)
        except LOST as problem:
            raise ClientGone from problem
        if not data:
            raise ClientGone
        self.early += data

    def take(self) -> bytes:
        """All that has been read ahead."""
        data, self.early = bytes(self.early), bytearray()
        return data

    async def send(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except LOST as problem:
            raise ClientGone from problem

    def request(self, kind: Kind, host: str, port: int, who: UserName = NOBODY, method: str = "") -> Request:
        return Request(kind, host, port, self.address, self.peer, who.user, who.session, who.ttl, method)
