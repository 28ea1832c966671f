"""Anything as a frame of a session, text or binary, and its payload as what somebody may ask for."""

from __future__ import annotations

from typing import Any

import msgspec

from ts_base.errors import BadPacket
from ts_mesh.envelope import (
    DEEPEST,
    NAMESPACE,
    Envelope,
    decode_binary_untrusted,
    decode_payload,
    decode_text_untrusted,
    encode_envelope,
)
from ts_mesh.slices import SliceMessage, decode_own_untrusted

DECODERS = [None, msgspec.json.Decoder(dict), msgspec.json.Decoder(bytes), msgspec.json.Decoder(SliceMessage)]


def fuzz_one(data: bytes) -> None:
    decode_own_untrusted(data)
    for decode, frame in (
        (decode_text_untrusted, data),
        (decode_text_untrusted, data.decode("utf-8", "surrogateescape")),
        (decode_binary_untrusted, data),
    ):
        try:
            envelope = decode(frame)  # type: ignore[operator]
        except BadPacket:
            continue
        assert NAMESPACE.fullmatch(envelope.namespace)
        for decoder in DECODERS:
            try:
                payload = decode_payload(envelope, decoder)
            except BadPacket:
                continue
            assert depth(payload) <= DEEPEST
        again = encode_envelope(envelope, binary=True)
        kept = decode_text_untrusted(again) if isinstance(again, str) else decode_binary_untrusted(again)
        assert (kept.namespace, kept.n, kept.re, kept.raw) == (
            envelope.namespace,
            envelope.n,
            envelope.re,
            envelope.raw,
        )


def depth(value: Any) -> int:
    level, found = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        found += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return found


def seeds() -> list[bytes]:
    frames = [
        encode_envelope(Envelope("chat", "message", msgspec.Raw(b'{"text":[1,2.5,"x",null]}'), 1, 7), binary=True),
        encode_envelope(Envelope("chat", "bytes", timestamp=1, n=8, ask=True, raw=b"hello"), binary=True),
        encode_envelope(Envelope("ft", "bytes", re=3, raw=b"hello"), binary=False),
        '{"namespace":"_","msg_type":"ack","payload":{"n":5,"took":{"chat":3},"held":[4]}}',
        '{"namespace":"ss:x","msg_type":"update","payload":{"device_id":"d","data":{},"version":1,"updated_at":2}}',
    ]
    return [frame.encode() if isinstance(frame, str) else frame for frame in frames]
