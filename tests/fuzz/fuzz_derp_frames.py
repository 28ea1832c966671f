"""The relay's frame reader: any bytes, cut anywhere, give the same frames or BadPacket."""

from __future__ import annotations

from ts_base.errors import BadPacket
from ts_derp import frames
from ts_derp.frames import FrameReader, FrameRun, encode_frame, encode_packets


def _flatten(runs: list[FrameRun]) -> list[tuple[int, bytes]]:
    return [(kind, key + body) for kind, key, bodies in runs for body in bodies]


def _read(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], bool]:
    reader, found = FrameReader(frames.RECV_PACKET, 4096), []
    for piece in pieces:
        try:
            found += _flatten(reader.feed(piece))
        except BadPacket:
            return found, True
    return found, False


def fuzz_one(data: bytes) -> None:
    step = data[0] % 64 + 1 if data else 1
    whole, whole_bad = _read([data])
    pieces, pieces_bad = _read([data[i : i + step] for i in range(0, len(data), step)])
    # A bad frame spoils what came with it in one read, so the slow reader may have seen more, never less or else.
    assert pieces_bad == whole_bad
    assert pieces[: len(whole)] == whole
    if not whole_bad:
        assert pieces == whole
        encoded = b"".join(encode_frame(kind, body) for kind, body in whole)
        assert data.startswith(encoded)


def seeds() -> list[bytes]:
    key = bytes(range(32))
    return [
        b"",
        encode_frame(frames.KEEP_ALIVE),
        encode_packets(frames.RECV_PACKET, [(key, [b"abc", b"def", b"g"]), (key[::-1], [b"h"])]),
        encode_frame(frames.RECV_PACKET, key[:31]) + encode_frame(frames.PING, bytes(8)),
        frames.HEADER.pack(0x05, 1 << 31),
        b"\xff" * 64,
    ]
