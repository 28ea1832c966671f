"""Any bytes for either end of an HTTP/2 connection, in pieces, while its own end goes on."""

from __future__ import annotations

import contextlib

import h2.connection
import h11
from h2.config import H2Configuration

from tailscale.http.streams import request_of
from tailscale.http2.machine import CONNECTION_WINDOW, STREAMS, Body, Ended, Head, Http2Machine
from ts_base.errors import BadPacket

PIECE = 200
ASKED = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"h"), (b"te", b"trailers")]
ANSWER = [(b":status", b"200")]


def fuzz_one(data: bytes) -> None:
    is_client = data[:1] == b"c"
    machine = Http2Machine(is_client=is_client, head=4096)
    if is_client:
        machine.ask(ASKED, ends=False)
        machine.ask(ASKED, ends=True)
    held = 0
    for at in range(1, len(data), PIECE):
        try:
            events = machine.receive_untrusted(data[at : at + PIECE])
        except BadPacket:
            break
        for event in events:
            if isinstance(event, Body):
                held += len(event.data)
                if len(event.data) % 2:
                    machine.took(event.stream, event.window)
                    held -= len(event.data)
            elif isinstance(event, Head) and not is_client:
                with contextlib.suppress(BadPacket, h11.LocalProtocolError):
                    request_of(event)
                machine.answer(event.stream, ANSWER)
            elif isinstance(event, Ended) and not is_client:
                machine.send(event.stream, memoryview(bytes(min(100, machine.room(event.stream)))), ends=True)
                machine.reset(event.stream)
        machine.transmit()
        assert machine.streams <= STREAMS
        assert held <= CONNECTION_WINDOW


def conversation(*, is_client: bool) -> bytes:
    """What one end says that does everything once."""
    side = h2.connection.H2Connection(H2Configuration(client_side=not is_client, header_encoding=None))
    side.initiate_connection()
    if is_client:
        other = Http2Machine(is_client=True, head=4096)
        for ends in (False, True):
            other.ask(ASKED, ends=ends)
        side.receive_data(other.transmit())
        side.send_headers(1, [(b":status", b"103")])
        side.send_headers(1, [(b":status", b"200"), (b"x", b"y")])
        side.send_data(1, b"hello", pad_length=3)
        side.send_headers(1, [(b"grpc-status", b"0")], end_stream=True)
        side.reset_stream(3)
    else:
        for stream in (1, 3, 5):
            side.send_headers(stream, ASKED)
        side.send_data(1, b"hello", end_stream=True, pad_length=3)
        side.send_headers(3, [(b"x-trailer", b"1")], end_stream=True)
        side.reset_stream(5)
        side.prioritize(7, weight=3)
    side.ping(bytes(8))
    side.update_settings({4: 1000, 5: 20_000})
    side.increment_flow_control_window(1000)
    side.close_connection()
    return (b"c" if is_client else b"s") + side.data_to_send()


def seeds() -> list[bytes]:
    return [conversation(is_client=is_client) for is_client in (False, True)]
