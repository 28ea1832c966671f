"""A whole question passed on to resolvers, and the whole reply back: for those who ask us as a resolver.

All resolvers of a name are asked at once, over UDP and, where that is silent or cut, over TCP; the first that knows
wins. Under a number of our own, and only the reply to that very question is taken. Owns the deadlines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from tailscale.dns import wire
from ts_base.errors import BadPacket

if TYPE_CHECKING:
    from tailscale.dns.wire import Question

UDP_PATIENCE = 2.0
TCP_PATIENCE = 5.0
RESOLVERS_LIMIT = 8  # of one name
LARGEST_MESSAGE = 65_535
LENGTH = Struct(">H")

T = TypeVar("T")
FAILURES = (OSError, BadPacket, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


class Upstream(Protocol):
    """One resolver, whatever way it is reached. What goes wrong is one of `FAILURES`."""

    async def datagram(self, query: bytes, read: Callable[[bytes], bytes | None]) -> bytes:
        """The first datagram from there that `read` takes."""

    async def stream(self, query: bytes) -> bytes:
        """The answer over TCP."""


async def ask_upstreams(
    upstreams: Sequence[Upstream], query: bytes, question: Question, random_id: Callable[[], int]
) -> bytes:
    """The best reply there is; SERVFAIL where there is none."""
    replies: list[bytes] = []

    async def ask(upstream: Upstream, scope: trio.CancelScope) -> None:
        reply = await _ask_one(upstream, query, question, random_id())
        if reply is None:
            return
        replies.append(reply)
        if wire.code_of(reply) in (wire.NO_ERROR, wire.NAME_ERROR):
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for upstream in upstreams[:RESOLVERS_LIMIT]:
            nursery.start_soon(ask, upstream, nursery.cancel_scope)
    for code in (wire.NO_ERROR, wire.NAME_ERROR):
        for reply in replies:
            if wire.code_of(reply) == code:
                return wire.under_number(reply, question)
    if replies and all(wire.code_of(reply) == wire.REFUSED for reply in replies):
        return wire.encode_failure(question, wire.REFUSED)
    return wire.encode_failure(question, wire.SERVER_FAILURE)


async def _ask_one(upstream: Upstream, query: bytes, question: Question, identifier: int) -> bytes | None:
    asked = wire.for_resolvers(query, identifier)

    def read(reply: bytes) -> bytes | None:
        return reply if wire.is_answer(reply, question, identifier) else None

    cut: bytes | None = None
    try:
        with trio.move_on_after(UDP_PATIENCE):
            reply = await upstream.datagram(asked, read)
            if not wire.is_cut(reply):
                return reply
            cut = reply
    except FAILURES:
        cut = None
    try:
        with trio.fail_after(TCP_PATIENCE):
            return read(await upstream.stream(asked)) or cut
    except FAILURES:
        return cut


async def ask_over_stream(stream: trio.abc.Stream, question: bytes) -> bytes:
    """DNS over TCP: a length in front of each message (RFC 7766)."""
    async with stream:
        await stream.send_all(LENGTH.pack(len(question)) + question)
        received = bytearray()
        while len(received) < 2 or len(received) < 2 + LENGTH.unpack_from(received)[0]:
            chunk = await stream.receive_some(LARGEST_MESSAGE)
            if not chunk:
                raise BadPacket("the resolver hung up in the middle of its answer")
            received += chunk
        return bytes(received[2 : 2 + LENGTH.unpack_from(received)[0]])


class CallableUpstream:
    """A resolver as two functions."""

    def __init__(
        self,
        datagram: Callable[[bytes, Callable[[bytes], bytes | None]], Awaitable[bytes]],
        open_stream: Callable[[], Awaitable[trio.abc.Stream]],
    ) -> None:
        self._datagram, self._open_stream = datagram, open_stream

    async def datagram(self, query: bytes, read: Callable[[bytes], bytes | None]) -> bytes:
        return await self._datagram(query, read)

    async def stream(self, query: bytes) -> bytes:
        return await ask_over_stream(await self._open_stream(), query)
