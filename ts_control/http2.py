"""A thin face over h2, for either end of the control channel: requests and responses as events, bodies as bytes.

Owns: stream bookkeeping, outbound bodies waiting for window, inbound windows wide enough that a long map never stalls.
Refuses to know: Noise, JSON, sockets. Windows are topped up when the reader of a body says it took it, so what a
stranger can make us hold is one window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from hpack.exceptions import HPACKError
from hyperframe.exceptions import HyperframeError

from ts_base.errors import BadPacket

STREAM_WINDOW = 16 << 20
CONNECTION_WINDOW = 32 << 20
FRAME_SIZE = 64 << 10
HEADER_LIST_LIMIT = 64 << 10
STREAM_LIMIT = 256  # streams a client may have open with us

_FIRST_WINDOW = 65535  # RFC 9113 6.9.2: the connection's window before any update

Headers = dict[str, str]


class RequestArrived(NamedTuple):
    stream: int
    method: str
    path: str
    headers: Headers


class ResponseArrived(NamedTuple):
    stream: int
    status: int
    headers: Headers


class BodyArrived(NamedTuple):
    """A piece of a body. Hand `window` to `acknowledge` once it has been dealt with."""

    stream: int
    data: bytes
    window: int


class BodyEnded(NamedTuple):
    stream: int


class StreamFailed(NamedTuple):
    stream: int
    reason: str


class ConnectionEnding(NamedTuple):
    """The other side takes no new streams."""

    reason: str


Http2Event = RequestArrived | ResponseArrived | BodyArrived | BodyEnded | StreamFailed | ConnectionEnding


class Http2Connection:
    """One connection, client or server. The shell moves bytes: `receive_untrusted` in, `transmit` out."""

    def __init__(self, *, client: bool) -> None:
        self._h2 = h2.connection.H2Connection(H2Configuration(client_side=client))
        codes = h2.settings.SettingCodes
        values = {
            codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            codes.MAX_FRAME_SIZE: FRAME_SIZE,
            codes.MAX_HEADER_LIST_SIZE: HEADER_LIST_LIMIT,
            codes.MAX_CONCURRENT_STREAMS: STREAM_LIMIT,
        }
        if client:
            values[codes.ENABLE_PUSH] = 0
        self._h2.local_settings = h2.settings.Settings(client=client, initial_values=values)
        self._h2.max_inbound_frame_size = FRAME_SIZE
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - _FIRST_WINDOW)
        self._waiting: dict[int, deque[memoryview]] = {}  # bodies the other side has no window for yet
        self._finished: set[int] = set()  # of those, the ones that end with what is waiting
        self._open: set[int] = set()

    def request(self, method: str, authority: str, path: str, headers: Sequence[tuple[str, str]], body: bytes) -> int:
        """Start a stream; BadPacket when the other side allows no more."""
        try:
            stream: int = self._h2.get_next_available_stream_id()
            pseudo = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]
            self._h2.send_headers(stream, [*pseudo, *headers], end_stream=not body)
        except h2.exceptions.H2Error as problem:
            raise BadPacket(f"no new stream: {type(problem).__name__}") from None
        self._open.add(stream)
        if body:
            self.send_body(stream, body, end=True)
        return stream

    def respond(self, stream: int, status: int, headers: Sequence[tuple[str, str]] = (), *, end: bool = False) -> None:
        """Answer a request; ignored when the stream is gone meanwhile."""
        if stream in self._open:
            self._h2.send_headers(stream, [(":status", str(status)), *headers], end_stream=end)
            if end:
                self._open.discard(stream)

    def send_body(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Queue a piece of a body; `backlog` says how much of it the other side has not made room for."""
        if stream not in self._open:
            return
        waiting = self._waiting.setdefault(stream, deque())
        if data:
            waiting.append(memoryview(data))  # cut into frames without copying the rest each time
        if end:
            self._finished.add(stream)
        self._pump(stream)

    def backlog(self, stream: int) -> int:
        return sum(map(len, self._waiting.get(stream, ())))

    def is_open(self, stream: int) -> bool:
        return stream in self._open

    def cancel(self, stream: int) -> None:
        """Give a stream up; what still arrives on it is thrown away."""
        if stream in self._open:
            self._forget(stream)
            self._h2.reset_stream(stream, ErrorCodes.CANCEL)

    def acknowledge(self, stream: int, window: int) -> None:
        """A body piece was dealt with: the other side may send as much again."""
        if window:
            self._h2.acknowledge_received_data(window, stream)

    def transmit(self) -> bytes:
        data: bytes = self._h2.data_to_send()
        return data

    def receive_untrusted(self, data: bytes) -> list[Http2Event]:
        """BadPacket is the end of the connection; `transmit` then holds our last word."""
        try:
            arrived = self._h2.receive_data(data)
            events: list[Http2Event] = []
            for event in arrived:
                self._translate(event, events)
        except (h2.exceptions.H2Error, HyperframeError, HPACKError, ValueError, OverflowError, KeyError) as problem:
            raise BadPacket(f"HTTP/2: {type(problem).__name__}") from None
        return events

    def _translate(self, event: object, events: list[Http2Event]) -> None:
        match event:
            case h2.events.DataReceived(stream_id=stream, data=data, flow_controlled_length=window):
                if stream in self._open:
                    events.append(BodyArrived(stream, data, window))
                else:
                    self.acknowledge(stream, window)
            case h2.events.ResponseReceived(stream_id=stream, headers=headers):
                values = _decode_headers(headers)
                events.append(ResponseArrived(stream, _status(values.get(":status", "")), values))
            case h2.events.RequestReceived(stream_id=stream, headers=headers):
                self._open.add(stream)
                values = _decode_headers(headers)
                method, path = values.get(":method", ""), values.get(":path", "")
                events.append(RequestArrived(stream, method, path, values))
            case h2.events.StreamEnded(stream_id=stream):
                events.append(BodyEnded(stream))
                if self._h2.config.client_side:
                    self._forget(stream)
            case h2.events.StreamReset(stream_id=stream, error_code=code):
                if stream in self._open:
                    self._forget(stream)
                    events.append(StreamFailed(stream, f"reset by the other side ({_code_name(code)})"))
            case h2.events.ConnectionTerminated(error_code=code):
                events.append(ConnectionEnding(_code_name(code)))
            case h2.events.WindowUpdated(stream_id=stream):
                for waiting in [stream] if stream else list(self._waiting):
                    self._pump(waiting)
            case h2.events.RemoteSettingsChanged():
                for waiting in list(self._waiting):
                    self._pump(waiting)

    def _pump(self, stream: int) -> None:
        waiting = self._waiting.get(stream)
        if waiting is None:
            return
        while waiting:
            room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            if room <= 0:
                return
            piece = waiting.popleft()
            if len(piece) > room:
                waiting.appendleft(piece[room:])
                piece = piece[:room]
            self._h2.send_data(stream, bytes(piece))
        del self._waiting[stream]
        if stream in self._finished:
            self._finished.discard(stream)
            self._h2.end_stream(stream)
            if not self._h2.config.client_side:
                self._open.discard(stream)

    def _forget(self, stream: int) -> None:
        self._open.discard(stream)
        self._waiting.pop(stream, None)
        self._finished.discard(stream)


def _decode_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


def _status(text: str) -> int:
    if len(text) == 3 and text.isascii() and text.isdigit():
        return int(text)
    raise BadPacket("HTTP/2: no status")


def _code_name(code: object) -> str:
    return code.name if isinstance(code, ErrorCodes) else f"code {code}"
