"""One client's bytes: a stream, the h11 machine that reads them, and the patience for both.

Shared by the HTTP and WebSocket exchanges of a connection. Knows no app.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import h11
import trio

from tailscale.http1.asgi import ClientDisconnected
from tailscale.http1.framing import objection_to_lines
from tailscale.http1.limits import Limits

LINGER = 1.0
LINGER_BYTES = 4 << 20


class Wire:
    """Reads events, writes bytes; a broken or stalled client is `ClientDisconnected`."""

    def __init__(self, stream: trio.abc.Stream, limits: Limits) -> None:
        self.stream = stream
        self.limits = limits
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head)
        self._writing = trio.Lock()
        self._head = bytearray()  # as it came, while a request head is awaited
        self._is_head_awaited = False
        self._is_body_chunked = False

    @property
    def has_input(self) -> bool:
        """Whether a next request has begun to arrive."""
        data, is_closed = self.http.trailing_data
        return bool(data) or is_closed

    async def read_some(self, timeout: float = math.inf) -> bytes:
        """Bytes, or b"" when the client has finished sending."""
        try:
            with trio.fail_after(timeout):
                return bytes(await self.stream.receive_some())
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError) as error:
            raise ClientDisconnected(f"the client went away: {error}") from error

    def begin_head(self) -> None:
        """What comes now is a request head: keep it as it comes."""
        self._head = bytearray(self.http.trailing_data[0])
        self._is_head_awaited = True

    def take_head(self) -> bytes:
        """The bytes of the request that was just read, without what followed it."""
        head, self._head, self._is_head_awaited = self._head, bytearray(), False
        return bytes(head[: len(head) - len(self.http.trailing_data[0])])

    def feed(self, data: bytes) -> None:
        if self._is_head_awaited:
            self._head += data
        self.http.receive_data(data)

    async def next_event(self, timeout: float) -> Any:
        """The next h11 event. Raises h11.RemoteProtocolError for what is not HTTP, or not strictly."""
        # What h11 has not read yet is `held` and `fed`: one after the other only where it matters, a body is long.
        held, fed = self.http.trailing_data[0] if self._is_body_chunked else b"", b""
        while True:
            event = self.http.next_event()
            if isinstance(event, h11.Request):
                self._is_body_chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
            elif isinstance(event, h11.EndOfMessage) and self._is_body_chunked:
                # What h11 read last is the trailer section, whole, and perhaps the line of the last chunk before it.
                self._is_body_chunked = False
                before = held + fed
                last = before[: len(before) - len(self.http.trailing_data[0])]
                if problem := objection_to_lines(last):
                    raise h11.RemoteProtocolError(problem)
            if event is not h11.NEED_DATA:
                return event
            held, fed = self.http.trailing_data[0] if self._is_body_chunked else b"", await self.read_some(timeout)
            self.feed(fed)

    async def write(self, data: bytes) -> None:
        """All of `data`, or ClientDisconnected."""
        async with self._writing:
            try:
                with trio.fail_after(self.limits.stall_timeout):
                    await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError) as error:
                raise ClientDisconnected(f"the client went away: {error}") from error

    async def refuse(
        self, status: int, reason: str, *, has_body: bool = True, more: Sequence[tuple[str, str]] = ()
    ) -> None:
        """A short answer to what cannot be handled, with `more` headers; the connection ends after it."""
        if self.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = f"{reason}\n".encode()
        headers = [("content-type", "text/plain"), ("content-length", str(len(body))), ("connection", "close"), *more]
        out = self.http.send(h11.Response(status_code=status, headers=headers)) or b""
        if has_body:
            out += self.http.send(h11.Data(data=body)) or b""
        await self.write(out)

    async def finish(self) -> None:
        """Close so that the last answer arrives: what the client still sends is read away first, up to a point."""
        transport: Any = self.stream
        while isinstance(transport, trio.SSLStream):
            transport = transport.transport_stream
        with trio.move_on_after(LINGER):
            try:
                await transport.send_eof()
                left = LINGER_BYTES
                while left > 0 and (data := await transport.receive_some()):
                    left -= len(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                return
