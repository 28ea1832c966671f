"""What is said of files between two nodes: `/v0/put/` of the peer API, as upstream's feature/taildrop has it.

Owns paths, ranges and the hashes by which a broken transfer is resumed. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import msgspec

from ts_base.errors import BadPacket

PATH = "/v0/put/"
SENDING_GRANTED = "https://tailscale.com/cap/file-send"
TARGET_GRANTED = "https://tailscale.com/cap/file-sharing-target"
SHARING_ENABLED = "https://tailscale.com/cap/file-sharing"
WITHOUT_FILES = "tvOS"  # a system whose nodes take none
BLOCK = 1 << 16
LARGEST = 1 << 62
LONGEST_LINE = 512
_OFFSET = re.compile(r"bytes=([0-9]{1,19})-")
_LENGTH = re.compile(r"[0-9]{1,19}")


class Block(NamedTuple):
    """A stretch of what the receiver has, from where the last one ended."""

    digest: bytes
    size: int


class _Line(msgspec.Struct):
    """A Block in JSON."""

    checksum: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{64}\Z")]
    algo: str
    size: Annotated[int, msgspec.Meta(ge=0, le=BLOCK)]


_lines = msgspec.json.Decoder(_Line)


def decode_offset_untrusted(text: str) -> int:
    """The first byte that a PUT brings, from its Range: one range without an end. 0 without a Range."""
    if not text:
        return 0
    found = _OFFSET.fullmatch(text.strip())
    if found is None or int(found[1]) > LARGEST:
        raise BadPacket("a Range other than bytes=N-")
    return int(found[1])


def decode_length_untrusted(text: str) -> int | None:
    """How many bytes a body has; None where that is not known before its end."""
    if not text:
        return None
    if not _LENGTH.fullmatch(text) or int(text) > LARGEST:
        raise BadPacket("a Content-Length that no file has")
    return int(text)


def encode_block(data: bytes | memoryview) -> bytes:
    """The line that tells of a block."""
    digest = hashlib.sha256(data).hexdigest()
    return b'{"checksum":"%s","algo":"sha256","size":%d}\n' % (digest.encode(), len(data))


def decode_block_untrusted(line: bytes) -> Block:
    """A block from its line."""
    try:
        told = _lines.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise BadPacket("what came as the hash of a block is none") from None
    if told.algo != "sha256":
        raise BadPacket("the hash of a block is not SHA-256")
    return Block(bytes.fromhex(told.checksum), told.size)


class Blocks:
    """Takes the answer to a question for hashes as it comes, and yields those that are whole."""

    def __init__(self) -> None:
        self._line = b""

    def receive_untrusted(self, data: bytes) -> Iterator[Block]:
        """BadPacket for what is none; the blocks before it were yielded."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            if line.strip():
                yield decode_block_untrusted(line)
        if len(self._line) > LONGEST_LINE:
            raise BadPacket("the hash of a block is longer than any")
