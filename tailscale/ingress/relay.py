"""The relay itself: who comes, which name they want, and that their bytes go there. TLS never ends here.

Owns the listeners, the clients and their end, and what is counted. What goes wrong with one ends nobody else. A client
that leads nowhere is told so by an alert of TLS, as far as one says it; why is counted here and said in the log once.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from tailscale.carry import Stream
from tailscale.errors import TailscaleError
from tailscale.ingress.shares import Shares, network_of
from tailscale.ingress.targets import Refused, Targets
from tailscale.proxy import doors
from tailscale.proxy.attending import Attending
from tailscale.proxy.places import Places
from tailscale.proxy.relay import LINGER, Relay, say_goodbye
from ts_base.client_hello import (
    INTERNAL_ERROR,
    MISSING_EXTENSION,
    UNRECOGNIZED_NAME,
    BadHello,
    HelloReader,
    encode_alert,
)
from ts_base.errors import BadPacket
from ts_base.ip import format_address, maybe_address
from ts_proxy.proxy_header import decode_proxy_header_untrusted
from ts_proxy.sniffing import Language, language_of

if TYPE_CHECKING:
    from tailscale.ingress.limits import IngressLimits
    from tailscale.sockets.tcp import TcpStream

log = logging.getLogger("tailscale.ingress")
READ = 16 << 10
SAID = 256  # sentences that are in the log already
FORBIDDEN = 403
REASONS = {MISSING_EXTENSION: "ingress.no_name", UNRECOGNIZED_NAME: "ingress.bad_name"}  # else it is a bad hello
NOT_A_RELAY = (
    "%s takes nothing from this relay: let the tailnet's policy grant https://tailscale.com/cap/ingress to it, name it "
    "in relays= there, or start the target with TS_ALLOW_SELF_INGRESS=1 where both are one user's"
)
NOT_HTTPS = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"this port speaks TLS: write https:// in front of the name\n"
)
UNREACHED = (OSError, TailscaleError, trio.BrokenResourceError, trio.TooSlowError)


class IngressStatistics(NamedTuple):
    """What a relay has done, and what it is doing."""

    clients: int
    """Let in since it began."""
    open: int
    """Of those, still there."""
    carried: int
    """Connections that bytes are being carried for right now."""
    names: dict[str, int]
    """Those, by the name that they wanted."""
    hung_up: int
    """Clients that had said nothing yet, and made room for others."""
    turned_away: int
    """That came while all places were taken."""
    timed_out: int
    """Connections that carried nothing for `limits.idle`."""
    bytes_sent: int
    """Towards the targets."""
    bytes_received: int
    drops: dict[str, int]
    """Clients that were led nowhere; docs/drops.md says what each name means."""


class Nowhere(Exception):
    """A client is led nowhere: under which reason that is counted, and what it is told."""

    def __init__(self, reason: str, answer: bytes) -> None:
        super().__init__(reason)
        self.reason, self.answer = reason, answer


class Ingress:
    """A relay that is being served."""

    def __init__(self, listeners: list[doors.Listener], targets: Targets, port: int, limits: IngressLimits) -> None:
        self._listeners, self._targets, self._limits = listeners, targets, limits
        self.address: tuple[str, int] = doors.address_of(listeners[0])
        """Where it listens: an address and a port."""
        self._port = port or self.address[1]
        self._places = Places(limits.connections)
        self._sources, self._names = Shares(limits.per_source), Shares(limits.per_name)
        self._carried = Shares(limits.connections)  # by the names that targets took
        self._relay = Relay(limits.idle)
        self._drops: Counter[str] = Counter()
        self._said: dict[str, None] = {}

    @property
    def port(self) -> int:
        """Of `address`, also when 0 was asked for."""
        return self.address[1]

    def statistics(self) -> IngressStatistics:
        """Clients, names, bytes so far."""
        places, relay = self._places, self._relay
        return IngressStatistics(
            clients=places.accepted,
            open=places.open,
            carried=relay.open,
            names=dict(self._carried.open),
            hung_up=places.hung_up,
            turned_away=places.turned_away,
            timed_out=relay.timed_out,
            bytes_sent=relay.sent,
            bytes_received=relay.received,
            drops=dict(self._drops),
        )

    def __repr__(self) -> str:
        return f"<Ingress at {self.address[0]}:{self.port}, {self._places.open} clients>"

    # How it runs

    @trio.lowlevel.enable_ki_protection
    async def run(self, shutdown: trio.Event, task_status: trio.TaskStatus[Ingress]) -> None:
        """Until cancelled, or until `shutdown` is set and what is open has ended or had its time."""
        for node in self._targets.nodes():
            if self._targets.find(node) is None:
                self._say("no node called %s answers peers now: whoever wants a name of it is turned away", node)
        attending = Attending(self._listeners, self._attend, "the relay", log, self._say)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._relay.end_the_idle)
            started = partial(task_status.started, self)
            await attending.run(shutdown, self._limits.grace, started, self._places.close)
            nursery.cancel_scope.cancel()

    async def _attend(self, caller: doors.Caller) -> None:
        with self._places.one() as is_welcome:
            if is_welcome:
                await self._lead_or_tell(caller.stream, caller.address)
            else:
                self._drops["ingress.full"] += 1
                await self._tell(caller.stream, encode_alert(INTERNAL_ERROR) if is_welcome is False else b"")

    async def _lead_or_tell(self, stream: Stream, address: tuple[str, int]) -> None:
        try:
            await self._lead(stream, address)
        except Nowhere as nowhere:
            self._drops[nowhere.reason] += 1
            await self._tell(stream, nowhere.answer)

    async def _lead(self, stream: Stream, address: tuple[str, int]) -> None:
        """To where it wants. Raises Nowhere."""
        deadline = trio.current_time() + self._limits.hello
        hello, early = HelloReader(), b""
        if self._limits.proxy_protocol:
            with self._quiet(deadline):
                address, early = await _introduced(stream)
        source = _readable(address)
        with self._sources.one(network_of(source[0])) as has_share:
            if not has_share:
                raise Nowhere("ingress.source_full", encode_alert(INTERNAL_ERROR))
            with self._quiet(deadline):
                name = await _name_wanted(stream, hello, early)
            node = self._targets.node_for(name)
            if not node:
                raise Nowhere("ingress.unknown_name", encode_alert(UNRECOGNIZED_NAME))
            with self._names.one(name) as has_share:
                if not has_share:
                    self._say("%s has as many connections as one name may have", name)
                    raise Nowhere("ingress.name_full", encode_alert(INTERNAL_ERROR))
                far, ahead = await self._reach(node, source, name)
                with self._carried.one(name):
                    await self._carry(stream, far, ahead, bytes(hello.received))

    @contextlib.contextmanager
    def _quiet(self, deadline: float) -> Iterator[None]:
        """The client has not said yet what it wants: it has until then, and makes room for others."""
        with self._places.quiet(deadline) as scope:
            yield
        if scope.cancelled_caught:
            raise Nowhere("ingress.hello_late" if trio.current_time() >= deadline else "ingress.made_room", b"")

    async def _reach(self, node: str, source: tuple[str, int], name: str) -> tuple[TcpStream, bytes]:
        """A connection that the node has taken. Raises Nowhere."""
        target = self._targets.find(node)
        if target is None:
            self._say("no node called %s answers peers now: whoever wants a name of it is turned away", node)
            raise Nowhere("ingress.no_target", encode_alert(INTERNAL_ERROR))
        try:
            with trio.fail_after(self._limits.target):
                return await self._targets.open(target, source, name, self._port)
        except Refused as refusal:
            if refusal.is_for_us:
                self._say(NOT_A_RELAY, node)
                raise Nowhere("ingress.denied", encode_alert(INTERNAL_ERROR)) from None
            self._say("%s does not take %s:%d: %s", node, name, self._port, refusal)
            is_unpublished = refusal.status == FORBIDDEN
            alert = UNRECOGNIZED_NAME if is_unpublished else INTERNAL_ERROR
            reason = "ingress.not_published" if is_unpublished else "ingress.bad_answer"
            raise Nowhere(reason, encode_alert(alert)) from None
        except BadPacket as problem:
            self._say("%s is no target of a relay: %s", node, problem)
            raise Nowhere("ingress.bad_answer", encode_alert(INTERNAL_ERROR)) from None
        except UNREACHED as problem:
            self._say("%s cannot be reached: %s", node, problem)
            raise Nowhere("ingress.unreachable", encode_alert(INTERNAL_ERROR)) from None

    async def _carry(self, stream: Stream, far: TcpStream, ahead: bytes, hello: bytes) -> None:
        if ahead:
            try:
                await stream.send_all(ahead)
            except BaseException:
                far.abort()
                raise
        await self._relay.carry(stream, far, hello)

    async def _tell(self, stream: Stream, answer: bytes) -> None:
        """The last that a client hears, if anything."""
        if answer:
            with trio.move_on_after(LINGER):
                await stream.send_all(answer)
            await say_goodbye(stream)

    def _say(self, sentence: str, *facts: object) -> None:
        """A warning the first time, so that clients cannot fill the log with it."""
        said = sentence % facts
        log.log(logging.DEBUG if said in self._said else logging.WARNING, sentence, *facts)
        self._said[said] = None
        if len(self._said) > SAID:
            del self._said[next(iter(self._said))]


async def _introduced(stream: Stream) -> tuple[tuple[str, int], bytes]:
    """Whom a load balancer speaks for, and what came behind its header."""
    received = b""
    while True:
        received += await _more(stream)
        try:
            header = decode_proxy_header_untrusted(received)
        except BadPacket:
            raise Nowhere("ingress.bad_proxy_header", b"") from None
        if header is not None:
            return header.source or doors.NOWHERE, received[header.length :]


async def _name_wanted(stream: Stream, reader: HelloReader, early: bytes) -> str:
    """The name in a client's hello, of which `early` is here already."""
    while True:
        try:
            hello = reader.receive_untrusted(early) if early else None
        except BadHello as problem:
            if language_of(reader.received[0]) is Language.HTTP:
                raise Nowhere("ingress.not_tls", NOT_HTTPS) from None
            reason = REASONS.get(problem.alert, "ingress.bad_hello")
            raise Nowhere(reason, encode_alert(problem.alert)) from None
        if hello is not None:
            return hello.name
        early = await _more(stream)


async def _more(stream: Stream) -> bytes:
    data = bytes(await stream.receive_some(READ))
    if not data:
        raise Nowhere("ingress.no_hello", b"")
    return data


def _readable(address: tuple[str, int]) -> tuple[str, int]:
    """As a target is told it: IPv4 as IPv4, and an address for who has none."""
    known = maybe_address(address[0])
    return (format_address(known), address[1]) if known is not None else ("0.0.0.0", 0)
