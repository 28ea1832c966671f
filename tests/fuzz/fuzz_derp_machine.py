"""The relay client's machine: whatever a relay says, it raises nothing and its memory stays bounded."""

from __future__ import annotations

import math

from ts_base.keys import NodePrivate
from ts_derp import frames, machine
from ts_derp.frames import encode_frame, encode_packets
from ts_derp.greeting import RateLimit, encode_server_info, encode_server_key
from ts_derp.machine import DerpMachine

OURS, SERVER = NodePrivate.generate(bytes(range(32))), NodePrivate.generate(bytes(range(32, 64)))
GREETING = encode_frame(frames.SERVER_KEY, encode_server_key(SERVER.public)) + encode_frame(
    frames.SERVER_INFO, encode_server_info(SERVER, OURS.public, bytes(24), RateLimit(10_000, 100_000))
)


def fuzz_one(data: bytes) -> None:
    for opening in (b"", GREETING[:45], GREETING):
        client = DerpMachine(OURS, entropy=lambda n: bytes(n))
        client.start(0.0)
        client.receive(opening, 0.0)
        client.ping(0.0)
        half = len(data) // 2
        for at, piece in ((1.0, data[:half]), (2.0, data[half:])):
            for key, packets in client.receive(piece, at):
                assert len(key) == 32
                assert all(0 < len(packet) <= frames.MAX_PACKET_LENGTH for packet in packets)
            client.send([(bytes(32), [piece])], at)
            client.transmit(at)
            assert client.next_timer() > at
        assert len(client.take_messages()) <= machine.MESSAGE_LIMIT
        client.handle_timer(1000.0)
        assert client.failure is not None
        assert client.next_timer() == math.inf


def seeds() -> list[bytes]:
    key = bytes(range(32))
    rare = [
        encode_frame(frames.PEER_GONE, key + b"\1"),
        encode_frame(frames.PING, bytes(8)),
        encode_frame(frames.PONG, bytes(8)),
        encode_frame(frames.HEALTH, b"sick"),
        encode_frame(frames.RESTARTING, bytes(8)),
        encode_packets(frames.RECV_PACKET, [(key, [b"packet", b"another"])]),
    ]
    return [b"", GREETING, b"".join(rare), *rare]
