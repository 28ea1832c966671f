"""The embedded server on the wire: handshake, early payload, HTTP/2, whole or byte by byte, honest or hostile."""

from __future__ import annotations

from typing import Any

import pytest
from control_scripts import NOW, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_base.keys import DiscoPrivate, MachinePrivate, NodePrivate
from ts_control.framing import FrameReader
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.handshake import HandshakeRefused, Initiator
from ts_control.http2 import BodyArrived, BodyEnded, Http2Connection, ResponseArrived
from ts_control.record import ClientTransport
from ts_control.server import ControlServer
from ts_control.server_connection import MAX_BODY, ServedConnection
from ts_control.wire import MapRequest, MapResponse
from ts_control.wire_register import RegisterAuth, RegisterRequest, RegisterResponse


def make_server() -> ControlServer:
    return ControlServer(entropy=seeded(1), wall_clock=lambda: NOW)


class Client:
    """Our own client machines against the server's, joined by bytes."""

    def __init__(self, server: ControlServer, *, version: int = 131, seed: int = 2, piece: int = 0) -> None:
        draw = seeded(seed)
        self.node = NodePrivate.generate(draw(32)).public
        self.disco = DiscoPrivate.generate(draw(32)).public
        initiator = Initiator(MachinePrivate.generate(draw(32)), server.key, version, entropy=draw)
        self.connection = ServedConnection(server, initiator.initiation, entropy=seeded(seed + 1))
        self.transport = ClientTransport(initiator)
        self.http = Http2Connection(client=True)
        self.piece = piece
        self.bodies: dict[int, bytes] = {}
        self.statuses: dict[int, int] = {}
        self.ended: set[int] = set()

    def pieces(self, data: bytes) -> list[bytes]:
        size = self.piece or len(data) or 1
        return [data[start : start + size] for start in range(0, len(data), size)]

    def exchange(self) -> None:
        """Carry bytes both ways until nothing moves."""
        while True:
            down = self.connection.transmit(0.0)
            for piece in self.pieces(down):
                for event in self.http.receive_untrusted(self.transport.receive_untrusted(piece)):
                    self.note(event)
            up = self.http.transmit() if self.transport.is_established else b""
            if up:
                for piece in self.pieces(self.transport.write(up)):
                    self.connection.receive(piece, 0.0)
            if not up and not down:
                return

    def note(self, event: Any) -> None:
        if isinstance(event, ResponseArrived):
            self.statuses[event.stream] = event.status
        elif isinstance(event, BodyArrived):
            self.bodies[event.stream] = self.bodies.get(event.stream, b"") + event.data
            self.http.acknowledge(event.stream, event.window)
        elif isinstance(event, BodyEnded):
            self.ended.add(event.stream)

    def post(self, path: str, body: bytes) -> int:
        self.exchange()
        stream = self.http.request("POST", "control.test", path, [], body)
        self.exchange()
        return stream

    def register(self, key: str) -> RegisterResponse:
        auth = RegisterAuth(auth_key=key)
        stream = self.post(
            "/machine/register", encode_json(RegisterRequest(version=131, node_key=self.node, auth=auth))
        )
        return decode_json_untrusted(RegisterResponse, self.bodies[stream])

    def map(self, **fields: Any) -> int:
        request = MapRequest(version=131, node_key=self.node, disco_key=self.disco, **fields)
        return self.post("/machine/map", encode_json(request))


@pytest.mark.parametrize("piece", [0, 1, 7])
def test_client_registers_and_streams_at_any_split(piece: int) -> None:
    server = make_server()
    client = Client(server, piece=piece)
    answer = client.register(server.create_auth_key())
    assert answer.machine_authorized
    assert client.transport.early is not None
    stream = client.map(stream=True)
    reader = FrameReader(compressed=False)
    reader.receive(client.bodies[stream])
    text = reader.next_frame_untrusted()
    assert text is not None
    first = decode_json_untrusted(MapResponse, text)
    assert first.node is not None
    assert first.node.key == client.node
    assert stream not in client.ended


def test_news_wakes_the_connection_and_arrives() -> None:
    server = make_server()
    client = Client(server)
    client.register(server.create_auth_key())
    stream = client.map(stream=True)
    server.take_ready()
    before = len(client.bodies[stream])
    server.rename(1, "renamed", 1.0)
    assert server.take_ready() == [client.connection]
    client.exchange()
    assert b"renamed" in client.bodies[stream][before:]


def test_removed_device_sees_its_stream_end() -> None:
    server = make_server()
    client = Client(server)
    client.register(server.create_auth_key())
    stream = client.map(stream=True)
    server.remove(1, 1.0)
    client.exchange()
    assert stream in client.ended
    assert client.statuses[client.map(stream=True)] == 404


def test_cancelled_stream_takes_the_device_offline() -> None:
    server = make_server()
    client = Client(server)
    client.register(server.create_auth_key())
    client.http.cancel(client.map(stream=True))
    client.exchange()
    server.handle_timer(10.0)
    assert not server.directory.find(1).online


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/machine/register", b"{", 400),
        ("/machine/register", b"[]", 400),
        ("/machine/register", b'{"Version":131,"NodeKey":"nodekey:zz"}', 400),
        ("/machine/register", b'{"Version":30}', 400),
        ("/machine/map", b'{"Version":131}', 404),
        ("/machine/map", b"\xff\xfe", 400),
        ("/machine/set-dns", b"{}", 501),
        ("/machine/tka/init/begin", b"{}", 404),
        ("/machine/ping-answer?id=nobody", b"", 404),
        ("/nowhere", b"", 501),
        ("/machine/register", b" " * (MAX_BODY + 1), 413),
    ],
)
def test_bad_requests_get_a_status_and_the_connection_lives(path: str, body: bytes, status: int) -> None:
    server = make_server()
    client = Client(server)
    assert client.statuses[client.post(path, body)] == status
    assert not client.connection.closed
    assert client.register(server.create_auth_key()).machine_authorized


def test_old_client_is_told_so_before_anything_else() -> None:
    client = Client(make_server(), version=60)
    with pytest.raises(HandshakeRefused, match="older than"):
        client.exchange()
    assert client.connection.closed


def test_request_for_another_server_key_is_dropped_and_counted() -> None:
    server, other = make_server(), ControlServer(entropy=seeded(9), wall_clock=lambda: NOW)
    initiator = Initiator(MachinePrivate.generate(seeded(2)(32)), other.key, 131, entropy=seeded(3))
    connection = ServedConnection(server, initiator.initiation, entropy=seeded(4))
    assert connection.closed
    assert connection.transmit(0.0) == b""
    assert server.drops["control.bad_handshake"] == 1


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_initiation_is_dropped_without_an_exception(initiation: bytes) -> None:
    server = make_server()
    connection = ServedConnection(server, initiation, entropy=seeded(4))
    connection.receive(b"more", 0.0)
    connection.transmit(0.0)
    assert connection.closed
    assert sum(server.drops.values()) == 1


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_hostile_http2_inside_good_noise_closes_and_counts(data: bytes) -> None:
    server = make_server()
    client = Client(server)
    client.exchange()
    try:
        client.connection.receive(client.transport.write(data), 0.0)
        client.connection.transmit(0.0)
    except BadPacket:
        pytest.fail("hostile bytes raised")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_flipped_byte_ends_the_connection_quietly(position: int, value: int) -> None:
    server = make_server()
    client = Client(server)
    client.exchange()
    client.http.request("POST", "control.test", "/machine/register", [], b"{}")
    data = bytearray(client.transport.write(client.http.transmit()))
    data[position % len(data)] ^= value or 1
    client.connection.receive(bytes(data), 0.0)
    client.connection.receive(bytes(5000), 0.0)
    assert client.connection.closed
    assert server.drops["control.bad_bytes"] == 1
