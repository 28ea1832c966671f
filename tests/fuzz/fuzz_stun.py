"""Anything as a STUN answer or request."""

from __future__ import annotations

from ts_base.errors import BadPacket
from ts_dataplane import stun


def fuzz_one(data: bytes) -> None:
    for decode in (stun.decode_response_untrusted, stun.decode_request_untrusted):
        try:
            decode(data)
        except BadPacket:
            pass
        else:
            assert stun.is_stun(data)


def seeds() -> list[bytes]:
    transaction = bytes(range(12))
    answers = [stun.encode_response(transaction, where) for where in (("192.0.2.7", 41641), ("2001:db8::7", 1))]
    return [stun.encode_request(transaction), *answers]
