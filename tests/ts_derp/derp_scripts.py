"""What the relay tests share: keys from a seed, entropy that repeats, a hand-played server, a memory-stream network."""

from __future__ import annotations

import hashlib
import itertools

from ts_base.box import Box
from ts_base.keys import NodePrivate
from ts_derp import frames
from ts_derp.greeting import RateLimit, decode_client_info_untrusted, encode_server_info, encode_server_key
from ts_derp.machine import DerpMachine


class Entropy:
    """Repeatable bytes, different at every call."""

    def __init__(self, seed: str = "seed") -> None:
        self._seed = seed
        self._count = itertools.count()

    def __call__(self, length: int) -> bytes:
        return hashlib.shake_256(f"{self._seed} {next(self._count)}".encode()).digest(length)


def key_of(name: str) -> NodePrivate:
    return NodePrivate.generate(hashlib.sha256(name.encode()).digest())


CLIENT, SERVER = key_of("client"), key_of("server")
PEER, OTHER = key_of("peer").public.raw, key_of("other").public.raw


def server_key_frame() -> bytes:
    return frames.encode_frame(frames.SERVER_KEY, encode_server_key(SERVER.public))


def server_info_frame(limit: RateLimit | None = None) -> bytes:
    return frames.encode_frame(frames.SERVER_INFO, encode_server_info(SERVER, CLIENT.public, bytes(24), limit))


def sealed_server_info(text: bytes) -> bytes:
    return frames.encode_frame(frames.SERVER_INFO, Box(SERVER, CLIENT.public).seal(text, bytes(24)))


def recv_frames(source: bytes, *packets: bytes) -> bytes:
    return frames.encode_packets(frames.RECV_PACKET, [(source, list(packets))])


def new_machine(**options: bool) -> DerpMachine:
    machine = DerpMachine(CLIENT, entropy=Entropy(), **options)
    machine.start(0.0)
    return machine


def greeted_machine(limit: RateLimit | None = None) -> DerpMachine:
    """A machine past its greeting, with nothing left to say or to tell."""
    machine = new_machine()
    machine.receive(server_key_frame() + server_info_frame(limit), 0.0)
    assert machine.greeted
    machine.transmit(0.0)
    machine.take_messages()
    return machine


def cut(stream: bytes) -> list[tuple[int, bytes]]:
    """The slow twin of FrameReader: every frame of a complete stream, one by one."""
    found, at = [], 0
    while at < len(stream):
        kind, length = stream[at], int.from_bytes(stream[at + 1 : at + 5], "big")
        assert at + 5 + length <= len(stream)
        found.append((kind, stream[at + 5 : at + 5 + length]))
        at += 5 + length
    return found


def sender_of(client_info_frame: bytes) -> bytes:
    return decode_client_info_untrusted(client_info_frame[frames.HEADER_LENGTH :], SERVER).raw
