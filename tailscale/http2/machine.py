"""One HTTP/2 connection, either end of it, as events and verbs. RFC 9113.

Parsing, header compression and the states of streams are h2's. Owned here is what a stranger may cost: windows, streams
at once, the size of a head, and how many frames may come that carry nothing. Those are paid from a purse that whole
answers and bodies fill again: whoever opens and resets, pings or changes settings for ever empties it, and that is the
end of the connection (RFC 9113, 10.5). Knows no time, and nothing of what a request means.
"""

from __future__ import annotations

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

STREAMS = 100
STREAM_WINDOW = 256 << 10
CONNECTION_WINDOW = 1 << 20  # what all streams of a connection may make us hold
FRAME_SIZE = 64 << 10
PURSE = 1000
PRICE_OF_RESET = 10  # it made us begin something
PAID_FOR_STREAM = 20
BYTES_FOR_ONE = 4 << 10

_FIRST_WINDOW = 65535  # RFC 9113, 6.9.2: the connection's window before any update

Headers = list[tuple[bytes, bytes]]


class Head(NamedTuple):
    """A request, or an answer that is no interim one."""

    stream: int
    headers: Headers
    ends: bool


class Interim(NamedTuple):
    stream: int
    headers: Headers


class Body(NamedTuple):
    """A piece of a body. `took` its `window` once it has been dealt with."""

    stream: int
    data: bytes
    window: int


class Trailers(NamedTuple):
    stream: int
    headers: Headers


class Ended(NamedTuple):
    """The other side sends no more on it."""

    stream: int


class Gone(NamedTuple):
    """The other side gave it up; `code` is 7 where it did nothing of what was asked (RFC 9113, 7)."""

    stream: int
    code: int


class Closing(NamedTuple):
    """The other side says that it ends the connection. Nothing can be sent any more."""


class Room(NamedTuple):
    """There may be more room to send."""


Event = Head | Interim | Body | Trailers | Ended | Gone | Closing | Room


class Http2Machine:
    """The shell moves bytes: `receive_untrusted` in, `transmit` out."""

    def __init__(self, *, is_client: bool, head: int) -> None:
        self._h2 = h2.connection.H2Connection(H2Configuration(client_side=is_client, header_encoding=None))
        codes = h2.settings.SettingCodes
        values = {
            codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            codes.MAX_FRAME_SIZE: FRAME_SIZE,
            codes.MAX_HEADER_LIST_SIZE: head,
            codes.MAX_CONCURRENT_STREAMS: STREAMS,
            codes.ENABLE_PUSH: 0,
        }
        if not is_client:
            del values[codes.ENABLE_PUSH]
        self._h2.local_settings = h2.settings.Settings(client=is_client, initial_values=values)
        self._h2.max_inbound_frame_size = FRAME_SIZE
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - _FIRST_WINDOW)
        self._is_client = is_client
        self._purse = PURSE
        self._bytes = 0
        self._sending: set[int] = set()  # streams that we have not ended
        self._hearing: set[int] = set()  # streams that they have not ended

    # Our side

    @property
    def streams(self) -> int:
        return len(self._sending | self._hearing)

    @property
    def has_place(self) -> bool:
        """Whether the other side lets one more stream be opened."""
        return len(self._sending | self._hearing) < self._h2.remote_settings.max_concurrent_streams

    def ask(self, headers: Sequence[tuple[bytes, bytes]], *, ends: bool) -> int:
        """Open a stream. BadPacket where the other side allows no more."""
        try:
            stream: int = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, headers, end_stream=ends)
        except (h2.exceptions.H2Error, ValueError) as problem:
            raise BadPacket(f"no new stream: {type(problem).__name__}") from None
        self._hearing.add(stream)
        if not ends:
            self._sending.add(stream)
        return stream

    def answer(self, stream: int, headers: Sequence[tuple[bytes, bytes]], *, ends: bool = False) -> None:
        """Send a head, interim or final, or with `ends` behind a body its trailers. Nothing where it is gone."""
        if stream in self._sending:
            self._h2.send_headers(stream, headers, end_stream=ends)
            if ends:
                self._sent_all(stream)

    def room(self, stream: int) -> int:
        """How many bytes of a body may be sent now."""
        if stream not in self._sending:
            return 0
        return int(self._h2.local_flow_control_window(stream))

    def send(self, stream: int, data: memoryview, *, ends: bool = False) -> None:
        """A piece for which there is room. Nothing where the stream is gone."""
        if stream not in self._sending:
            return
        most = self._h2.max_outbound_frame_size
        for at in range(0, len(data), most):
            is_last = at + most >= len(data)
            self._h2.send_data(stream, bytes(data[at : at + most]), end_stream=ends and is_last)
        if ends:
            if not data:
                self._h2.end_stream(stream)
            self._sent_all(stream)

    def reset(self, stream: int) -> None:
        """Give it up; what still arrives on it is thrown away."""
        if stream in self._sending or stream in self._hearing:
            # RFC 9113, 8.1: whoever has answered whole wants no more of the request, and nothing is wrong.
            is_answered = not self._is_client and stream not in self._sending
            self._h2.reset_stream(stream, ErrorCodes.NO_ERROR if is_answered else ErrorCodes.CANCEL)
            self._forget(stream)

    def took(self, stream: int, window: int) -> None:
        """A piece of a body was dealt with: as much again may be sent."""
        if window:
            self._h2.acknowledge_received_data(window, stream)

    def close(self) -> None:
        """The last word of a connection without open streams."""
        self._h2.close_connection(ErrorCodes.NO_ERROR)

    def transmit(self) -> bytes:
        data: bytes = self._h2.data_to_send()
        return data

    # Theirs

    def receive_untrusted(self, data: bytes) -> list[Event]:
        """BadPacket is the end of the connection; `transmit` then holds our last word."""
        events: list[Event] = []
        try:
            for event in self._h2.receive_data(data):
                self._translate(event, events)
        except (h2.exceptions.H2Error, HyperframeError, HPACKError, ValueError, OverflowError, KeyError) as problem:
            raise BadPacket(f"HTTP/2: {type(problem).__name__}") from None
        if self._purse < 0:
            self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            raise BadPacket("HTTP/2: frames for their own sake")
        return events

    def _translate(self, event: object, events: list[Event]) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=stream, headers=headers):
                self._sending.add(stream)
                self._hearing.add(stream)
                events.append(Head(stream, _plain(headers), event.stream_ended is not None))
            case h2.events.ResponseReceived(stream_id=stream, headers=headers):
                events.append(Head(stream, _plain(headers), event.stream_ended is not None))
            case h2.events.InformationalResponseReceived(stream_id=stream, headers=headers):
                self._purse -= 1
                events.append(Interim(stream, _plain(headers)))
            case h2.events.DataReceived(stream_id=stream, data=data, flow_controlled_length=window):
                self._on_body(stream, data, window, events)
            case h2.events.TrailersReceived(stream_id=stream, headers=headers):
                if stream in self._hearing:
                    events.append(Trailers(stream, _plain(headers)))
            case h2.events.StreamEnded(stream_id=stream):
                if stream in self._hearing:
                    self._hearing.discard(stream)
                    if self._is_client:
                        self._earn(PAID_FOR_STREAM)
                    events.append(Ended(stream))
            case h2.events.StreamReset(stream_id=stream, error_code=code):
                self._purse -= PRICE_OF_RESET
                if stream in self._sending or stream in self._hearing:
                    self._forget(stream)
                    events.append(Gone(stream, int(code)))
            case h2.events.ConnectionTerminated():
                self._forget(*self._sending, *self._hearing)
                events.append(Closing())
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._purse -= 1
                events.append(Room())
            case h2.events.SettingsAcknowledged():
                pass
            case _:  # pings, priorities, frames of extensions
                self._purse -= 1

    def _on_body(self, stream: int, data: bytes, window: int, events: list[Event]) -> None:
        if not data:
            self._purse -= 1
        self._bytes += len(data)
        self._earn(self._bytes // BYTES_FOR_ONE)
        self._bytes %= BYTES_FOR_ONE
        if stream in self._hearing:
            events.append(Body(stream, data, window))
        else:
            self.took(stream, window)

    def _earn(self, coins: int) -> None:
        self._purse = min(PURSE, self._purse + coins)

    def _sent_all(self, stream: int) -> None:
        self._sending.discard(stream)
        if not self._is_client:
            self._earn(PAID_FOR_STREAM)

    def _forget(self, *streams: int) -> None:
        self._sending.difference_update(streams)
        self._hearing.difference_update(streams)


def _plain(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return [(bytes(name), bytes(value)) for name, value in headers]
