"""One message on the wire: Truffle's envelope, and three keys that number, answer and ask.

A text frame is JSON, `{"namespace", "msg_type", "payload", "timestamp", "n", "re", "ask"}`. A message of bytes is a
binary frame, `u32be length of the header | header | bytes`, or base64 in JSON towards peers without the feature `bin`.
The payload stays as it came until somebody says which type it has. Refuses to know what a number means.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import msgspec

from ts_base.errors import BadPacket
from ts_mesh.hello import Number
from ts_mesh.limits import LARGEST_FRAME, LARGEST_HEADER

NAMESPACE = re.compile(r"[a-z0-9._:-]{1,64}")
LONGEST_KIND = 64
DEEPEST = 64  # arrays and objects inside each other
LENGTH = 4
OURS = "_"  # the namespace of acks and the like
FILES = "_f"
FOREIGN_FILES = "ft"  # where Truffle speaks of files
MESSAGE, BYTES, REPLY, ERROR = "message", "bytes", "reply", "error"

LATEST = (1 << 64) - 1  # milliseconds, as a u64 has it
NULL = msgspec.Raw(b"null")


class Envelope(msgspec.Struct, omit_defaults=True, gc=False):
    """One message. `payload` is JSON text, or None where `raw` holds bytes."""

    namespace: str
    msg_type: str
    payload: msgspec.Raw | None = None
    timestamp: int | None = None
    n: Number = 0
    re: Number = 0
    ask: bool = False
    raw: bytes | None = None

    @property
    def size(self) -> int:
        """What it counts as against limits of bytes."""
        return len(self.raw) if self.raw is not None else len(self.payload or b"")


class _Text(msgspec.Struct):
    """What is read of a text frame. Unknown keys are left alone; of a key given twice the last counts."""

    namespace: str
    msg_type: str
    payload: msgspec.Raw = NULL
    timestamp: int | None = None
    n: Number = 0
    re: Number = 0
    ask: bool = False


class _Header(msgspec.Struct):
    """What is read of the header of a binary frame."""

    namespace: str
    msg_type: str
    timestamp: int | None = None
    n: Number = 0
    re: Number = 0
    ask: bool = False


class _Base64(msgspec.Struct, forbid_unknown_fields=True):
    encoding: str
    data: str


_text = msgspec.json.Decoder(_Text)
_header = msgspec.json.Decoder(_Header)
_base64 = msgspec.json.Decoder(_Base64)
_encoder = msgspec.json.Encoder()


def encode_envelope(envelope: Envelope, *, binary: bool) -> str | bytes:
    """A text frame, or a binary one: bytes only where the peer reads them."""
    if envelope.raw is None:
        return _encoder.encode(envelope).decode()
    header = Envelope(
        envelope.namespace,
        envelope.msg_type,
        timestamp=envelope.timestamp,
        n=envelope.n,
        re=envelope.re,
        ask=envelope.ask,
    )
    if not binary:
        data = base64.b64encode(envelope.raw).decode()
        header.payload = msgspec.Raw(_encoder.encode({"encoding": "base64", "data": data}))
        return _encoder.encode(header).decode()
    text = _encoder.encode(header)
    return b"".join((len(text).to_bytes(LENGTH, "big"), text, envelope.raw))


def decode_text_untrusted(text: str | bytes) -> Envelope:
    """The envelope of a text frame. Raises BadPacket."""
    if len(text) > LARGEST_FRAME:
        raise BadPacket(f"an envelope has at most {LARGEST_FRAME} bytes")
    try:
        # The payload is only skipped over here: what it holds is text only if all of the frame is.
        read = _text.decode(text.decode() if isinstance(text, bytes) else text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        raise BadPacket(f"no envelope: {problem}") from None
    payload = bytes(read.payload)  # copied: the piece would keep the whole frame alive
    if payload.count(b"{") + payload.count(b"[") > DEEPEST:
        _check_depth(payload)
    if read.msg_type == BYTES:
        raw = _bytes_within(read.payload)
        envelope = Envelope(read.namespace, BYTES, None, read.timestamp, read.n, read.re, read.ask, raw)
    else:
        kept = msgspec.Raw(payload)
        envelope = Envelope(read.namespace, read.msg_type, kept, read.timestamp, read.n, read.re, read.ask)
    return _checked(envelope)


def decode_binary_untrusted(data: bytes) -> Envelope:
    """The envelope of a binary frame. Raises BadPacket."""
    if len(data) > LARGEST_FRAME or len(data) < LENGTH:
        raise BadPacket("a binary frame is too long, or ends before its header begins")
    length = int.from_bytes(data[:LENGTH], "big")
    if length > LARGEST_HEADER or LENGTH + length > len(data):
        raise BadPacket(f"the header of a binary frame has at most {LARGEST_HEADER} bytes, and fits into it")
    try:
        read = _header.decode(data[LENGTH : LENGTH + length])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        raise BadPacket(f"no envelope: {problem}") from None
    raw = bytes(data[LENGTH + length :])
    return _checked(Envelope(read.namespace, read.msg_type, None, read.timestamp, read.n, read.re, read.ask, raw))


def decode_payload(envelope: Envelope, decoder: msgspec.json.Decoder[Any] | None) -> Any:
    """The payload as the decoder's type, or as it is where any will do. Raises BadPacket where it does not fit."""
    if envelope.raw is not None:
        if decoder is None or decoder.type in (bytes, Any):
            return envelope.raw
        raise BadPacket(f"bytes, not {getattr(decoder.type, '__name__', decoder.type)}")
    try:
        payload = envelope.payload or NULL
        return decoder.decode(payload) if decoder is not None else msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, TypeError) as problem:
        raise BadPacket(str(problem)) from None


def is_namespace(name: str) -> bool:
    """Whether a program may use this name. Those that begin with an underscore are the protocol's own."""
    return NAMESPACE.fullmatch(name) is not None and not name.startswith(OURS)


def _checked(envelope: Envelope) -> Envelope:
    if not NAMESPACE.fullmatch(envelope.namespace):
        raise BadPacket("a namespace is 1 to 64 of a-z, 0-9, dot, underscore, colon and dash")
    if not 0 < len(envelope.msg_type) <= LONGEST_KIND:
        raise BadPacket(f"a msg_type has 1 to {LONGEST_KIND} characters")
    if envelope.timestamp is not None and not 0 <= envelope.timestamp <= LATEST:
        raise BadPacket("a timestamp is a number of 64 bits")
    if envelope.re and envelope.ask:
        raise BadPacket("a message answers or asks, not both")
    return envelope


def _bytes_within(payload: msgspec.Raw) -> bytes:
    """What Truffle's `bytes` messages wrap."""
    try:
        wrapped = _base64.decode(payload)
        if wrapped.encoding != "base64":
            raise BadPacket("bytes in an encoding that is not base64")
        return base64.b64decode(wrapped.data, validate=True)
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError) as problem:
        raise BadPacket(f"no bytes: {problem}") from None


def _check_depth(payload: bytes) -> None:
    """Brackets were counted first, so only a message with many pays for this walk."""
    try:
        level = [msgspec.json.decode(payload)]
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        raise BadPacket(f"no envelope: {problem}") from None
    for _ in range(DEEPEST + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    raise BadPacket(f"more than {DEEPEST} arrays and objects inside each other")
