"""The device's resolver as a server: a query as bytes in, a reply as bytes out, whoever carries them.

The tailnet's own names first, then the resolvers that the device itself asks. Owns the bound on queries under way and
the deadline of each. What cannot be read is answered FORMERR, and what is an answer itself not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import trio

from tailscale.dns import wire
from ts_base.errors import BadPacket

if TYPE_CHECKING:
    from tailscale.dns.resolvers import NameResolver
    from tailscale.dns.wire import Question

QUERIES_LIMIT = 256  # under way at once
DEADLINE = 10.0


class ResponderStatistics(NamedTuple):
    """`queries` were heard since the device started, `active` are being answered."""

    queries: int
    active: int
    drops: dict[str, int]


class Responder:
    """One per device."""

    def __init__(self, resolver: NameResolver, wall_clock: Callable[[], float]) -> None:
        self._resolver, self._wall_clock = resolver, wall_clock
        self._queries = self._active = 0
        self.drops: Counter[str] = Counter()

    def statistics(self) -> ResponderStatistics:
        return ResponderStatistics(self._queries, self._active, dict(self.drops))

    async def answer(self, data: bytes, *, over_udp: bool) -> bytes | None:
        """The reply; None where there is to be none."""
        await trio.lowlevel.checkpoint()
        self._queries += 1
        try:
            question = wire.decode_question_untrusted(data)
        except BadPacket:
            self.drops["dns.no_question"] += 1
            return wire.encode_format_error(data)
        if self._active >= QUERIES_LIMIT:
            self.drops["dns.too_many_queries"] += 1
            return None
        self._active += 1
        try:
            with trio.move_on_after(DEADLINE) as patience:
                reply = await self._reply(data, question)
            if patience.cancelled_caught:
                reply = wire.encode_failure(question, wire.SERVER_FAILURE)
        finally:
            self._active -= 1
        return wire.fitted(reply, question, question.size) if over_udp else reply

    async def _reply(self, data: bytes, question: Question) -> bytes:
        if question.flags & wire.OPCODE:
            return wire.encode_failure(question, wire.NOT_IMPLEMENTED)
        zone = self._resolver.zone
        local = zone.answer(question) if zone is not None else None
        if local is not None:
            return wire.encode_reply(question, local.code, local.records, local.zone, int(self._wall_clock()))
        return await self._resolver.forward(data, question)
