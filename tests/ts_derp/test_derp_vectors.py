"""Our frames against what upstream's client and server wrote to each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from derp_scripts import Entropy

from ts_base.box import NONCE_LENGTH, Box
from ts_base.keys import NodePrivate, NodePublic
from ts_derp import frames
from ts_derp.frames import FrameReader, encode_frame, encode_packets, encode_peer_gone
from ts_derp.greeting import decode_client_info_untrusted, decode_server_info_untrusted, decode_server_key_untrusted
from ts_derp.machine import DerpMachine, Greeted, PeerGone, PongArrived, ServerHealth, ServerRestarting
from ts_derp.server import ClientAdmitted, DerpServer

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "derp.json").read_text())
A = NodePrivate(bytes.fromhex(VECTORS["a_private"]))
B = NodePublic(bytes.fromhex(VECTORS["b_public"]))
SERVER = NodePrivate(bytes.fromhex(VECTORS["server_private"]))


def stream(name: str) -> bytes:
    return b"".join(encode_frame(f["type"], bytes.fromhex(f["payload"])) for f in VECTORS[name])


def bodies(name: str, kind: int) -> list[bytes]:
    return [bytes.fromhex(f["payload"]) for f in VECTORS[name] if f["type"] == kind]


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda v: v["name"])
def test_rare_frames_are_read_and_written_as_upstream_does(vector: dict[str, Any]) -> None:
    wire, body = bytes.fromhex(vector["wire"]), bytes.fromhex(vector["payload"])
    assert FrameReader(frames.RECV_PACKET).feed(wire) == [(vector["type"], b"", [body])]
    assert encode_frame(vector["type"], body) == wire


def test_upstream_greetings_open() -> None:
    assert decode_server_key_untrusted(bodies("a_received", frames.SERVER_KEY)[0]) == SERVER.public
    assert decode_client_info_untrusted(bodies("a_sent", frames.CLIENT_INFO)[0], SERVER) == A.public
    assert decode_server_info_untrusted(bodies("a_received", frames.SERVER_INFO)[0], A, SERVER.public) is None


def test_our_client_info_says_what_upstreams_says() -> None:
    theirs = bodies("a_sent", frames.CLIENT_INFO)[0]
    box = Box(SERVER, A.public)
    said = json.loads(box.open_untrusted(theirs[32:]))
    machine = DerpMachine(A, entropy=Entropy())
    machine.receive(stream("a_received")[:45], 0.0)
    ours = machine.transmit(0.0)[frames.HEADER_LENGTH :]
    assert json.loads(box.open_untrusted(ours[32:])) == {"version": said["version"], "CanAckPings": True}
    assert said.items() >= {"version": 2}.items()
    assert len(ours) >= 32 + NONCE_LENGTH


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_machine_understands_all_an_upstream_server_wrote(size: int) -> None:
    machine = DerpMachine(A, entropy=lambda n: bytes(range(1, n + 1)))
    wire = stream("a_received")
    inbound = []
    for at in range(0, len(wire), size):
        inbound += machine.receive(wire[at : at + size], 0.5)
    assert machine.failure is None
    packets = [B.raw + packet for source, run in inbound for packet in run if source == B.raw]
    assert packets == bodies("a_received", frames.RECV_PACKET)
    facts = [fact for fact in machine.take_messages() if not isinstance(fact, PongArrived)]
    assert facts == [Greeted(SERVER.public, None), PeerGone(B.raw, 0), PeerGone(B.raw, 1)]


def test_machine_hears_upstreams_rare_frames() -> None:
    machine = DerpMachine(A, entropy=Entropy())
    machine.receive(stream("a_received"), 0.0)
    machine.take_messages()
    machine.receive(b"".join(bytes.fromhex(v["wire"]) for v in VECTORS["frames"]), 0.0)
    facts = machine.take_messages()
    assert [type(fact) for fact in facts] == [
        ServerHealth,
        ServerHealth,
        ServerRestarting,
        PeerGone,
        PeerGone,
        PeerGone,
    ]
    assert facts[2] == ServerRestarting(0.25, 5.0)


def test_packets_are_written_as_upstream_writes_them() -> None:
    sent = bodies("a_sent", frames.SEND_PACKET)
    runs = [(body[:32], [body[32:]]) for body in sent]
    expected = b"".join(encode_frame(frames.SEND_PACKET, body) for body in sent)
    assert encode_packets(frames.SEND_PACKET, runs) == expected
    assert encode_peer_gone(B.raw, 1) == encode_frame(frames.PEER_GONE, B.raw + b"\1")


@pytest.mark.parametrize("size", [1, 13, 1 << 20])
def test_server_understands_all_an_upstream_client_wrote(size: int) -> None:
    server = DerpServer(SERVER, entropy=Entropy())
    a, b = server.connect(0.0), server.connect(0.0)
    assert a is not None
    assert b is not None
    server.receive(b, stream("b_sent"), 0.0)
    server.transmit(b, 0.0)
    wire = stream("a_sent")
    for at in range(0, len(wire), size):
        server.receive(a, wire[at : at + size], 0.0)
    assert server.take_messages() == [ClientAdmitted(b, B), ClientAdmitted(a, A.public)]
    received = FrameReader(frames.RECV_PACKET).feed(server.transmit(b, 0.0))
    assert [packet for _, source, run in received for packet in run if source == A.public.raw]
    assert server.statistics().homes == 1
