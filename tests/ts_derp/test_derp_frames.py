"""The frame reader at any split, its limits, and batches as one piece."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from derp_scripts import OTHER, PEER, cut
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_derp import frames
from ts_derp.frames import FrameReader, FrameRun, encode_frame, encode_packets

VECTORS = Path(__file__).parents[1] / "vectors" / "derp.json"

keys = st.sampled_from([PEER, OTHER, bytes(32), b"\xff" * 32])
packets = st.tuples(st.just(frames.RECV_PACKET), st.builds(bytes.__add__, keys, st.binary(max_size=40)))
others = st.tuples(st.integers(0, 255), st.binary(max_size=40))
streams = st.lists(st.one_of(packets, others), max_size=30)


def flatten(runs: list[FrameRun]) -> list[tuple[int, bytes]]:
    return [(kind, key + body) for kind, key, bodies in runs for body in bodies]


@given(streams)
def test_reader_agrees_with_the_slow_cutter(stream: list[tuple[int, bytes]]) -> None:
    wire = b"".join(encode_frame(kind, body) for kind, body in stream)
    assert flatten(FrameReader(frames.RECV_PACKET).feed(wire)) == cut(wire) == stream


@given(streams, st.lists(st.integers(1, 60), max_size=40))
def test_reader_gives_the_same_frames_however_the_stream_is_split(
    stream: list[tuple[int, bytes]], sizes: list[int]
) -> None:
    wire = b"".join(encode_frame(kind, body) for kind, body in stream)
    reader, found, at = FrameReader(frames.RECV_PACKET), [], 0
    for size in [*sizes, len(wire)]:
        found += flatten(reader.feed(wire[at : at + size]))
        at += size
    assert found == stream


def test_reader_byte_by_byte_equals_all_at_once() -> None:
    wire = encode_packets(frames.RECV_PACKET, [(PEER, [b"one", b"two", b"three"]), (OTHER, [b"four"])])
    reader = FrameReader(frames.RECV_PACKET)
    assert flatten([run for i in range(len(wire)) for run in reader.feed(wire[i : i + 1])]) == cut(wire)


def test_reader_joins_consecutive_packets_of_one_source_into_one_run() -> None:
    wire = encode_packets(frames.RECV_PACKET, [(PEER, [b"a" * 9, b"b" * 9, b"c" * 5]), (OTHER, [b"d"]), (PEER, [b"e"])])
    wire += encode_frame(frames.KEEP_ALIVE) + encode_packets(frames.RECV_PACKET, [(PEER, [b"f"])])
    assert FrameReader(frames.RECV_PACKET).feed(wire) == [
        (frames.RECV_PACKET, PEER, [b"a" * 9, b"b" * 9, b"c" * 5]),
        (frames.RECV_PACKET, OTHER, [b"d"]),
        (frames.RECV_PACKET, PEER, [b"e"]),
        (frames.KEEP_ALIVE, b"", [b""]),
        (frames.RECV_PACKET, PEER, [b"f"]),
    ]


def test_reader_hands_a_packet_frame_without_room_for_a_key_over_whole() -> None:
    wire = encode_frame(frames.RECV_PACKET, bytes(31))
    assert FrameReader(frames.RECV_PACKET).feed(wire) == [(frames.RECV_PACKET, b"", [bytes(31)])]


@pytest.mark.parametrize("opening", [b"\xff" * 37, b"\x05\xff\xff\xff\xff", frames.HEADER.pack(0x77, (1 << 20) + 1)])
def test_reader_refuses_a_frame_over_the_limit_before_it_comes(opening: bytes) -> None:
    with pytest.raises(BadPacket):
        FrameReader(frames.RECV_PACKET).feed(opening)
    reader = FrameReader(frames.RECV_PACKET)
    with pytest.raises(BadPacket):
        for i in range(len(opening)):
            reader.feed(opening[i : i + 1])


def test_reader_takes_a_frame_exactly_at_the_limit() -> None:
    wire = encode_frame(0x77, bytes(1 << 20))
    assert FrameReader(frames.RECV_PACKET).feed(wire) == [(0x77, b"", [bytes(1 << 20)])]


def test_a_large_frame_that_drips_in_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 MiB in 16-byte drops: 65,536 feeds. Quadratic copying would move 32 GiB and outlast the test's timeout.
    wire = encode_frame(0x77, bytes(1 << 20))
    reader, found = FrameReader(frames.RECV_PACKET), 0
    for at in range(0, len(wire), 16):
        found += len(reader.feed(wire[at : at + 16]))
    assert found == 1


@given(st.binary(max_size=300), st.integers(0, 64))
def test_reader_raises_only_bad_packet(noise: bytes, limit: int) -> None:
    with contextlib.suppress(BadPacket):
        FrameReader(frames.RECV_PACKET, limit).feed(noise)


@pytest.mark.skipif(not VECTORS.exists(), reason="vectors/derp.json is not there")
def test_frames_agree_with_go() -> None:
    vectors = json.loads(VECTORS.read_text())
    assert vectors
