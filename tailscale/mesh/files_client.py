"""What the two ends of a mesh say about files in HTTP: roots in trailers, and answers in JSON. Pure."""

from __future__ import annotations

import msgspec

from ts_mesh.blocks import HASH

ERROR_LIMIT = 256 << 10  # of an answer that says what is wrong: a list of blocks may be long
LAST_CHUNK = b"0\r\n"
ROOT = b"mesh-root"


class FileAnswer(msgspec.Struct):
    """What became of one of several files."""

    status: int
    why: str = ""


class Answer(msgspec.Struct):
    """What the serving side says in JSON."""

    root: str = ""
    name: str = ""
    why: str = ""
    blocks: list[int] = []
    files: list[FileAnswer] = []
    """Of a PUT that brought several, one for each."""


_answers = msgspec.json.Decoder(Answer)


def decode_answer(text: bytes) -> Answer:
    """An empty one for what is none: plain text from whatever stands between."""
    try:
        return _answers.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Answer()


def encode_last_chunk(root: bytes | None) -> bytes:
    """The end of a chunked body, with the root of the whole file where this part completes it. RFC 9112, 7.1.2."""
    trailer = b"Mesh-Root: %s\r\n" % root.hex().encode() if root is not None else b""
    return b"%s%s\r\n" % (LAST_CHUNK, trailer)


def root_in(headers: dict[bytes, bytes], name: bytes = ROOT) -> bytes | None:
    """A root that came in a header or trailer; None for none, or for what is none."""
    return decode_root(headers.get(name, b"").decode("latin-1"))


def decode_root(text: str) -> bytes | None:
    """From its 64 digits, in quotes or bare."""
    try:
        root = bytes.fromhex(text.strip(' "'))
    except ValueError:
        return None
    return root if len(root) == HASH else None
