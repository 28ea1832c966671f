"""Map frames at any split, against what upstream wrote; lengths and bombs refused before they cost anything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_control.framing import MAX_FRAME, FrameReader, decompress_untrusted, encode_frame
from ts_control.gojson import decode_json_untrusted
from ts_control.netmap import NetMap
from ts_control.wire import MapResponse

RESPONSES = json.loads((Path(__file__).parents[1] / "vectors" / "mapresponse.json").read_text())["responses"]


def read(reader: FrameReader, data: bytes) -> list[bytes]:
    reader.receive(data)
    texts: list[bytes] = []
    while (text := reader.next_frame_untrusted()) is not None:
        texts.append(text)
    return texts


def test_upstreams_frames_are_read_and_mean_what_they_say() -> None:
    reader = FrameReader(compressed=True)
    netmap = NetMap.empty()
    for response in RESPONSES:
        (text,) = read(reader, bytes.fromhex(response["framed"]))
        assert json.loads(text) == response["json"]
        netmap = netmap.apply(decode_json_untrusted(MapResponse, text), 1_767_323_045.0)
    assert netmap.domain == "rig.test"


@settings(max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.booleans(), st.data())
def test_any_split_reads_the_same(texts: list[bytes], compressed: bool, data: st.DataObject) -> None:
    wire = b"".join(encode_frame(text, compressed=compressed) for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    reader = FrameReader(compressed=compressed)
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        found += read(reader, wire[start:end])
    assert found == texts


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 2**32 - 1])
def test_impossible_lengths_are_refused_before_a_byte_is_kept(length: int) -> None:
    with pytest.raises(BadPacket):
        read(FrameReader(compressed=False), length.to_bytes(4, "little"))


def test_what_came_before_a_bad_frame_is_read_first() -> None:
    reader = FrameReader(compressed=False)
    reader.receive(b"\x02\0\0\0{}" + bytes(4))
    assert reader.next_frame_untrusted() == b"{}"
    with pytest.raises(BadPacket):
        reader.next_frame_untrusted()


def test_a_bomb_is_refused_at_the_limit() -> None:
    bomb = zstd.compress(bytes(50 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(BadPacket, match="grows"):
        decompress_untrusted(bomb, 1 << 20)


def test_text_that_grows_like_no_map_is_refused() -> None:
    small = zstd.compress(b"{}," * (1 << 20))
    assert len(decompress_untrusted(small)) == 3 << 20  # too little to matter
    with pytest.raises(BadPacket, match="grows"):
        decompress_untrusted(zstd.compress(b"{}," * (8 << 20)))
    noise = os.urandom(1 << 20)
    assert decompress_untrusted(zstd.compress(noise * 16)) == noise * 16


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"{}",
        zstd.compress(b"hello")[:-1],
        zstd.compress(b"hello") + b"!",
        zstd.compress(b"a") + zstd.compress(b"b"),
    ],
    ids=["empty", "plain", "cut", "trailing", "two"],
)
def test_damaged_compression_raises_bad_packet(frame: bytes) -> None:
    with pytest.raises(BadPacket):
        decompress_untrusted(frame)


def test_incompressible_text_survives() -> None:
    text = os.urandom(100_000)
    assert read(FrameReader(compressed=True), encode_frame(text, compressed=True)) == [text]


def test_a_keep_alive_is_a_message() -> None:
    assert decode_json_untrusted(MapResponse, b'{"KeepAlive":true}') == MapResponse(keep_alive=True)
