"""Requests over one upgraded control connection: HTTP/2 streams inside Noise records, any number at once.

Owns: the reading and the writing task, deadlines of answers, the map stream. Refuses to know: how the connection came
about (`client.py`), and what a map means (`netmap.py`).
"""

from __future__ import annotations

import math
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Self

import trio

from ts_base.errors import BadPacket
from ts_control.errors import ControlLost, RequestRefused
from ts_control.framing import FrameReader
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.http2 import (
    BodyArrived,
    BodyEnded,
    ConnectionEnding,
    Http2Connection,
    Http2Event,
    RequestArrived,
    ResponseArrived,
    StreamFailed,
)
from ts_control.map_reader import decode_map_response_steps
from ts_control.record import ClientTransport
from ts_control.wire import MapRequest, MapResponse
from ts_control.wire_register import RegisterRequest, RegisterResponse

REQUEST_TIMEOUT = 30.0
WATCHDOG = 120.0  # a map stream this long without one whole message is dead
STALL_TIMEOUT = 20.0  # ... and one this long without a byte in the middle of a message
ANSWER_LIMIT = 1 << 20  # of anything but a map
READ_SIZE = 256 << 10

BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class _Call:
    """One request and what has come back for it."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: deque[tuple[bytes, int]] = deque()
        self.is_over = False
        self.problem: Exception | None = None
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class ControlConnection:
    """Requests over one upgraded connection. Any number of tasks may use it at once."""

    def __init__(self, stream: trio.abc.Stream, transport: ClientTransport, authority: str, rest: bytes) -> None:
        self._stream = stream
        self._transport = transport
        self._authority = authority
        self._rest = rest
        self._http2 = Http2Connection(client=True)
        self._calls: dict[int, _Call] = {}
        self._writable = trio.Event()
        self._writable.set()
        self._problem: ControlLost | None = None

    async def register(self, request: RegisterRequest, *, timeout: float = REQUEST_TIMEOUT) -> RegisterResponse:
        body = await self.request("POST", "/machine/register", encode_json(request), timeout=timeout)
        return decode_json_untrusted(RegisterResponse, body)

    async def update(self, request: MapRequest, *, timeout: float = REQUEST_TIMEOUT) -> None:
        """Tell control about ourselves without asking for a map."""
        await self.request("POST", "/machine/map", encode_json(request), timeout=timeout)

    @asynccontextmanager
    async def map_stream(self, request: MapRequest) -> AsyncIterator[MapStream]:
        """Ask for the map and its changes; the stream ends with the context."""
        number = self._start("POST", "/machine/map", encode_json(request))
        try:
            yield MapStream(self, number, compressed=request.compress == "zstd")
        finally:
            self._end(number)

    async def request(
        self, method: str, path: str, body: bytes = b"", *, timeout: float = REQUEST_TIMEOUT, limit: int = ANSWER_LIMIT
    ) -> bytes:
        """One request, its whole answer. RequestRefused when the status is not success."""
        number = self._start(method, path, body)
        try:
            with trio.fail_after(timeout):
                status = await self.wait_for_status(number)
                answer = bytearray()
                while piece := await self.take_body(number):
                    answer += piece
                    if len(answer) > limit:
                        raise BadPacket(f"{path} was answered with more than {limit} bytes")
        except trio.TooSlowError:
            raise ControlLost(f"{path} was not answered within {timeout:.0f} s") from None
        else:
            self.check_status(number, path, status, bytes(answer))
            return bytes(answer)
        finally:
            self._end(number)

    def check_status(self, number: int, path: str, status: int, body: bytes) -> None:
        if not 200 <= status < 300:
            text = body[:300].decode("utf-8", "replace").strip()
            raise RequestRefused(path, status, text, self._calls[number].headers.get("retry-after", ""))

    async def wait_for_status(self, number: int) -> int:
        call = self._calls[number]
        while not call.status:
            self._check(call)
            await call.changed.wait()
        return call.status

    async def take_body(self, number: int) -> bytes:
        """The next piece of the answer; b"" when it is complete."""
        await trio.lowlevel.checkpoint()
        call = self._calls[number]
        while not call.pieces:
            if call.is_over:
                return b""
            self._check(call)
            await call.changed.wait()
        data, window = call.pieces.popleft()
        self._http2.acknowledge(number, window)
        self._writable.set()
        return data

    def _check(self, call: _Call) -> None:
        if call.problem is not None:
            raise call.problem

    def _start(self, method: str, path: str, body: bytes) -> int:
        if self._problem is not None:
            raise self._problem
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        number = self._http2.request(method, self._authority, path, headers, body)
        self._calls[number] = _Call()
        self._writable.set()
        return number

    def _end(self, number: int) -> None:
        self._calls.pop(number, None)
        if self._problem is None:
            self._http2.cancel(number)
            self._writable.set()

    @trio.lowlevel.enable_ki_protection
    async def read(self) -> None:
        """Carry bytes in until the connection ends."""
        try:
            self._hear(self._http2.receive_untrusted(self._rest))
            while True:
                data = await self._stream.receive_some(READ_SIZE)
                if not data:
                    self.fail("the control server closed the connection")
                    return
                plain = self._transport.receive_untrusted(bytes(data))
                self._hear(self._http2.receive_untrusted(plain))
                self._writable.set()
        except BadPacket as problem:
            self.fail(f"the control server speaks nonsense: {problem}")
        except BROKEN as problem:
            self.fail(f"the connection to the control server broke: {reason_of(problem)}")

    @trio.lowlevel.enable_ki_protection
    async def write(self) -> None:
        """Carry bytes out, in the order they were sealed: the only task that sends."""
        try:
            while True:
                await self._writable.wait()
                self._writable = trio.Event()
                if data := self._http2.transmit():
                    await self._stream.send_all(self._transport.write(data))
        except BROKEN as problem:
            self.fail(f"the connection to the control server broke: {reason_of(problem)}")

    def fail(self, reason: str) -> None:
        """Every call, now and later, ends with `reason`."""
        if self._problem is None:
            self._problem = ControlLost(reason)
            for call in self._calls.values():
                call.problem = call.problem or self._problem
                call.wake()

    def _hear(self, events: Sequence[Http2Event]) -> None:
        for event in events:
            if isinstance(event, ConnectionEnding):
                self.fail(f"the control server ends the connection ({event.reason})")
                continue
            call = self._calls.get(event.stream)
            if call is None:
                if isinstance(event, BodyArrived):
                    self._http2.acknowledge(event.stream, event.window)
                continue
            match event:
                case ResponseArrived(status=status, headers=headers):
                    call.status, call.headers = status, headers
                case BodyArrived(data=data, window=window):
                    call.pieces.append((data, window))
                case BodyEnded():
                    call.is_over = True
                case StreamFailed(reason=reason):
                    call.problem = ControlLost(f"the control server dropped the request: {reason}")
                case RequestArrived():
                    continue
            call.wake()


class MapStream:
    """The messages of one map request. Iterate; it ends by raising, because a map stream has no good end."""

    def __init__(self, connection: ControlConnection, number: int, *, compressed: bool) -> None:
        self._connection = connection
        self._number = number
        self._frames = FrameReader(compressed=compressed)
        self._is_open = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MapResponse:
        return await self.receive()

    async def receive(self) -> MapResponse:
        """The next message. ControlLost, RequestRefused or BadPacket end the stream."""
        with trio.move_on_after(WATCHDOG) as watchdog:
            text = await self._next_text()
        if watchdog.cancelled_caught:
            raise ControlLost(f"the control server said nothing for {WATCHDOG:.0f} s")
        # Read in slices: ten thousand peers must not hold everybody else up.
        steps = decode_map_response_steps(text)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                response: MapResponse = done.value
                return response
            await trio.lowlevel.checkpoint()

    async def _next_text(self) -> bytes:
        connection, number = self._connection, self._number
        if not self._is_open:
            with _impatient(REQUEST_TIMEOUT, "did not answer the map request"):
                status = await connection.wait_for_status(number)
            if status != 200:
                connection.check_status(number, "/machine/map", status, await connection.take_body(number))
            self._is_open = True
        while (text := self._frames.next_frame_untrusted()) is None:
            patience = STALL_TIMEOUT if self._frames.is_inside_frame else math.inf
            with _impatient(patience, "stopped in the middle of a map"):
                piece = await connection.take_body(number)
            if not piece:
                raise ControlLost("the control server ended the map stream")
            self._frames.receive(piece)
        return text


@contextmanager
def _impatient(seconds: float, what: str) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise ControlLost(f"the control server {what} for {seconds:.0f} s") from None


def reason_of(problem: BaseException) -> str:
    """Why a stream broke, as far as anybody knows."""
    cause = problem.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({cause.verify_message}); pass tls= or set SSL_CERT_FILE for a private CA"
        )
    if isinstance(cause, BaseExceptionGroup):  # of several addresses, the first says most
        cause = cause.exceptions[0]
    if isinstance(problem, OSError) and isinstance(cause, OSError) and (cause.errno or 0) > 0:
        return os.strerror(cause.errno or 0)  # trio only says that all attempts failed
    return str(problem) or (str(cause) if cause else "") or type(problem).__name__
