"""Connections of one transfer: jobs come from a common list, requests leave in a row, answers follow in their order.

Owns the connections and the order of answers. Refuses to know what is pushed or pulled: a Carrier does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import trio

from tailscale.files.pieces import all_of
from tailscale.files.replies import Replies, Reply
from tailscale.files.replies import send as send_on

if TYPE_CHECKING:
    from tailscale.sockets.tcp import TcpStream

CONNECTIONS = 4
WINDOW = 64  # at most so many requests of one connection without an answer
J = TypeVar("J")
Dial = Callable[[], Awaitable["TcpStream"]]


class Spoiled(Exception):
    """The connection cannot carry another request; the transfer goes on with a new one."""


class Waiting(Generic[J]):
    """A request that was sent, and whoever waits for its answer."""

    def __init__(self, job: J, method: str) -> None:
        self.job = job
        self.method = method
        self.writing = trio.CancelScope()  # of its body: an answer that comes before its end makes the rest pointless
        self.is_written = False  # or its last bytes are being
        self.answered = trio.Event()


class Carrier(Protocol[J]):
    """What is done with a connection."""

    async def write(self, line: Connection[J]) -> None:
        """Ask for everything that is left to ask."""

    async def hear(self, waiting: Waiting[J], reply: Reply, replies: Replies) -> None:
        """Take one answer, with its body."""


class Connection(Generic[J]):
    """One connection while it lasts."""

    def __init__(self, stream: TcpStream, carrier: Carrier[J]) -> None:
        self._stream = stream
        self._carrier = carrier
        self._waiting: deque[Waiting[J]] = deque()
        self._room = trio.Semaphore(WINDOW)
        self._news = trio.Event()
        self._is_written = False

    async def run(self) -> list[J]:
        """Until there is nothing left to ask, or the peer ends it. The jobs that were not answered."""
        try:
            await all_of(self._write, self._read)
        except Spoiled:
            self._stream.abort()
        return [waiting.job for waiting in self._waiting]

    async def ask_all(self, asked: Sequence[tuple[Waiting[J], bytes]]) -> None:
        """Send whole requests, not more than half a window, in one write."""
        for waiting, _ in asked:
            await self.begin(waiting)
            waiting.is_written = True
        await self.send(b"".join(data for _, data in asked))

    async def begin(self, waiting: Waiting[J]) -> None:
        """Announce a request whose bytes follow."""
        await self._room.acquire()
        self._waiting.append(waiting)
        self._news.set()

    async def send(self, data: bytes) -> None:
        await send_on(self._stream, data)

    async def _write(self) -> None:
        await self._carrier.write(self)
        self._is_written = True
        self._news.set()

    async def _read(self) -> None:
        replies = Replies(self._stream)
        while True:
            while not self._waiting:
                if self._is_written:
                    return
                self._news = trio.Event()
                await self._news.wait()
            waiting = self._waiting[0]
            reply = await replies.next(waiting.method)
            await self._carrier.hear(waiting, reply, replies)
            self._waiting.popleft()
            self._room.release()
            waiting.answered.set()
            if not waiting.is_written or reply.is_last:
                waiting.writing.cancel()
                raise Spoiled


async def carry(jobs: deque[J], dial: Dial, make: Callable[[], Carrier[J]], connections: int) -> None:
    """All jobs over so many connections. Those that a connection left unanswered are done by the next."""

    async def one() -> None:
        while jobs:
            stream = await dial()
            try:
                unanswered = await Connection(stream, make()).run()
            except BaseException:
                stream.abort()
                raise
            jobs.extendleft(reversed(unanswered))
            with trio.CancelScope(shield=True):
                await stream.aclose()

    await all_of(*[one] * connections)
