"""Fuzz target: the three handshake message decoders, and the Noise reader behind the first of them."""

from __future__ import annotations

from contextlib import suppress

from ts_base.errors import BadPacket
from ts_tunnel import wire
from ts_tunnel.handshake import read_initiation_untrusted

_STATIC = bytes(range(32))


def fuzz_one(data: bytes) -> None:
    wire.kind_of(data)
    for decode in (
        wire.decode_initiation_untrusted,
        wire.decode_response_untrusted,
        wire.decode_cookie_reply_untrusted,
    ):
        try:
            decoded = decode(data)
        except BadPacket:
            continue
        assert all(isinstance(part, int | bytes) for part in decoded)
    with suppress(BadPacket):
        read_initiation_untrusted(_STATIC, data)


def seeds() -> list[bytes]:
    return [
        wire.encode_initiation(1, bytes(108)) + bytes(32),
        wire.encode_response(1, 2, bytes(48)) + bytes(32),
        wire.encode_cookie_reply(1, bytes(24), bytes(32)),
        wire.transport_prefix(1) + bytes(24),
        b"",
    ]
