"""A WSGI app (PEP 3333) where the server expects an ASGI app: each request in a thread of a bounded pool.

Owns the number of threads, what they are given of a request's body and how their answer gets out. A body that is small,
or in chunks, is whole before a thread is taken: a client that dawdles over it holds none. The environ is elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import sys
from collections.abc import Callable, Iterable
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any, cast
from wsgiref.util import FileWrapper, is_hop_by_hop

import trio

from tailscale.http.environ import environ_of
from tailscale.http1.asgi import ClientDisconnected, Message, Receive, Scope, Send

log = logging.getLogger("tailscale.http")
DEFAULT_THREADS = 16
LARGEST_BODY = 1 << 30
THREAD_PATIENCE = 60.0  # of a request, for a thread to be free
WHOLE_BODY = 64 << 10  # a body of this size is read before a thread is taken; a larger one by the app
IN_MEMORY = 1 << 20  # of a body in chunks; a larger one is in a file
UNLIMITED = trio.CapacityLimiter(math.inf)  # for trio; the number is ours
TOO_LARGE = b"the body of the request is too large\n"
BUSY = b"all threads of this server are busy\n"

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import WriteableBuffer

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, "TracebackType | None"]
Wsgi = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


class WsgiApp:
    """Called as an ASGI app, under trio."""

    def __init__(self, app: Wsgi, threads: int, largest_body: int) -> None:
        self._app = app
        self._threads = _Threads(threads)
        self._largest_body = largest_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return  # WSGI has none
        environ = environ_of(scope)
        is_coded = environ.pop("HTTP_TRANSFER_ENCODING", None) is not None
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length > self._largest_body:
            await _refuse(send, 413, TOO_LARGE)
        elif is_coded or length <= WHOLE_BODY:
            await self._call_with_whole_body(scope, environ, receive, send)
        else:
            reader = io.BufferedReader(_Input(receive), WHOLE_BODY)
            await self._call(scope, environ, reader, send)

    async def _call_with_whole_body(self, scope: Scope, environ: Environ, receive: Receive, send: Send) -> None:
        with SpooledTemporaryFile(IN_MEMORY) as body:
            more, size = True, 0
            while more:
                data, more = await _next_of(receive)
                size += len(data)
                if size > self._largest_body:
                    await _refuse(send, 413, TOO_LARGE)
                    return
                if size > IN_MEMORY:  # into a file
                    await trio.to_thread.run_sync(body.write, data)
                else:
                    body.write(data)
            body.seek(0)
            if size:  # one in chunks has a length now: not every framework reads a body without
                environ["CONTENT_LENGTH"] = str(size)
            await self._call(scope, environ, cast("IO[bytes]", body), send)

    async def _call(self, scope: Scope, environ: Environ, body: IO[bytes] | io.BufferedReader, send: Send) -> None:
        call = _Call(self._app, environ, body, send)
        try:
            last = await self._threads.run(scope["client"][0], call.run)
        except trio.TooSlowError:
            log.warning("a request waited %g s for a thread: `threads` says how many there are", THREAD_PATIENCE)
            await _refuse(send, 503, BUSY)
        else:
            for message in last:
                await send(message)


class _Threads:
    """So many at once, of which one is kept for others than who has all the rest: no caller shuts them out."""

    def __init__(self, number: int) -> None:
        if number < 1:
            raise ValueError(f"threads is 1 or more, not {number}")
        self._all = trio.CapacityLimiter(number)
        self._share = max(1, number - 1)
        self._of_caller: dict[str, trio.CapacityLimiter] = {}

    async def run(self, caller: str, work: Callable[[], list[Message]]) -> list[Message]:
        """Once there is one. Cancelled, it is left to itself, and counts for as long as it runs."""
        token, place = trio.lowlevel.current_trio_token(), object()
        own = self._of_caller.setdefault(caller, trio.CapacityLimiter(self._share))
        with trio.fail_after(THREAD_PATIENCE):
            await own.acquire_on_behalf_of(place)
            try:
                await self._all.acquire_on_behalf_of(place)
            except BaseException:
                own.release_on_behalf_of(place)
                raise

        def leave() -> None:
            self._all.release_on_behalf_of(place)
            own.release_on_behalf_of(place)
            if not own.borrowed_tokens and not own.statistics().tasks_waiting:
                self._of_caller.pop(caller, None)

        def run() -> list[Message]:
            try:
                return work()
            finally:
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(leave)

        return await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=UNLIMITED)


class _Call:
    """One request, in its thread."""

    def __init__(self, app: Wsgi, environ: Environ, body: IO[bytes] | io.BufferedReader, send: Send) -> None:
        self._app = app
        self._send = send
        self._start: Message | None = None
        self._is_begun = False
        self._environ = environ | {
            "wsgi.version": (1, 0),
            "wsgi.input": body,
            "wsgi.input_terminated": True,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
        }

    def run(self) -> list[Message]:
        """What is left to be sent at the end."""
        try:
            return self._answer()
        except Exception:
            raise
        except BaseException as error:  # `sys.exit()` in a view ends that request, not the device
            raise RuntimeError(f"the app raised {error!r}") from error

    def _answer(self) -> list[Message]:
        answer = self._app(self._environ, self._start_response)
        try:
            if isinstance(answer, list | tuple):  # whole already: it goes at once, with its length
                return self._whole(b"".join(map(_checked, answer)))
            for piece in answer:
                self._write(piece)
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
        return self._whole(b"")

    def _whole(self, body: bytes) -> list[Message]:
        """The end of the answer, and its beginning if it has none yet."""
        end: Message = {"type": "http.response.body", "body": body}
        if self._is_begun:
            return [end]
        start = self._started()
        if not any(name.lower() == b"content-length" for name, _ in start["headers"]):
            start["headers"].append((b"content-length", b"%d" % len(body)))
        return [start, end]

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None and self._is_begun:
            raise exc_info[1].with_traceback(exc_info[2])
        if exc_info is None and self._start is not None:
            raise RuntimeError("the app called start_response twice")
        code = status[:3]
        if not (code.isascii() and code.isdigit() and code >= "200" and status[3:4] in ("", " ")):
            raise ValueError(f"{status!r} is no status: write '200 OK'")
        for name, _ in headers:
            if is_hop_by_hop(name):
                raise ValueError(f"{name} concerns the connection, which is the server's")  # PEP 3333
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        self._start = {"type": "http.response.start", "status": int(code), "headers": encoded}
        return self._write

    def _started(self) -> Message:
        if self._start is None:
            raise RuntimeError("the app did not call start_response")
        return self._start

    def _write(self, piece: bytes) -> None:
        """Returns when it is on its way, as PEP 3333 wants it."""
        start = self._started()
        if not _checked(piece):
            return
        messages: list[Message] = [] if self._is_begun else [start]
        self._is_begun = True
        _in_loop(_send_all, self._send, [*messages, {"type": "http.response.body", "body": piece, "more_body": True}])


class _Input(io.RawIOBase):
    """A body, as it comes."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._rest = memoryview(b"")
        self._has_more = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._rest and self._has_more:
            data, self._has_more = _in_loop(_next_of, self._receive)
            self._rest = memoryview(data)
        room = memoryview(buffer).cast("B")
        size = min(len(room), len(self._rest))
        room[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _checked(piece: Any) -> bytes:
    if not isinstance(piece, bytes):
        raise TypeError(f"the app answered with {type(piece).__name__}: WSGI takes bytes")
    return piece


def _in_loop(verb: Callable[..., Any], *arguments: Any) -> Any:
    """Do it where the streams are. One whose request was given up sees that its client is gone."""
    try:
        return trio.from_thread.run(verb, *arguments)
    except (trio.Cancelled, trio.RunFinishedError) as error:
        raise ClientDisconnected("the server gave this request up") from error


async def _next_of(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] != "http.request":
        raise ClientDisconnected("the client went away before its request was whole")
    return message["body"], message["more_body"]


async def _send_all(send: Send, messages: list[Message]) -> None:
    for message in messages:
        await send(message)


async def _refuse(send: Send, status: int, sentence: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(sentence))]
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    await _send_all(send, [start, {"type": "http.response.body", "body": sentence}])
