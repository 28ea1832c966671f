"""Two ends of HTTP/2 back to back: bodies, windows, resets and hostile bytes."""

from __future__ import annotations

import contextlib

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_control.http2 import (
    CONNECTION_WINDOW,
    STREAM_WINDOW,
    BodyArrived,
    BodyEnded,
    ConnectionEnding,
    Http2Connection,
    Http2Event,
    RequestArrived,
    ResponseArrived,
    StreamFailed,
)


class Pair:
    """A client and a server, and the bytes between them."""

    def __init__(self) -> None:
        self.client, self.server = Http2Connection(client=True), Http2Connection(client=False)
        self.exchange()

    def exchange(self) -> tuple[list[Http2Event], list[Http2Event]]:
        """Carry everything both ways until both are quiet: what the client heard, what the server heard."""
        heard: tuple[list[Http2Event], list[Http2Event]] = ([], [])
        while True:
            up, down = self.client.transmit(), self.server.transmit()
            if not up and not down:
                return heard
            heard[1].extend(self.server.receive_untrusted(up))
            heard[0].extend(self.client.receive_untrusted(down))


def body_of(events: list[Http2Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, BodyArrived))


def test_a_request_and_its_answer() -> None:
    p = Pair()
    number = p.client.request("POST", "host", "/machine/map", [("content-type", "application/json")], b"{}")
    _, heard = p.exchange()
    assert isinstance(heard[0], RequestArrived)
    assert (heard[0].method, heard[0].path, heard[0].headers["content-type"]) == (
        "POST",
        "/machine/map",
        "application/json",
    )
    assert (body_of(heard), heard[-1]) == (b"{}", BodyEnded(number))
    p.server.respond(number, 200, [("x", "y")])
    p.server.send_body(number, b"one")
    p.server.send_body(number, b"two", end=True)
    answers, _ = p.exchange()
    assert isinstance(answers[0], ResponseArrived)
    assert (answers[0].status, answers[0].headers["x"]) == (200, "y")
    assert (body_of(answers), answers[-1]) == (b"onetwo", BodyEnded(number))
    assert not p.client.is_open(number)


def test_a_long_body_waits_for_the_reader_and_then_goes_on() -> None:
    p = Pair()
    number = p.client.request("GET", "host", "/", [], b"")
    p.exchange()
    p.server.respond(number, 200)
    whole = bytes(STREAM_WINDOW + CONNECTION_WINDOW)
    p.server.send_body(number, whole, end=True)
    events, _ = p.exchange()
    assert len(body_of(events)) == STREAM_WINDOW
    assert p.server.backlog(number) == CONNECTION_WINDOW
    received = 0
    while events:
        received += len(body_of(events))
        for event in events:
            if isinstance(event, BodyArrived):
                p.client.acknowledge(event.stream, event.window)
        events, _ = p.exchange()
    assert received == len(whole)
    assert not p.client.is_open(number)


def test_an_abandoned_stream_does_not_eat_the_connections_window() -> None:
    p = Pair()
    for _ in range(2 * CONNECTION_WINDOW // STREAM_WINDOW + 1):
        number = p.client.request("GET", "host", "/", [], b"")
        p.exchange()
        p.server.respond(number, 200)
        p.server.send_body(number, bytes(STREAM_WINDOW))
        p.client.cancel(number)
        heard = p.exchange()
        assert StreamFailed(number, "reset by the other side (CANCEL)") in heard[1]
    number = p.client.request("GET", "host", "/", [], b"")
    p.exchange()
    p.server.respond(number, 200)
    p.server.send_body(number, b"still here", end=True)
    assert body_of(p.exchange()[0]) == b"still here"


def test_a_goodbye_is_heard() -> None:
    p = Pair()
    goodbye = GoAwayFrame(stream_id=0, error_code=ErrorCodes.ENHANCE_YOUR_CALM)
    assert p.client.receive_untrusted(goodbye.serialize()) == [ConnectionEnding("ENHANCE_YOUR_CALM")]
    with pytest.raises(BadPacket):
        p.client.request("GET", "host", "/", [], b"")


def test_answers_to_a_stream_that_is_gone_are_dropped() -> None:
    p = Pair()
    number = p.client.request("GET", "host", "/", [], b"")
    p.exchange()
    p.client.cancel(number)
    p.exchange()
    p.server.respond(number, 200)
    p.server.send_body(number, b"late", end=True)
    assert p.exchange() == ([], [])


def test_byte_by_byte_hears_the_same() -> None:
    client, server, slow_server = (
        Http2Connection(client=True),
        Http2Connection(client=False),
        Http2Connection(client=False),
    )
    client.request("POST", "host", "/a", [], b"body")
    client.request("GET", "host", "/b", [], b"")
    wire = client.transmit()
    at_once = server.receive_untrusted(wire)
    slowly = [event for i in range(len(wire)) for event in slow_server.receive_untrusted(wire[i : i + 1])]
    assert slowly == at_once


@settings(max_examples=100)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_raise_only_bad_packet(data: bytes, client: bool) -> None:
    p = Pair()
    p.client.request("GET", "host", "/", [], b"")
    p.exchange()
    with contextlib.suppress(BadPacket):
        (p.client if client else p.server).receive_untrusted(data)


@settings(max_examples=100)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_answer_raises_only_bad_packet(position: int, value: int) -> None:
    p = Pair()
    number = p.client.request("GET", "host", "/", [], b"")
    p.exchange()
    p.server.respond(number, 200, [("content-type", "text/plain")])
    p.server.send_body(number, b"hello", end=True)
    wire = bytearray(p.server.transmit())
    wire[position % len(wire)] = value
    with contextlib.suppress(BadPacket):
        p.client.receive_untrusted(bytes(wire))
