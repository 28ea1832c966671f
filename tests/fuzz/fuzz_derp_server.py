"""The relay itself: whatever one client says, it raises nothing and another client's traffic still arrives."""

from __future__ import annotations

from ts_base.keys import NodePrivate
from ts_derp import frames
from ts_derp.frames import encode_frame, encode_packets
from ts_derp.greeting import encode_client_info
from ts_derp.server import DerpServer

SERVER = NodePrivate.generate(bytes(range(32)))
CLIENTS = [NodePrivate.generate(bytes(range(i, i + 32))) for i in (40, 80, 120)]
INTRODUCTIONS = [encode_frame(frames.CLIENT_INFO, encode_client_info(c, SERVER.public, bytes(24))) for c in CLIENTS]
GOOD = encode_packets(frames.SEND_PACKET, [(CLIENTS[2].public.raw, [b"good"])])


def fuzz_one(data: bytes) -> None:
    server = DerpServer(SERVER, entropy=lambda n: bytes(n))
    numbers = [server.connect(0.0) for _ in range(4)]
    hostile, good, receiver, stranger = (number or 0 for number in numbers)
    for number, introduction in zip((hostile, good, receiver), INTRODUCTIONS, strict=True):
        server.receive(number, introduction, 0.0)
    half = len(data) // 2
    for number in (hostile, stranger):
        server.receive(number, data[:half], 1.0)
        server.receive(number, data[half:], 2.0)
    server.receive(good, GOOD, 3.0)
    assert b"good" in server.transmit(receiver, 3.0)
    for number in (hostile, good, receiver, stranger):
        while server.transmit(number, 3.0):
            pass
    server.handle_timer(1000.0)
    assert server.next_timer() > 1000.0
    for number in (hostile, good, receiver, stranger):
        server.disconnect(number, 1001.0)
    assert server.statistics().clients == 0
    assert not server.statistics().watchers


def seeds() -> list[bytes]:
    target = CLIENTS[2].public.raw
    return [
        b"",
        INTRODUCTIONS[0],
        encode_packets(frames.SEND_PACKET, [(target, [b"x", b"TS\xf0\x9f\x92\xac" + bytes(60)]), (bytes(32), [b"y"])]),
        encode_frame(frames.PING, bytes(8)) + encode_frame(frames.NOTE_PREFERRED, b"\1"),
        encode_frame(frames.FORWARD_PACKET, bytes(80)),
        encode_frame(frames.CLOSE_PEER, target),
    ]
