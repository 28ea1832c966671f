"""One request of a peer as its handler sees it: who asks, for what, the body as it comes, and the answer as it goes.

Reads and writes at the pace of the other end, for nothing is held here. Instead of an answer there may be something
that is no HTTP: then the handler has the connection. Refuses to know paths.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import trio

from tailscale.http1.asgi import ClientDisconnected, Headers, Receive, Send

if TYPE_CHECKING:
    from tailscale.peerapi.callers import PeerCaller

TakeOver = Callable[[], Awaitable[trio.abc.HalfCloseableStream]]

TEXT = "text/plain; charset=utf-8"
LONGEST_QUERY = 8 << 10
QUERY_FIELDS = 16


class BodyTooLarge(Exception):
    """A peer sent more than its handler reads: it is told 413, and the handler need not catch this."""


class PeerRequest:
    """A request that may be answered.

    - `caller`: who asks. The packet filter has not judged: the handler does.
    - `method`, `path`, `query`: as they came; `path` is still percent-encoded.
    """

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        headers: Headers,
        caller: PeerCaller,
        receive: Receive,
        send: Send,
        more: Headers,
        take_over: TakeOver,
    ) -> None:
        self.method, self.path, self.query = method, path, query
        self.caller = caller
        self._headers = headers
        self._receive, self._send = receive, send
        self._more = more
        self._take_over = take_over
        self._is_read = False
        self.has_begun = False
        """Whether an answer is on its way."""

    def header(self, name: str) -> str:
        """A header's value, or ""; several of one name are joined."""
        wanted = name.lower().encode()
        return ", ".join(value.decode("latin-1") for name_, value in self._headers if name_ == wanted)

    def parameter(self, name: str) -> str:
        """The first value of a field of the query, or ""."""
        try:
            return parse_qs(self.query[:LONGEST_QUERY], max_num_fields=QUERY_FIELDS).get(name, [""])[0]
        except ValueError:  # too many fields
            return ""

    async def receive_some(self) -> bytes:
        """A piece of the body; b"" at its end. Raises `trio.BrokenResourceError` where the peer goes before that."""
        while not self._is_read:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise trio.BrokenResourceError("the peer hung up in the middle of its request")
            self._is_read = not message.get("more_body", False)
            if message["body"]:
                return bytes(message["body"])
        return b""

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge beyond `limit` bytes."""
        length = self.header("content-length")
        if length.isdigit() and int(length) > limit:
            raise BodyTooLarge
        body = bytearray()
        while data := await self.receive_some():
            body += data
            if len(body) > limit:
                raise BodyTooLarge
        return bytes(body)

    async def answer(
        self, status: int, body: bytes | str = b"", kind: str = TEXT, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """A whole answer."""
        data = body.encode() if isinstance(body, str) else body
        await self.begin(status, [("content-type", kind), ("content-length", str(len(data))), *headers])
        await self.send(data, more=False)

    async def take_over(self) -> trio.abc.HalfCloseableStream:
        """Answer 101 and have the connection, until the handler returns; a request with a body is refused."""
        await self.read(0)
        self.has_begun = True
        return await self._take_over()

    async def begin(self, status: int, headers: Sequence[tuple[str, str]] = ()) -> None:
        """The head of an answer whose body comes by `send`."""
        self.has_begun = True
        told = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": told + self._more})

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """A piece of the body; the last one has `more=False`."""
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except ClientDisconnected as error:
            raise trio.BrokenResourceError(str(error)) from error
