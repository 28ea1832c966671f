"""Any bytes as a file of exits: a pool that may be written again, or BadPacket."""

from __future__ import annotations

from ts_base.errors import BadPacket
from ts_proxy.sticky import decode_pool_untrusted, encode_pool


def fuzz_one(data: bytes) -> None:
    try:
        fingerprint, keys = decode_pool_untrusted(data)
    except BadPacket:
        return
    assert decode_pool_untrusted(encode_pool(fingerprint, keys)) == (fingerprint, keys)


def seeds() -> list[bytes]:
    return [encode_pool("0123456789abcdef", ["nodeOne", "nodeTwo"]), encode_pool("", []), b'{"version": 2}']
