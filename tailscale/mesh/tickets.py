"""A message on its way and whoever waits for it: how values become envelopes, and reasons become errors."""

from __future__ import annotations

from collections import deque

import msgspec
import trio

from tailscale.mesh.errors import MessageTooLarge, NobodyListens, PeerGone, RemoteError, WrongShape
from ts_base.errors import BadPacket
from ts_mesh import facts
from ts_mesh.envelope import BYTES, MESSAGE, NULL, Envelope, decode_payload
from ts_mesh.facts import Parcel
from ts_mesh.window import Window

_encode = msgspec.json.Encoder().encode


class Ticket(Parcel):
    """A message, and whoever waits for what becomes of it."""

    __slots__ = ("answer", "changed", "is_admitted", "why")

    def __init__(self, envelope: Envelope, *, is_free: bool = False) -> None:
        super().__init__(envelope, is_free)
        self.changed = trio.Event()
        self.is_admitted = False
        self.why: str | None = None
        self.answer: Envelope | None = None

    def tell(self) -> None:
        """Whoever waits looks again."""
        self.changed.set()
        is_settled = bool(self.why) or (self.why is not None and not self.envelope.ask)
        if not is_settled and self.answer is None:
            self.changed = trio.Event()  # more is to come


class Admission:
    """Who waits for room in one peer's window, each namespace for itself, in the order they came."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._waiting: dict[str, deque[Ticket]] = {}
        self.waits = 0  # messages so far that had to

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting)

    def admit(self, ticket: Ticket) -> None:
        """Into the window, or to the end of the line before it."""
        namespace = ticket.envelope.namespace
        if namespace in self._waiting or not self._window.has_room(namespace, ticket.size):
            self._waiting.setdefault(namespace, deque()).append(ticket)
            self.waits += 1
        else:
            self._enter(ticket)

    def let_in(self) -> None:
        """Something was acknowledged or taken: there may be room."""
        for namespace, queue in tuple(self._waiting.items()):
            while queue and self._window.has_room(namespace, queue[0].size):
                ticket = queue.popleft()
                self._enter(ticket)
                ticket.tell()
            if not queue:
                del self._waiting[namespace]

    def abandon(self, ticket: Ticket) -> None:
        """Nobody waits for it any more. What has left may arrive; what has not is taken back."""
        queue = self._waiting.get(ticket.envelope.namespace, ())
        if ticket in queue:
            queue.remove(ticket)  # type: ignore[union-attr]
        elif ticket.is_admitted and ticket.envelope.ask:
            self._window.cancel(ticket)
        elif ticket.is_admitted:
            self._window.withdraw(ticket)
        self.let_in()

    def fail(self, why: str) -> None:
        """Nobody gets in."""
        for queue in self._waiting.values():
            for ticket in queue:
                ticket.why = why
                ticket.tell()
        self._waiting.clear()

    def _enter(self, ticket: Ticket) -> None:
        ticket.is_admitted = True
        self._window.send(ticket)


def error_of(why: str, namespace: str, host: str, problem: Exception | None) -> Exception:
    """Why a message was not delivered; `problem` is what the last dial met."""
    if why == facts.UNREACHED and problem is not None:
        return problem
    if why == facts.NOBODY:
        return NobodyListens(namespace, host)
    if why == facts.SHAPE:
        return WrongShape("", f"what was sent does not fit the type that {host} expects in {namespace!r}")
    if why == facts.TOO_LARGE:
        return MessageTooLarge(f"{host} takes no message of this size")
    return PeerGone(f"{host} left the mesh, or its program was started anew")


def encoded(namespace: str, data: object, kind: str, timestamp: int, *, ask: bool = False, re: int = 0) -> Envelope:
    """A message as it travels: bytes as they are, everything else as JSON."""
    if isinstance(data, bytes | bytearray | memoryview):
        kind = BYTES if kind == MESSAGE else kind
        return Envelope(namespace, kind, None, timestamp, re=re, ask=ask, raw=bytes(data))
    try:
        payload = NULL if data is None else msgspec.Raw(_encode(data))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as problem:
        raise WrongShape("", f"this cannot be sent as JSON: {problem}") from None
    return Envelope(namespace, kind, payload, timestamp, re=re, ask=ask)


def wrong_shape(problem: BadPacket, what: str) -> WrongShape:
    """What a decoder said, with the place it said it of."""
    detail, _, path = str(problem).partition(" - at ")
    return WrongShape(path.strip("`"), f"{what} does not fit: {detail}")


def remote_error(answer: Envelope) -> RemoteError:
    """What the handler at the other end raised."""
    try:
        told = decode_payload(answer, _remote)
        return RemoteError(told.kind, told.message)
    except BadPacket:
        return RemoteError("RemoteError", "")


class _Told(msgspec.Struct):
    kind: str
    message: str = ""


_remote = msgspec.json.Decoder(_Told)
