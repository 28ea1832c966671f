"""Map messages inside the response body: a little-endian length, then JSON, compressed or not.

Owns: the frame, zstd with a bound on what it may become, and the limits. Refuses to know what the JSON says.
"""

from __future__ import annotations

import sys
from struct import Struct

from ts_base.errors import BadPacket

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_LENGTH = Struct("<I")
MAX_FRAME = 64 << 20  # 10,000 peers make 10 MB uncompressed
MAX_DECODED = 128 << 20
MAX_RATIO = 100  # what text with random keys in it becomes is five to ten times as long; rules alone, perhaps fifty
FREE_GROWTH = 4 << 20  # ... of which this much needs no proof: small messages of great repetition are lawful
MAX_WINDOW_LOG = 27  # zstd's own default: 128 MiB
COMPRESSION_LEVEL = 1


class FrameReader:
    """The body of one map stream, fed at any split, to whole JSON texts, one at a time."""

    def __init__(self, *, compressed: bool) -> None:
        self._compressed = compressed
        self._buffer = bytearray()

    def receive(self, data: bytes) -> None:
        self._buffer += data

    @property
    def is_inside_frame(self) -> bool:
        """Whether a message has begun and not ended; to be asked when `next_frame_untrusted` had none."""
        return bool(self._buffer)

    def next_frame_untrusted(self) -> bytes | None:
        """The next text, or None when more bytes are needed. BadPacket ends the stream: nothing says what follows."""
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        length = _LENGTH.unpack_from(buffer)[0]
        if not 0 < length <= MAX_FRAME:
            raise BadPacket(f"map frame of {length} bytes")
        end = _LENGTH.size + length
        if len(buffer) < end:
            return None
        body = bytes(buffer[_LENGTH.size : end])
        del buffer[:end]
        return decompress_untrusted(body) if self._compressed else body


def encode_frame(text: bytes, *, compressed: bool) -> bytes:
    body = zstd.compress(text, COMPRESSION_LEVEL) if compressed else text
    return _LENGTH.pack(len(body)) + body


def decompress_untrusted(data: bytes, limit: int = MAX_DECODED) -> bytes:
    """One whole zstd frame; BadPacket when it is damaged, cut, followed by something, or grows beyond reason."""
    limit = min(limit, FREE_GROWTH + MAX_RATIO * len(data))
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG})
    try:
        text = decompressor.decompress(data, max_length=limit + 1)
    except zstd.ZstdError:
        raise BadPacket("map frame is not zstd") from None
    if len(text) > limit:
        raise BadPacket(f"map frame grows beyond {limit} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise BadPacket("map frame is not one whole zstd frame")
    return text
