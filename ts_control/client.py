"""The shell of the control channel: dials, upgrades, and keeps one HTTP/2 connection with concurrent streams.

Owns: sockets, TLS, proxies, deadlines, the reading and the writing task. Refuses to know: when to register or to poll
again (`session.py`), and what a map means (`netmap.py`). The protocol is in the pure files beside this one.
"""

from __future__ import annotations

import base64
import math
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol, Self

import trio

from ts_base.errors import BadPacket
from ts_base.keys import MachinePrivate, MachinePublic
from ts_control.errors import ControlLost, NotControl, RequestRefused
from ts_control.framing import FrameReader
from ts_control.handshake import Initiator
from ts_control.http1 import Http1Client, Reply, check_upgrade_untrusted, upgrade_headers
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
from ts_control.location import Location, Proxy, base_path, maybe_proxy, parse_url, upgrade_locations
from ts_control.record import ClientTransport
from ts_control.wire import (
    CAPABILITY_VERSION,
    MapRequest,
    MapResponse,
    RegisterRequest,
    RegisterResponse,
    ServerKeys,
    decode_json_untrusted,
    decode_map_response_steps,
    encode_json,
)

CONNECT_TIMEOUT = 9.0  # key, upgrade and handshake together; with the longest pause it keeps a reconnect under 30 s
DIAL_TIMEOUT = 5.0
REQUEST_TIMEOUT = 30.0
WATCHDOG = 120.0  # a map stream this long without one whole message is dead
STALL_TIMEOUT = 20.0  # ... and one this long without a byte in the middle of a message
PING_TIMEOUT = 15.0
ANSWER_LIMIT = 1 << 20  # of anything but a map
READ_SIZE = 256 << 10

BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Dialer(Protocol):
    """What is asked of the machine's network."""

    async def open_tcp(self, host: str, port: int) -> trio.abc.HalfCloseableStream: ...
    def wall_clock(self) -> float: ...
    def entropy(self, length: int) -> bytes: ...


class ControlClient:
    """How to reach one control server as one machine. Makes connections; holds none."""

    def __init__(
        self,
        url: str,
        network: Dialer,
        machine: MachinePrivate,
        *,
        tls: ssl.SSLContext | None = None,
        environment: Mapping[str, str] | None = None,
        version: int = CAPABILITY_VERSION,
    ) -> None:
        self.url = url
        self.version = version
        self._first = parse_url(url)
        self._base = base_path(url)
        self._network = network
        self._machine = machine
        self._tls = tls
        self._environment = environment or {}

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[ControlConnection]:
        """One connection, ready for requests. Raises ControlLost or NotControl."""
        with trio.move_on_after(CONNECT_TIMEOUT) as opening:
            stream, transport, rest = await self._open()
        if opening.cancelled_caught:
            raise ControlLost(f"the control server {self.url} did not answer within {CONNECT_TIMEOUT:.0f} s")
        connection = ControlConnection(stream, transport, self._first.authority, rest)
        problem: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.read)
                nursery.start_soon(connection.write)
                try:
                    yield connection
                except Exception as error:  # carried around the nursery, which would wrap it in a group
                    problem = error
                nursery.cancel_scope.cancel()
        finally:
            connection.fail("the connection was closed")
            await trio.aclose_forcefully(stream)
        if problem is not None:
            raise problem

    async def answer_ping(self, url: str, body: bytes | None = None) -> None:
        """Outside the control channel: `HEAD url`, the simplest answer to a ping request, or POST of a body."""
        where = parse_url(url)
        path = url.split("//", 1)[1].partition("/")[2]
        with trio.fail_after(PING_TIMEOUT):
            stream = await self._dial(where)
            try:
                headers = [("Host", where.authority), ("Connection", "close")]
                if body is not None:
                    headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
                method = "HEAD" if body is None else "POST"
                await _exchange(stream, Http1Client(), method, f"/{path}", headers, body or b"")
            finally:
                await trio.aclose_forcefully(stream)

    async def _open(self) -> tuple[trio.abc.Stream, ClientTransport, bytes]:
        stream = await self._dial(self._first)
        try:
            http = Http1Client()
            key, can_continue = await self._fetch_key(stream, http)
            if can_continue:
                try:
                    return await self._upgrade(stream, http, self._first, key)
                except (ControlLost, BadPacket, *BROKEN) as problem:
                    first_problem: Exception = problem
            else:
                first_problem = ControlLost("the server keeps no connection alive")
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        await trio.aclose_forcefully(stream)
        return await self._open_again(key, first_problem)

    async def _open_again(
        self, key: MachinePublic, problem: Exception
    ) -> tuple[trio.abc.Stream, ClientTransport, bytes]:
        """The upgrade on connections of its own, everywhere it may work."""
        for where in upgrade_locations(self._first):
            try:
                stream = await self._dial(where)
                try:
                    return await self._upgrade(stream, Http1Client(), where, key)
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
            except (ControlLost, BadPacket, *BROKEN) as another:
                # The first way in says most about what is wrong.
                problem = problem if isinstance(problem, BadPacket) else another
        if isinstance(problem, BadPacket):
            raise NotControl(f"{self.url} does not speak the control protocol: {problem}") from None
        raise ControlLost(f"the control server {self.url} broke off: {problem}") from None

    async def _fetch_key(self, stream: trio.abc.Stream, http: Http1Client) -> tuple[MachinePublic, bool]:
        target = f"{self._base}/key?v={self.version}"
        try:
            try:
                reply = await _exchange(stream, http, "GET", target, [("Host", self._first.authority)])
            except BROKEN as problem:
                raise ControlLost(f"{self.url} broke off when asked for its key: {_reason(problem)}") from None
            if reply.status >= 500:
                raise ControlLost(f"{self.url} answered the key request with HTTP {reply.status}")
            if reply.status != 200:
                text = reply.body[:200].decode("utf-8", "replace").strip()
                raise NotControl(f"{self.url} answered the key request with HTTP {reply.status}: {text}")
            keys = decode_json_untrusted(ServerKeys, reply.body)
        except BadPacket as problem:
            raise NotControl(f"{self.url} is not a coordination server: {problem}") from None
        if keys.public_key.is_zero:
            raise NotControl(f"{self.url} is too old: it has no key for this protocol")
        return keys.public_key, reply.can_continue

    async def _upgrade(
        self, stream: trio.abc.Stream, http: Http1Client, where: Location, key: MachinePublic
    ) -> tuple[trio.abc.Stream, ClientTransport, bytes]:
        initiator = Initiator(self._machine, key, self.version, entropy=self._network.entropy)
        handshake = base64.b64encode(initiator.initiation).decode()
        headers = upgrade_headers(where.authority, handshake)
        reply = await _exchange(stream, http, "POST", f"{self._base}/ts2021", headers)
        check_upgrade_untrusted(reply)
        transport = ClientTransport(initiator)
        rest = transport.receive_untrusted(reply.rest)
        while not transport.is_established:
            data = await stream.receive_some(READ_SIZE)
            if not data:
                raise ControlLost("the server hung up in the middle of the handshake")
            rest += transport.receive_untrusted(bytes(data))
        return stream, transport, rest

    async def _dial(self, where: Location) -> trio.abc.Stream:
        proxy = maybe_proxy(where, self._environment)
        entry = proxy.location if proxy else where
        try:
            with trio.fail_after(DIAL_TIMEOUT):
                stream: trio.abc.Stream = await self._network.open_tcp(entry.host, entry.port)
                try:
                    return await self._climb(stream, where, proxy)
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
        except trio.TooSlowError:
            raise ControlLost(f"{entry.host_and_port} did not answer within {DIAL_TIMEOUT:.0f} s") from None
        except BROKEN as problem:
            sentence = f"cannot connect to {entry.host_and_port}: {_reason(problem)}"
            if isinstance(problem.__cause__, ssl.SSLCertVerificationError):
                raise NotControl(sentence) from problem  # somebody answers, and waiting will not change who
            raise ControlLost(sentence) from problem

    async def _climb(self, stream: trio.abc.Stream, where: Location, proxy: Proxy | None) -> trio.abc.Stream:
        """Proxy and TLS on a fresh TCP stream."""
        if proxy:
            if proxy.location.is_tls:
                stream = self._wrap_tls(stream, proxy.location.host)
            headers = [("Host", where.host_and_port)]
            if proxy.authorization:
                headers.append(("Proxy-Authorization", proxy.authorization))
            try:
                reply = await _exchange(stream, Http1Client(), "CONNECT", where.host_and_port, headers)
            except BadPacket as problem:
                raise ControlLost(f"the proxy {proxy.location.host_and_port} misbehaves: {problem}") from None
            if not 200 <= reply.status < 300:
                raise ControlLost(f"the proxy {proxy.location.host_and_port} answered CONNECT with {reply.status}")
        if where.is_tls:
            tls = self._wrap_tls(stream, where.host)
            await tls.do_handshake()
            return tls
        return stream

    def _wrap_tls(self, stream: trio.abc.Stream, host: str) -> trio.SSLStream[trio.abc.Stream]:
        if self._tls is None:
            self._tls = ssl.create_default_context()  # honours SSL_CERT_FILE; read once, it is slow
        return trio.SSLStream(stream, self._tls, server_hostname=host, https_compatible=True)


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
            self.fail(f"the connection to the control server broke: {_reason(problem)}")

    async def write(self) -> None:
        """Carry bytes out, in the order they were sealed: the only task that sends."""
        try:
            while True:
                await self._writable.wait()
                self._writable = trio.Event()
                if data := self._http2.transmit():
                    await self._stream.send_all(self._transport.write(data))
        except BROKEN as problem:
            self.fail(f"the connection to the control server broke: {_reason(problem)}")

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


async def _exchange(
    stream: trio.abc.Stream,
    http: Http1Client,
    method: str,
    target: str,
    headers: list[tuple[str, str]],
    body: bytes = b"",
) -> Reply:
    await stream.send_all(http.request(method, target, headers, body))
    while True:
        data = await stream.receive_some(READ_SIZE)
        reply = http.receive_untrusted(bytes(data))
        if reply is not None:
            return reply


def _reason(problem: BaseException) -> str:
    cause = problem.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({cause.verify_message}); pass tls= or set SSL_CERT_FILE for a private CA"
        )
    return str(problem) or (str(cause) if cause else "") or type(problem).__name__
