"""HTTP/1.1 as far as a control server and a relay need it in front: small requests answered, and upgrades taken over.

Owns h11 and its limits on one stream. Knows nothing of what is behind a path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import h11
import trio

MAX_BODY = 64 << 10
READ_SIZE = 64 << 10
IDLE_TIMEOUT = 60.0
METHODS = {"GET", "HEAD", "POST"}


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Switch protocols: `take_over(stream, bytes that came along)` owns the stream from then on."""

    protocol: str
    take_over: Callable[[trio.abc.Stream, bytes], Awaitable[None]]
    headers: tuple[tuple[str, str], ...] = ()
    silent: bool = False  # the other side asked for no response at all


async def serve_http(stream: trio.abc.Stream, route: Callable[[Request], Answer | Upgrade]) -> None:
    """Answer requests on one stream until it ends, breaks, says nonsense, or is upgraded."""
    http = h11.Connection(h11.SERVER)
    async with stream:
        try:
            while True:
                with trio.move_on_after(IDLE_TIMEOUT) as idle:
                    request = await _next_request(http, stream)
                if idle.cancelled_caught or request is None:
                    return
                # A CONNECT that is answered well is a tunnel, and there is none here (RFC 9110 section 9.3.6).
                answer = route(request) if request.method in METHODS else Answer(405, b"method not allowed")
                if isinstance(answer, Upgrade):
                    await _upgrade(http, stream, answer)
                    return
                await _respond(http, stream, answer, with_body=request.method != "HEAD")
                if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                    return
                http.start_next_cycle()
        except (h11.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            return  # what cannot be spoken with ends its own connection, and nobody else's


async def _next_request(http: h11.Connection, stream: trio.abc.Stream) -> Request | None:
    head: h11.Request | None = None
    body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(READ_SIZE)))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                return None
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            path, _, query = head.target.decode("latin-1").partition("?")
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
            return Request(head.method.decode("latin-1"), path, query, headers, body)
        else:
            return None


async def _respond(http: h11.Connection, stream: trio.abc.Stream, answer: Answer, *, with_body: bool) -> None:
    """RFC 9110 section 9.3.2: the answer to HEAD has the head that GET would have, and nothing behind it."""
    headers = [("content-type", answer.content_type), ("content-length", str(len(answer.body))), *answer.headers]
    head = http.send(h11.Response(status_code=answer.status, headers=headers)) or b""
    body = http.send(h11.Data(data=answer.body)) if with_body else None
    await stream.send_all(head + (body or b"") + (http.send(h11.EndOfMessage()) or b""))


async def _upgrade(http: h11.Connection, stream: trio.abc.Stream, upgrade: Upgrade) -> None:
    headers = [("upgrade", upgrade.protocol), ("connection", "upgrade"), *upgrade.headers]
    head = http.send(h11.InformationalResponse(status_code=101, headers=headers, reason=b"Switching Protocols"))
    if not upgrade.silent:
        await stream.send_all(head or b"")
    await upgrade.take_over(stream, http.trailing_data[0])
