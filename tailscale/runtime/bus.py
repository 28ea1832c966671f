"""The bus: facts in the past tense, from one actor to all that care. Data packets never travel here.

Publishing is plain `def` and never blocks. How a message is delivered is its base class: Retained, Reliable or Lossy.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import ClassVar, NamedTuple, TypeVar

import trio
from msgspec import Struct

RELIABLE_LIMIT = 1024  # an inbox this full means an actor has stopped: a bug of ours, not load


class Rate(Enum):
    """Who decides how often a message is published, and so whether every one of them can be kept."""

    OURS = "the program's, or the machine's it runs on"
    THEIRS = "control's, a relay's, a peer's or a stranger's: never Reliable"


class Message(Struct, frozen=True):
    """Base of everything published; subclasses choose how they are delivered, and say whose choice their rate is."""

    delivery: ClassVar[str] = "reliable"
    rate: ClassVar[Rate]


class Retained(Message, frozen=True):
    """The newest one wins and is replayed to late subscribers."""

    delivery: ClassVar[str] = "retained"


class Reliable(Message, frozen=True):
    """Every subscriber sees every one; an overflowing inbox is a bug and raises."""

    delivery: ClassVar[str] = "reliable"


class Lossy(Message, frozen=True):
    """Strangers may cause as many as they like: a few are kept, the oldest is dropped and counted."""

    delivery: ClassVar[str] = "lossy"
    limit: ClassVar[int] = 64


M = TypeVar("M", bound=Retained)


class InboxOverflow(RuntimeError):
    """An actor did not read its inbox; carries the actor's name."""


class Inbox:
    """What one subscriber has not read yet, in the order it was published."""

    def __init__(self, name: str, drops: Counter[str]) -> None:
        self._name = name
        self._drops = drops
        self._waiting: deque[Message] = deque()
        self._lossy: dict[type[Message], int] = {}
        self._wake = trio.Event()

    def put(self, message: Message) -> None:
        kind = type(message)
        if kind.delivery == "retained":
            self._discard_oldest(kind, keep=0)
        elif isinstance(message, Lossy):
            self._discard_oldest(kind, keep=message.limit - 1)
        elif len(self._waiting) >= RELIABLE_LIMIT:
            raise InboxOverflow(f"{self._name} has {RELIABLE_LIMIT} unread messages")
        self._waiting.append(message)
        self._wake.set()

    def _discard_oldest(self, kind: type[Message], *, keep: int) -> None:
        count = self._lossy.get(kind, 0)
        if count > keep:
            for index, waiting in enumerate(self._waiting):
                if type(waiting) is kind:
                    del self._waiting[index]
                    break
            if kind.delivery == "lossy":
                self._drops[f"bus.{self._name}_full"] += 1
            count -= 1
        self._lossy[kind] = count + 1

    async def receive(self) -> Message:
        """Wait for the next message. One checkpoint, before anything is taken: a cancelled wait loses nothing."""
        if self._waiting:
            await trio.lowlevel.checkpoint()
        while not self._waiting:
            self._wake = trio.Event()
            await self._wake.wait()
        return self.take()

    def take(self) -> Message:
        message = self._waiting.popleft()
        kind = type(message)
        if kind in self._lossy:
            self._lossy[kind] -= 1
        return message

    def __len__(self) -> int:
        return len(self._waiting)


class BusStatistics(NamedTuple):
    inboxes: int
    unread: int
    drops: dict[str, int]


class Bus:
    """Who hears what. One per Device."""

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()
        self._inboxes: list[tuple[tuple[type[Message], ...], Inbox]] = []
        self._retained: dict[type[Message], Message] = {}

    def publish(self, message: Message) -> None:
        if message.delivery == "retained":
            self._retained[type(message)] = message
        for kinds, inbox in self._inboxes:
            if isinstance(message, kinds):
                inbox.put(message)

    def latest(self, kind: type[M]) -> M | None:
        """The newest retained message of `kind`, if one was ever published."""
        message = self._retained.get(kind)
        return message if isinstance(message, kind) else None

    def statistics(self) -> BusStatistics:
        unread = sum(len(inbox) for _, inbox in self._inboxes)
        return BusStatistics(len(self._inboxes), unread, dict(self.drops))

    @contextmanager
    def subscribe(self, *kinds: type[Message], name: str = "subscriber") -> Iterator[Inbox]:
        inbox = Inbox(name, self.drops)
        for kind, message in self._retained.items():
            if issubclass(kind, kinds):
                inbox.put(message)
        entry = (kinds, inbox)
        self._inboxes.append(entry)
        try:
            yield inbox
        finally:
            self._inboxes.remove(entry)
