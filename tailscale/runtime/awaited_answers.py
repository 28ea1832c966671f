"""What somebody waits for from the packet path: the answers to pings, and a peer's word against a dial.

Owns the table of who waits for what. Refuses to know who asked, how, and what the answer means to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import trio

from ts_dataplane.path_messages import PingAnswered, PingLost
from ts_dataplane.tsmp import REASONS, TsmpPong, TsmpReject

if TYPE_CHECKING:
    from ts_base.who import Path
    from ts_netstack.tcp import TcpConnection

WRONG_PEER = "answers.wrong_peer"
UNAWAITED = "answers.nobody_waits"  # usual: it came after whoever asked had given up

Token = tuple[str, int | bytes]  # the kind of ping, and what its pong repeats
Answer = PingAnswered | PingLost | TsmpPong | TsmpReject


class AwaitedPong:
    """One ping in flight."""

    def __init__(self) -> None:
        self.asked_at = trio.current_time()
        self.latency: float | None = None
        self.path: Path | None = None
        """The way it came back, if the pong shows that."""
        self._over = trio.Event()

    def end(self, latency: float | None, path: Path | None) -> None:
        """Answered, or known to be lost."""
        self.latency, self.path = latency, path
        self._over.set()

    async def wait(self) -> None:
        """Until it is answered or known to be lost."""
        await self._over.wait()


class AnswerStatistics(NamedTuple):
    pings: int
    dials: int
    drops: dict[str, int]


class AwaitedAnswers:
    """One per device."""

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()
        self._pings: dict[Token, AwaitedPong] = {}
        self._dials: dict[tuple[object, object], tuple[TcpConnection, list[str]]] = {}

    @contextmanager
    def pong(self, token: Token) -> Iterator[AwaitedPong]:
        """While inside, the answer to the ping with this token lands here."""
        awaited = self._pings[token] = AwaitedPong()
        try:
            yield awaited
        finally:
            del self._pings[token]

    @contextmanager
    def rejections(self, connection: TcpConnection) -> Iterator[list[str]]:
        """While a dial is open, a peer's refusal lands here in words, and ends it."""
        words: list[str] = []
        key = (connection.local, connection.remote)
        self._dials[key] = connection, words
        try:
            yield words
        finally:
            self._dials.pop(key, None)

    def statistics(self) -> AnswerStatistics:
        return AnswerStatistics(len(self._pings), len(self._dials), dict(self.drops))

    def hear(self, message: Answer) -> None:
        """A rare fact from the packet path."""
        match message:
            case PingAnswered():
                self._end(("disco", message.token), message.latency, message.path)
            case PingLost():
                self._end(("disco", message.token), None, None)
            case TsmpPong():
                awaited = self._pings.get(("tsmp", message.token))
                if awaited is not None:
                    awaited.end(trio.current_time() - awaited.asked_at, None)
                else:
                    self.drops[UNAWAITED] += 1
            case TsmpReject():
                self._hear_rejection(message)

    def _end(self, token: Token, latency: float | None, path: Path | None) -> None:
        awaited = self._pings.get(token)
        if awaited is not None:
            awaited.end(latency, path)
        elif latency is not None:
            self.drops[UNAWAITED] += 1

    def _hear_rejection(self, message: TsmpReject) -> None:
        dial = self._dials.get((message.local, message.remote))
        if dial is None:
            self.drops[UNAWAITED] += 1
            return
        connection, words = dial
        if not (message.peer == connection.via if connection.via else message.is_usual):
            self.drops[WRONG_PEER] += 1  # an exit refuses what goes by it, and nobody else's dials
            return
        if message.maybe_broken:
            return
        words.append(f"its tailnet policy does not let us in ({REASONS.get(message.reason, message.reason)})")
        connection.abort(trio.current_time())
        if connection.owner is not None:
            connection.owner.wake()
