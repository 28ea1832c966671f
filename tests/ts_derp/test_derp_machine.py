"""The client side of a relay connection: greeting, bounds, deadlines, and frames nobody should send."""

from __future__ import annotations

import math

import pytest
from derp_scripts import (
    CLIENT,
    OTHER,
    PEER,
    SERVER,
    Entropy,
    cut,
    greeted_machine,
    new_machine,
    recv_frames,
    sealed_server_info,
    sender_of,
    server_info_frame,
    server_key_frame,
)
from hypothesis import given
from hypothesis import strategies as st

from ts_derp import frames, machine
from ts_derp.frames import encode_frame
from ts_derp.greeting import RateLimit
from ts_derp.machine import DerpMachine, Greeted, PeerGone, PongArrived, ServerHealth, ServerRestarting


def test_greeting_is_answered_and_packets_need_not_wait_for_server_info() -> None:
    m = new_machine(preferred=True)
    m.send([(PEER, [b"early"])], 0.0)
    assert m.transmit(0.0) == b""
    m.receive(server_key_frame(), 0.1)
    kinds = cut(m.transmit(0.1))
    assert [kind for kind, _ in kinds] == [frames.CLIENT_INFO, frames.NOTE_PREFERRED, frames.SEND_PACKET]
    assert sender_of(encode_frame(*kinds[0])) == CLIENT.public.raw
    assert kinds[1][1] == b"\1"
    assert kinds[2][1] == PEER + b"early"
    m.receive(server_info_frame(), 0.2)
    assert m.take_messages() == [Greeted(SERVER.public, None)]


def test_byte_by_byte_equals_all_at_once() -> None:
    stream = (
        server_key_frame() + server_info_frame() + recv_frames(PEER, b"1", b"22") + encode_frame(frames.PING, b"8" * 8)
    )
    stream += encode_frame(frames.PEER_GONE, PEER + b"\1") + recv_frames(OTHER, b"3")
    whole, drops = new_machine(), new_machine()
    inbound = whole.receive(stream, 1.0)
    dripped = [run for i in range(len(stream)) for run in drops.receive(stream[i : i + 1], 1.0)]
    assert [(k, p) for k, ps in dripped for p in ps] == [(k, p) for k, ps in inbound for p in ps]
    assert inbound == [(PEER, [b"1", b"22"]), (OTHER, [b"3"])]
    assert whole.take_messages() == drops.take_messages()
    assert whole.transmit(1.0) == drops.transmit(1.0)


@pytest.mark.parametrize(
    "opening",
    [
        encode_frame(frames.SERVER_KEY, bytes(40)),
        encode_frame(frames.SERVER_KEY, frames.MAGIC + bytes(31)),
        encode_frame(frames.SERVER_KEY, frames.MAGIC + SERVER.public.raw + bytes(1000)),
        encode_frame(frames.SERVER_KEY, frames.MAGIC + bytes(32)),
        encode_frame(frames.KEEP_ALIVE),
        b"HTTP/1.1 200 OK\r\n\r\n",
        server_key_frame() + encode_frame(frames.SERVER_INFO, bytes(80)),
        server_key_frame() + encode_frame(frames.SERVER_INFO, b"short"),
        server_key_frame() + sealed_server_info(b"[]"),
        server_key_frame() + sealed_server_info(b"{"),
        server_key_frame() + sealed_server_info(b"[" * 100_000),
    ],
)
def test_a_bad_greeting_ends_the_connection(opening: bytes) -> None:
    m = new_machine()
    assert m.receive(opening, 0.0) == []
    assert m.failure
    assert m.next_timer() == math.inf
    assert m.transmit(0.0) == b""
    assert m.receive(server_key_frame(), 0.0) == []


def test_a_longer_server_key_and_unknown_frames_before_server_info_are_accepted() -> None:
    m = new_machine()
    m.receive(encode_frame(frames.SERVER_KEY, frames.MAGIC + SERVER.public.raw + b"new"), 0.0)
    m.receive(encode_frame(0x55, b"?") + sealed_server_info(b'{"version":3,"later":[1]}'), 0.0)
    assert m.greeted


def test_silence_ends_the_connection_at_the_exact_deadline() -> None:
    m = greeted_machine()
    m.receive(encode_frame(frames.KEEP_ALIVE), 60.0)
    assert m.next_timer() == 180.0
    m.handle_timer(179.9)
    assert m.failure is None
    m.handle_timer(180.0)
    assert m.failure == "the relay fell silent"


def test_a_frame_that_never_ends_does_not_count_as_life() -> None:
    m = greeted_machine()
    m.receive(encode_frame(frames.RECV_PACKET, bytes(1000))[:-1], 100.0)
    assert m.next_timer() == 120.0


def test_a_server_that_does_not_greet_is_left_after_ten_seconds() -> None:
    m = new_machine()
    m.receive(server_key_frame(), 5.0)
    assert m.next_timer() == 10.0
    m.handle_timer(10.0)
    assert m.failure


def test_ping_is_answered_and_pong_measured() -> None:
    m = greeted_machine()
    m.receive(encode_frame(frames.PING, b"12345678 and more"), 1.0)
    assert cut(m.transmit(1.0)) == [(frames.PONG, b"12345678")]
    m.ping(2.0)
    [(kind, token)] = cut(m.transmit(2.0))
    assert kind == frames.PING
    assert m.next_timer() == 5.0
    m.receive(encode_frame(frames.PONG, bytes(8)), 2.1)
    m.receive(encode_frame(frames.PONG, token), 2.25)
    assert m.take_messages() == [PongArrived(0.25)]
    assert m.drops == {machine.STRAY_PONG: 1}


def test_a_ping_without_pong_ends_the_connection() -> None:
    m = greeted_machine()
    m.ping(2.0)
    m.handle_timer(5.0)
    assert m.failure == "the relay did not answer a ping"


def test_rare_frames_become_messages() -> None:
    m = greeted_machine()
    m.receive(encode_frame(frames.PEER_GONE, PEER), 1.0)
    m.receive(encode_frame(frames.PEER_GONE, PEER + b"\xf0"), 1.0)
    m.receive(encode_frame(frames.HEALTH, b"sick \xff"), 1.0)
    m.receive(encode_frame(frames.HEALTH), 1.0)
    m.receive(encode_frame(frames.RESTARTING, b"\0\0\x03\xe8\0\0\x07\xd0"), 1.0)
    assert m.take_messages() == [
        PeerGone(PEER, frames.GONE_DISCONNECTED),
        PeerGone(PEER, frames.GONE_MESH_BROKEN),
        ServerHealth("sick \ufffd"),
        ServerHealth(""),
        ServerRestarting(1.0, 2.0),
    ]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (encode_frame(frames.PEER_GONE, bytes(31)), machine.SHORT_FRAME),
        (encode_frame(frames.PING, b"seven.."), machine.SHORT_FRAME),
        (encode_frame(frames.RESTARTING, bytes(7)), machine.SHORT_FRAME),
        (encode_frame(frames.RECV_PACKET, bytes(31)), machine.SHORT_FRAME),
        (encode_frame(frames.RECV_PACKET, PEER), machine.SHORT_FRAME),
        (encode_frame(frames.RECV_PACKET, PEER + bytes(65_537)), machine.OVERSIZED),
        (encode_frame(frames.PEER_PRESENT, PEER), machine.UNEXPECTED_FRAME),
        (encode_frame(frames.SERVER_KEY, bytes(40)), machine.UNEXPECTED_FRAME),
        (encode_frame(0xEE, b"future"), machine.UNKNOWN_FRAME),
    ],
)
def test_frames_that_make_no_sense_are_dropped_and_counted(frame: bytes, reason: str) -> None:
    m = greeted_machine()
    assert [p for _, ps in m.receive(frame + recv_frames(OTHER, b"next"), 1.0) for p in ps] == [b"next"]
    assert m.failure is None
    assert m.drops == {reason: 1}


def test_a_peer_gone_storm_is_bounded() -> None:
    m = greeted_machine()
    m.receive(encode_frame(frames.PEER_GONE, PEER) * 5000, 1.0)
    assert len(m.take_messages()) == machine.MESSAGE_LIMIT
    assert m.drops[machine.TOO_MANY_MESSAGES] == 5000 - machine.MESSAGE_LIMIT


def test_a_ping_storm_is_bounded() -> None:
    m = greeted_machine()
    m.receive(encode_frame(frames.PING, bytes(8)) * 1000, 1.0)
    assert len(cut(m.transmit(1.0))) == machine.CONTROL_LIMIT


def test_the_queue_drops_its_oldest_packets() -> None:
    m = greeted_machine()
    packet = bytes(1000 - frames.PACKET_OVERHEAD)
    count = machine.QUEUE_LIMIT // 1000
    m.send([(PEER, [b"old" + packet[3:], packet])], 0.0)
    for _ in range(count):
        m.send([(OTHER, [packet])], 0.0)
    assert m.drops == {machine.QUEUE_FULL: 2}
    assert m.queued_bytes <= machine.QUEUE_LIMIT
    sent = []
    while data := m.transmit(0.0):
        assert len(data) <= machine.BURST_LIMIT + 1000
        sent += cut(data)
    assert sent == [(frames.SEND_PACKET, OTHER + packet)] * count
    assert m.queued_bytes == 0


def test_one_enormous_run_is_trimmed_and_sent_in_bursts() -> None:
    m = greeted_machine()
    packets = [i.to_bytes(4, "big") + bytes(60_000) for i in range(50)]
    m.send([(PEER, packets)], 0.0)
    sent = b""
    while data := m.transmit(0.0):
        sent += data
    kept = [body[32:] for _, body in cut(sent)]
    assert kept == packets[-len(kept) :]
    assert len(kept) + m.drops[machine.QUEUE_FULL] == 50
    assert m.queued_bytes == 0


def test_a_packet_over_64_kib_never_goes_out() -> None:
    m = greeted_machine()
    m.send([(PEER, [bytes(65_537), b"fits"])], 0.0)
    assert cut(m.transmit(0.0)) == [(frames.SEND_PACKET, PEER + b"fits")]
    assert m.drops == {machine.OVERSIZED: 1}


def test_the_servers_rate_limit_is_kept() -> None:
    m = greeted_machine(RateLimit(100_000, 100_000))
    packet = bytes(1000 - frames.PACKET_OVERHEAD)
    m.send([(PEER, [packet] * 150)], 0.0)
    assert m.drops == {machine.RATE_LIMITED: 50}
    m.send([(PEER, [packet] * 50)], 0.25)
    assert m.drops == {machine.RATE_LIMITED: 75}


def test_the_smallest_bucket_lets_the_largest_packet_through() -> None:
    m = greeted_machine(RateLimit(1000, 1))
    m.send([(PEER, [bytes(frames.MAX_PACKET_LENGTH)])], 0.0)
    assert not m.drops


@pytest.mark.parametrize(
    "text",
    [
        b'{"TokenBucketBytesPerSecond":-1,"TokenBucketBytesBurst":5}',
        b'{"TokenBucketBytesPerSecond":1e9,"TokenBucketBytesBurst":true}',
        b'{"TokenBucketBytesPerSecond":"x","TokenBucketBytesBurst":null}',
        b'{"TokenBucketBytesPerSecond":5}',
    ],
)
def test_nonsense_rate_limits_are_ignored(text: bytes) -> None:
    m = new_machine()
    m.receive(server_key_frame() + sealed_server_info(text), 0.0)
    assert m.take_messages() == [Greeted(SERVER.public, None)]


def test_only_the_newest_preference_is_sent() -> None:
    m = greeted_machine()
    for _ in range(500):
        m.prefer(True)
        m.prefer(False)
    m.prefer(True)
    m.prefer(True)
    assert cut(m.transmit(0.0)) == [(frames.NOTE_PREFERRED, b"\1")]


def test_what_was_never_sent_can_be_carried_to_the_next_connection() -> None:
    m, successor = new_machine(), greeted_machine()
    m.send([(PEER, [b"a", b"b"])], 0.0)
    successor.send(m.take_unsent(), 1.0)
    assert [body for _, body in cut(successor.transmit(1.0))] == [PEER + b"a", PEER + b"b"]
    assert m.queued_bytes == 0


def test_timers_are_idempotent() -> None:
    m = greeted_machine()
    m.handle_timer(50.0)
    m.handle_timer(50.0)
    assert m.next_timer() == 120.0


@given(st.binary(max_size=400), st.booleans())
def test_hostile_bytes_never_raise(noise: bytes, greeted: bool) -> None:
    m = greeted_machine() if greeted else DerpMachine(CLIENT, entropy=Entropy())
    m.receive(noise, 1.0)
    m.transmit(1.0)
    m.take_messages()


def test_no_key_shows_in_a_repr() -> None:
    m = greeted_machine()
    assert CLIENT.raw.hex() not in repr(vars(m))
