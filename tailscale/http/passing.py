"""One request and its answer, between a client and the server it asks: both bodies at once, for one may need the other.

What proxies of both directions share. Each side's bytes are read and written anew by h11, so that whatever one side
left open about where a message ends, the other side hears it said one way. Only a large body whose length was said goes
past it, counted: h11 would copy every byte of it three times. Knows neither who asks nor why it is passed on. RFC 9110,
7.6; RFC 9112, 6 and 7.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import aclosing
from enum import Enum, auto
from typing import Any, NoReturn, Protocol

import h11
import trio

from tailscale.carry import LOST, Stream, reset
from tailscale.errors import ConnectionReset
from tailscale.http1.asgi import ClientDisconnected
from tailscale.http1.wire import Wire
from ts_proxy import http_rules

SENT_AHEAD = 64 << 10  # bytes of later requests we take while still answering
MOST_INTERIM = 100  # answers that announce another one; a server that sends more will never come to an end
LARGE = 64 << 10  # bytes of a body from which on it is worth passing them on without a copy
PIECE = 512 << 10  # what is written at once leaves as one burst: halves of it cost a third more
Count = Callable[..., object]  # of bytes: sent=, received=


class Ending(Enum):
    """What may follow an exchange."""

    WHOLE = auto()
    """Another request."""
    LAST = auto()
    """None: one side has said that it closes, or has not read all."""
    BROKEN = auto()
    """The answer stopped in the middle, and nobody may take the half for the whole."""
    SWITCHED = auto()
    """Bytes of another protocol (RFC 9110, 7.8)."""


class Client(Protocol):
    """Whoever asks, as the events of h11."""

    is_modern: bool
    """It understands interim answers and trailers."""

    async def next_event(self) -> Any:
        """What comes next of its request. Raises ClientDisconnected, or h11.RemoteProtocolError for what is no HTTP."""

    async def until_gone(self) -> NoReturn:
        """Behind the request: it may hang up, which is ClientDisconnected."""

    async def tell(self, event: Any, *, ends: bool = False) -> None:
        """Something of its answer; `ends` where nothing follows this head."""

    async def switch(self, head: h11.InformationalResponse, rest: bytes) -> None:
        """The last of HTTP, and the first bytes of what it asked to speak."""

    @property
    def is_whole(self) -> bool:
        """Whether another request may follow."""


class WireClient:
    """One that speaks HTTP/1."""

    def __init__(self, wire: Wire, *, is_modern: bool) -> None:
        self.is_modern = is_modern
        self._wire = wire

    async def next_event(self) -> Any:
        return await self._wire.next_event(self._wire.limits.stall_timeout)

    async def until_gone(self) -> NoReturn:
        """It may also send ahead; whatever it sends ahead waits its turn."""
        http = self._wire.http
        while len(http.trailing_data[0]) <= SENT_AHEAD:
            data = await self._wire.read_some()
            if not data:
                raise ClientDisconnected("the client went away")
            http.receive_data(data)
        await trio.sleep_forever()

    async def tell(self, event: Any, *, ends: bool = False) -> None:
        data = self._wire.http.send_with_data_passthrough(event)
        if data:
            await self._wire.write(b"".join(data))

    async def switch(self, head: h11.InformationalResponse, rest: bytes) -> None:
        await self._wire.write((self._wire.http.send(head) or b"") + rest)

    @property
    def is_whole(self) -> bool:
        http = self._wire.http
        return http.our_state is http.their_state is h11.DONE


class Server(Protocol):
    """Whoever is asked, as the events of h11."""

    is_used: bool
    """It has answered before: it may end the connection at any moment."""
    has_trailers: bool
    """Trailers come whatever the head says."""

    async def send(self, event: Any) -> None: ...

    async def next_event(self) -> Any: ...

    def length_past_h11(self, answer: h11.Response, method: bytes) -> int:
        """How long a large body is whose length was said, where `body` gives it; 0 for all others."""

    def body(self, length: int) -> AsyncGenerator[bytes, None]: ...

    @property
    def has_ended(self) -> bool:
        """Whether the head of its answer was all of it."""

    @property
    def rest(self) -> bytes:
        """What came behind a 101."""

    async def give_up(self) -> None:
        """Nothing of this exchange may look whole to it."""


class Upstream:
    """A connection to a server. `key` is whatever tells it from others; `idle` is how long it may say nothing."""

    has_trailers = False
    has_ended = False

    def __init__(self, stream: Stream, key: Hashable, head: int, idle: float) -> None:
        self.stream = stream
        self.key = key
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=head)
        self.is_used = False
        self._head = head
        self._idle = idle
        self._is_read_past = False  # the body of this answer went past h11, and is whole

    @property
    def is_alive(self) -> bool:
        """Whether nothing has come on it while it rested: that could only be its end."""
        stream: Any = self.stream
        if isinstance(stream, trio.SocketStream):
            return not stream.socket.is_readable()
        return not getattr(stream, "is_readable", False)

    @property
    def is_reusable(self) -> bool:
        is_read = self._is_read_past or self.http.their_state is h11.DONE
        return self.http.our_state is h11.DONE and is_read

    def begin_again(self) -> None:
        """It is whole, and may carry another request."""
        if self._is_read_past:
            self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._head)
            self._is_read_past = False
        else:
            self.http.start_next_cycle()
        self.is_used = True

    async def send(self, event: Any) -> None:
        data = self.http.send_with_data_passthrough(event)
        if data:
            await self.stream.send_all(b"".join(data))

    async def next_event(self) -> Any:
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.http.receive_data(await self._receive())

    @property
    def rest(self) -> bytes:
        return bytes(self.http.trailing_data[0])

    async def give_up(self) -> None:
        await reset(self.stream)

    def length_past_h11(self, answer: h11.Response, method: bytes) -> int:
        if method == b"HEAD" or answer.status_code in (204, 304):
            return 0
        length = http_rules.length_of(_head(answer)) or 0
        return length if length >= LARGE else 0

    async def body(self, length: int) -> AsyncGenerator[bytes, None]:
        """The body of the answer whose head was the last event, past h11: so many bytes, which its head has said."""
        piece, is_closed = self.http.trailing_data
        left = length - len(piece)
        while left > 0:
            if piece:
                yield piece
            piece = b"" if is_closed else await self._receive(PIECE)
            if not piece:
                raise ConnectionReset("the server closed the connection in the middle of its answer")
            left -= len(piece)
        if left:  # what is behind it is no answer to anything: this connection carries no more
            yield piece[:left]
        else:
            self._is_read_past = self.http.their_state is h11.SEND_BODY
            yield piece

    async def _receive(self, most: int | None = None) -> bytes:
        try:
            with trio.fail_after(self._idle):
                return bytes(await self.stream.receive_some(most))
        except (*LOST, trio.TooSlowError) as problem:
            raise ConnectionReset(f"the server broke off its answer: {problem}") from problem


class Exchange:
    """Lives for one request."""

    def __init__(self, client: Client, server: Server, count: Count, *, is_gateway: bool = False) -> None:
        self._count = count
        self._client = client
        self._server = server
        self._is_gateway = is_gateway
        self._is_begun = False  # the client has heard something of the final answer
        self._ending = Ending.BROKEN
        self._method = b""
        self._problem: Exception | None = None

    async def run(self, request: h11.Request) -> Ending:
        """Raises what the client can still be told: nothing of an answer has been passed on by then."""
        self._method = request.method
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry_request, request, nursery.cancel_scope)
                await self._carry_answer(nursery.cancel_scope)
                nursery.cancel_scope.cancel()
        except BaseException:
            await self._server.give_up()
            raise
        if self._problem is not None:
            await self._server.give_up()
            # A server may close a connection that was used before at any moment. So may we: the client, whose
            # connection was used before as well, sends its request again where that is safe (RFC 9110, 9.2.2).
            is_stale = self._server.is_used and isinstance(self._problem, ConnectionReset)
            if isinstance(self._problem, ClientDisconnected) or not (self._is_begun or is_stale):
                raise self._problem
            return Ending.BROKEN
        return self._ending

    def _fail(self, problem: Exception, scope: trio.CancelScope) -> None:
        if self._problem is None:
            self._problem = problem
        scope.cancel()

    # From the client

    async def _carry_request(self, request: h11.Request, scope: trio.CancelScope) -> None:
        try:
            await self._to_server(request)
            while True:
                event = await self._client.next_event()
                if isinstance(event, h11.EndOfMessage):
                    await self._to_server(self._end_of(event, http_rules.is_coded(list(request.headers))))
                    break
                if isinstance(event, h11.Data):
                    await self._to_server(event)
                    self._count(sent=len(event.data))
            await self._client.until_gone()
        except (ClientDisconnected, h11.RemoteProtocolError) as problem:
            self._fail(problem, scope)

    async def _to_server(self, event: Any) -> None:
        """A server that reads no more may still have answered: that is found out by reading."""
        try:
            await self._server.send(event)
        except LOST:
            await trio.sleep_forever()

    # From the server

    async def _carry_answer(self, scope: trio.CancelScope) -> None:
        try:
            self._ending = await self._answer()
        except (ClientDisconnected, ConnectionReset) as problem:
            self._fail(problem, scope)

    async def _answer(self) -> Ending:
        event = await self._final_head()
        if event is None:
            return Ending.SWITCHED
        has_trailers = self._server.has_trailers or http_rules.is_coded(_head(event))
        self._is_begun = True
        await self._client.tell(_with(event, self._head_of(event)), ends=self._server.has_ended)
        length = self._server.length_past_h11(event, self._method)
        await (self._pass_body(length) if length else self._pass_events(has_trailers))
        return Ending.WHOLE if self._client.is_whole else Ending.LAST

    async def _final_head(self) -> h11.Response | None:
        """None where another protocol follows instead."""
        interim = 0
        while not isinstance(event := await self._from_server(), h11.Response):
            if not isinstance(event, h11.InformationalResponse):
                raise ConnectionReset("the server closed the connection without an answer")
            if event.status_code == 101:
                # What the server has sent behind its 101 goes along with it.
                self._is_begun = True
                await self._client.switch(_with(event, self._head_of(event)), self._server.rest)
                return None
            interim += 1
            if interim > MOST_INTERIM:
                raise ConnectionReset(f"the server sent more than {MOST_INTERIM} interim answers and no other")
            if self._client.is_modern:
                await self._client.tell(_with(event, self._head_of(event)))
        return event

    async def _pass_events(self, has_trailers: bool) -> None:
        while True:
            event = await self._from_server()
            if isinstance(event, h11.EndOfMessage):
                await self._client.tell(self._end_of(event, has_trailers))
                return
            if not isinstance(event, h11.Data):
                raise ConnectionReset("the server closed the connection in the middle of its answer")
            await self._client.tell(event)
            self._count(received=len(event.data))

    async def _pass_body(self, length: int) -> None:
        async with aclosing(self._server.body(length)) as pieces:
            async for piece in pieces:
                await self._client.tell(h11.Data(data=piece))
                self._count(received=len(piece))
        await self._client.tell(h11.EndOfMessage())

    async def _from_server(self) -> Any:
        try:
            return await self._server.next_event()
        except h11.RemoteProtocolError as problem:
            raise ConnectionReset(f"the server broke off its answer: {problem}") from problem

    def _head_of(self, event: Any) -> http_rules.Headers:
        return http_rules.response_head(event.status_code, _head(event), is_gateway=self._is_gateway)

    def _end_of(self, event: h11.EndOfMessage, has_trailers: bool) -> h11.EndOfMessage:
        """Trailers pass where there is a place for them."""
        if not (has_trailers and self._client.is_modern):
            return h11.EndOfMessage()
        return h11.EndOfMessage(headers=http_rules.trailers(_head(event)))


def _head(event: Any) -> http_rules.Headers:
    return [(bytes(name), bytes(value)) for name, value in event.headers]


def _with(event: Any, headers: http_rules.Headers) -> Any:
    return type(event)(status_code=event.status_code, reason=bytes(event.reason), headers=headers)
