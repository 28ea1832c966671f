"""Who takes which messages here: subscriptions and the servers of requests, by namespace.

Owns the queues of what was delivered and not yet taken. What is taken gives its sender credit back; what fits no queue
stays with the sender's line. Knows a line only by what a message needs of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar

import msgspec
import trio

from tailscale.events import Lagged
from ts_base.errors import BadPacket
from ts_mesh.envelope import Envelope, decode_payload
from ts_mesh.facts import NOBODY, SHAPE

if TYPE_CHECKING:
    from tailscale.mesh.peers import MeshPeer

T = TypeVar("T")
LAGGED = "mesh.reader_lagged"
LATEST = datetime.max.replace(tzinfo=UTC).timestamp() * 1000


class Sender(Protocol):
    """The line that a message came by."""

    @property
    def peer(self) -> MeshPeer: ...

    def took(self, namespace: str, life: int) -> None:
        """The peer may send another one."""

    def hold(self, envelope: Envelope, *, for_listener: bool) -> None:
        """Nobody can take it yet."""

    def refuse(self, envelope: Envelope, why: str) -> None:
        """It cannot be had here."""

    def kick(self) -> None:
        """What it is to do may be another now."""

    def look_again(self, namespace: str) -> None:
        """What is held for a namespace may be taken now."""


@dataclass(frozen=True, slots=True)
class Message(Generic[T]):
    """One message of a member. Who sent it is what the tailnet says, not what the message says."""

    sender: MeshPeer
    namespace: str
    kind: str
    data: T
    sent_at: datetime | None
    """By the sender's clock."""


@dataclass(eq=False, slots=True)
class _Token:
    """One delivered message, until all who wait for it have taken it."""

    line: Sender
    namespace: str
    life: int
    readers: int

    def take(self) -> None:
        self.readers -= 1
        if not self.readers:
            self.line.took(self.namespace, self.life)


@dataclass(eq=False, slots=True)
class Question:
    """A message that asks."""

    line: Sender
    envelope: Envelope
    life: int
    message: Message[Any]


class Server:
    """The questions of one namespace, in the order they came."""

    def __init__(self, decoder: msgspec.json.Decoder[Any] | None) -> None:
        self.decoder = decoder
        self._waiting: deque[Question] = deque()
        self._lot = trio.lowlevel.ParkingLot()
        self._is_over = False
        self.running: dict[Question, trio.CancelScope] = {}

    def put(self, question: Question) -> None:
        self._waiting.append(question)
        self._lot.unpark()

    async def next(self) -> Question:
        """The next one; its sender may ask another. Raises EndOfChannel once the mesh is left."""
        while not self._waiting:
            if self._is_over:
                raise trio.EndOfChannel
            await self._lot.park()
        question = self._waiting.popleft()
        question.line.took(question.envelope.namespace, question.life)
        return question

    def cancel(self, line: Sender, n: int | None = None) -> None:
        """Nobody waits for the answer to this question, or to any question that came by this line."""
        for question in [q for q in self._waiting if q.line is line and n in (None, q.envelope.n)]:
            self._waiting.remove(question)
            line.took(question.envelope.namespace, question.life)
        for question, scope in self.running.items():
            if question.line is line and n in (None, question.envelope.n):
                scope.cancel()

    def end(self) -> None:
        """The mesh is left: there are no more questions."""
        self._is_over = True
        self._lot.unpark_all()

    def close(self) -> None:
        """What waits is given back: another server may come."""
        for question in self._waiting:
            question.line.refuse(question.envelope, NOBODY)
        self._waiting.clear()


class Router:
    """All subscriptions and servers of one mesh."""

    def __init__(self, drops: Counter[str]) -> None:
        self.drops = drops
        self._subscriptions: dict[str, list[Subscription[Any]]] = {}
        self.servers: dict[str, Server] = {}
        self.lines: Iterable[Sender] = ()

    def add(self, namespace: str, subscription: Subscription[Any]) -> None:
        self._subscriptions.setdefault(namespace, []).append(subscription)

    def remove(self, namespace: str, subscription: Subscription[Any]) -> None:
        left = [each for each in self._subscriptions.get(namespace, ()) if each is not subscription]
        if left:
            self._subscriptions[namespace] = left
        else:
            self._subscriptions.pop(namespace, None)

    def serve(self, namespace: str, server: Server) -> None:
        """From now on its questions are answered; those that came too early first."""
        self.servers[namespace] = server
        for line in tuple(self.lines):
            line.look_again(namespace)

    def stop_serving(self, namespace: str) -> None:
        self.servers.pop(namespace).close()

    def close(self) -> None:
        """The mesh is left: everybody who reads comes to an end."""
        for subscriptions in tuple(self._subscriptions.values()):
            for subscription in subscriptions:
                subscription.close()
        for server in self.servers.values():
            server.end()

    def deliver(self, line: Sender, envelope: Envelope, life: int) -> None:
        """Into the queues of those who listen; or it is held, or refused."""
        namespace = envelope.namespace
        if envelope.ask:
            self._ask(line, envelope, life)
            return
        subscriptions = self._subscriptions.get(namespace)
        if not subscriptions:
            line.hold(envelope, for_listener=True)
            return
        fitting = []
        for subscription in subscriptions:
            try:
                fitting.append((subscription, decode_payload(envelope, subscription.decoder)))
            except BadPacket:
                self.drops["mesh.wrong_shape"] += 1
        if not fitting:
            line.refuse(envelope, SHAPE)
            return
        waiting = [subscription for subscription, _ in fitting if subscription.waits]
        full = [subscription for subscription in waiting if subscription.is_full]
        if full:
            full[0].blocked[line] = None
            line.hold(envelope, for_listener=False)
            return
        token = _Token(line, namespace, life, len(waiting) or 1)
        for subscription, data in fitting:
            subscription.put(message_of(line, envelope, data), token)
        if not waiting:
            token.take()

    def _ask(self, line: Sender, envelope: Envelope, life: int) -> None:
        server = self.servers.get(envelope.namespace)
        if server is None:
            line.hold(envelope, for_listener=True)
            return
        try:
            data = decode_payload(envelope, server.decoder)
        except BadPacket:
            self.drops["mesh.wrong_shape"] += 1
            line.refuse(envelope, SHAPE)
            return
        server.put(Question(line, envelope, life, message_of(line, envelope, data)))


def message_of(line: Sender, envelope: Envelope, data: Any) -> Message[Any]:
    moment = envelope.timestamp
    sent_at = datetime.fromtimestamp(moment / 1000, UTC) if moment is not None and moment < LATEST else None
    return Message(line.peer, envelope.namespace, envelope.msg_type, data, sent_at)


class Subscription(Generic[T]):
    """The messages of one namespace, from the moment it is entered: `async with`, then `async for`.

    With `overflow="wait"` what is not taken makes its senders wait. With "drop" the oldest are dropped, and a `Lagged`
    says how many.
    """

    def __init__(
        self, router: Router, namespace: str, type: type[T], limit: int, overflow: Literal["wait", "drop"]
    ) -> None:
        self._router = router
        self.namespace = namespace
        self.decoder = decoder_of(type)
        self.waits = overflow == "wait"
        self._limit = limit
        self._queue: deque[tuple[Message[T], _Token]] = deque()
        self._missed = 0
        self._lot = trio.lowlevel.ParkingLot()
        self.blocked: dict[Sender, None] = {}
        self._is_open = False

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def open(self) -> None:
        """From now on messages are delivered to it."""
        if self._is_open:
            raise RuntimeError("a subscription can be entered once: make a new one")
        self._is_open = True
        self._router.add(self.namespace, self)
        for line in tuple(self._router.lines):
            line.look_again(self.namespace)

    def close(self) -> None:
        """Nothing more is delivered to it; what was not taken is lost."""
        self._is_open = False
        self._router.remove(self.namespace, self)
        queue, self._queue = self._queue, deque()
        if self.waits:
            for _, token in queue:
                token.take()
        self._unblock(len(self.blocked))
        self._lot.unpark_all()

    @property
    def is_full(self) -> bool:
        return len(self._queue) >= self._limit

    def put(self, message: Message[Any], token: _Token) -> None:
        if not self.waits and self.is_full:
            self._queue.popleft()
            self._missed += 1
            self._router.drops[LAGGED] += 1
        self._queue.append((message, token))
        self._lot.unpark()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message[T] | Lagged:
        await trio.lowlevel.checkpoint()
        while not self._queue and not self._missed:
            if not self._is_open:
                raise StopAsyncIteration
            await self._lot.park()
        return self._take()

    def _take(self) -> Message[T] | Lagged:
        if self._missed:
            missed, self._missed = self._missed, 0
            return Lagged(missed)
        message, token = self._queue.popleft()
        if self.waits:
            token.take()
            self._unblock(1)
        return message

    def _unblock(self, count: int) -> None:
        for line in tuple(self.blocked)[:count]:
            del self.blocked[line]
            line.look_again(self.namespace)


def decoder_of(type: Any) -> msgspec.json.Decoder[Any] | None:
    """How payloads of this type are read; None where anything will do."""
    return None if type in (Any, object) else msgspec.json.Decoder(type)
