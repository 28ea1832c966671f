"""Questions and answers of the daemon's socket, and the table that leads from one to the other.

Owns what every handler shares: bodies of bounded length, errors as sentences and a status, JSON lines for as long as
the client listens, who may ask what. Knows no device.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import trio

from tailscale.daemon.transport import Asker
from tailscale.errors import (
    ConnectionRefused,
    ConnectionTimedOut,
    DeviceNotReady,
    LoginRequired,
    NameNotFound,
    NoRoute,
    PeerKeyExpired,
    PeerOffline,
    TailscaleError,
)
from tailscale.foreign_text import harmless_json
from tailscale.http1.asgi import ClientDisconnected, Receive, Scope, Send

log = logging.getLogger("tailscale.daemon")
LONGEST_BODY = 1 << 20
JSON, LINES, TEXT = "application/json", "application/x-ndjson", "text/plain; charset=utf-8"
WITH_ALL = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
READS = ("GET", "HEAD")
UPSTREAMS = "/localapi/"


class NotBuilt(TailscaleError):
    """A part of pytailscale that this daemon does not have."""


class Refused(TailscaleError):
    """An answer that is a refusal: its status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status
        super().__init__(sentence)


@dataclass(slots=True)
class Question:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[bytes, bytes]
    asker: Asker
    receive: Receive = field(repr=False)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("the client went away")
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                return

    async def body(self) -> bytes:
        """All of it; 413 for more than any request of ours has."""
        data = bytearray()
        async with aclosing(self.chunks()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                data += chunk
                if len(data) > LONGEST_BODY:
                    raise Refused(413, f"a body of more than {LONGEST_BODY} bytes")
        return bytes(data)

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object; {} where there is none."""
        text = await self.body()
        try:
            value = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise Refused(400, "the body is not a JSON object")
        return value


@dataclass(slots=True)
class Answer:
    """What goes back: one piece, or pieces for as long as there are any and somebody listens."""

    body: bytes | AsyncIterator[bytes] = b""
    status: int = 200
    kind: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)
    then: Callable[[], object] | None = None
    """Called once the answer has left: for what ends the daemon."""


Handler = Callable[[Question], Awaitable[Answer]]


def encode(value: Any) -> bytes:
    """A line of JSON that may be shown on a terminal, whatever names and texts are in it: printable ASCII alone.

    `foreign_text.for_json` keeps letters of all languages, and looks at each: too slow for a tailnet of thousands.
    """
    return json.dumps(value).replace("\x7f", "\\u007f").encode() + b"\n"


def json_answer(value: Any, status: int = 200, **headers: str) -> Answer:
    """One JSON value."""
    return Answer(encode(value), status, JSON, {name.replace("_", "-"): v for name, v in headers.items()})


def lines_answer(values: AsyncIterator[Any]) -> Answer:
    """One JSON value a line, each sent as it comes."""
    return Answer(_as_lines(values), kind=LINES)


async def _as_lines(values: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async with aclosing(values) as all_values:  # type: ignore[type-var]
        async for value in all_values:
            yield encode(value)


@dataclass(frozen=True, slots=True)
class _Route:
    handler: Handler
    is_for_writers: bool


class Routes:
    """Which handler answers what: an ASGI app. A path that ends in "/*" stands for all below it."""

    def __init__(self) -> None:
        self._routes: dict[str, dict[str, _Route]] = {}

    def add(self, method: str, path: str, handler: Handler, *, writers: bool | None = None) -> None:
        """`writers`: only this user and root may ask; by default for all that is more than reading."""
        only = method not in READS if writers is None else writers
        self._routes.setdefault(path, {})[method] = _Route(handler, only)

    def find(self, method: str, path: str, asker: Asker) -> Handler:
        known = self._routes.get(path)
        above = path
        while known is None and above:
            above = above.rpartition("/")[0]
            known = self._routes.get(f"{above}/*")
        if known is None:
            raise Refused(404, f"there is nothing at {path}")
        route = known.get("GET" if method == "HEAD" else method)
        if route is None:
            raise Refused(405, f"{path} takes {' and '.join(known)}, not {method}")
        if route.is_for_writers and not asker.may_write:
            raise Refused(403, f"user {asker.uid} may not do that: the daemon belongs to another user")
        return route.handler

    def paths(self) -> list[str]:
        return sorted(f"{method} {path}" for path, methods in self._routes.items() for method in methods)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        question = Question(scope["method"], scope["path"], query, scope["headers"], scope["asker"], receive)
        try:
            answer = await self.find(question.method, question.path, question.asker)(question)
        except ClientDisconnected:
            raise
        except (TailscaleError, OSError, ValueError) as error:
            answer = error_answer(error, as_text=question.path.startswith(UPSTREAMS))
        if question.path.startswith(UPSTREAMS) and answer.kind in (JSON, LINES):
            answer.body = (
                harmless_json(answer.body) if isinstance(answer.body, bytes) else _harmless_pieces(answer.body)
            )
        await _send_answer(answer, receive, send)
        if answer.then is not None:
            answer.then()


async def _harmless_pieces(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(lines) as all_lines:  # type: ignore[type-var]
        async for line in all_lines:
            yield harmless_json(line)


async def _send_answer(answer: Answer, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", answer.kind.encode()), *WITH_ALL]
    headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    if isinstance(answer.body, bytes):
        headers.append((b"content-length", str(len(answer.body)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
        return
    async with aclosing(answer.body):  # type: ignore[type-var]  # also when nobody is there to hear its beginning
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": True})  # the head must not wait for news
        await _while_listened_to(answer.body, receive, send)


async def _while_listened_to(pieces: AsyncIterator[bytes], receive: Receive, send: Send) -> None:
    gone: list[ClientDisconnected] = []
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.append(ClientDisconnected("the client went away"))
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except ClientDisconnected as error:
            gone.append(error)
        nursery.cancel_scope.cancel()
    if gone:
        raise gone[0]
    await send({"type": "http.response.body", "body": b""})


# What an error is in HTTP; the first that fits.
_STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (NameNotFound, 404),
    (NotBuilt, 501),
    (DeviceNotReady, 503),
    (LoginRequired, 503),
    (ConnectionTimedOut, 504),
    (ConnectionRefused, 502),
    (NoRoute, 502),
    (PeerOffline, 502),
    (PeerKeyExpired, 502),
    (ValueError, 400),
)


def status_of(error: BaseException) -> int:
    if isinstance(error, Refused):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_answer(error: BaseException, *, as_text: bool = False) -> Answer:
    """`{"error": {"kind": ..., "message": ...}}`, which our clients raise; upstream's print `{"error": ...}`."""
    told = str(error) if as_text else {"kind": type(error).__name__, "message": str(error)}
    return json_answer({"error": told}, status_of(error))
