"""PROXY headers of both versions, whole and in pieces: the same header, more bytes wanted, or BadPacket."""

from __future__ import annotations

from ts_base.errors import BadPacket
from ts_base.ip import maybe_address
from ts_proxy.proxy_header import (
    LONGEST_LINE,
    LONGEST_REST,
    SIGNATURE,
    VERSIONS,
    ProxyHeader,
    decode_proxy_header_untrusted,
    encode_proxy_header,
)

LONGEST = max(LONGEST_LINE, 16 + LONGEST_REST)


def fuzz_one(data: bytes) -> None:
    whole = _decoded(data)
    assert whole is not None or len(data) < LONGEST
    if isinstance(whole, ProxyHeader):
        assert 0 < whole.length <= len(data)
        if whole.source is not None:
            assert maybe_address(whole.source[0]) is not None
            assert 0 <= whole.source[1] < 65536
            for version in VERSIONS:  # what we believe of others, others believe of us
                written = encode_proxy_header(version, whole.source, whole.source)
                assert _decoded(written) == ProxyHeader(whole.source, len(written))
        assert _decoded(data[: whole.length]) == whole
        assert _decoded(data[: whole.length - 1]) is None


def _decoded(data: bytes) -> ProxyHeader | BadPacket | None:
    try:
        return decode_proxy_header_untrusted(data)
    except BadPacket as problem:
        return problem


def seeds() -> list[bytes]:
    return [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nGET / HTTP/1.1\r\n",
        b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n",
        b"PROXY UNKNOWN\r\n",
        SIGNATURE + b"\x21\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\0\7\0\x50\5\1\0",
        SIGNATURE + b"\x21\x21\0\x28" + bytes(15) + b"\1" + bytes(15) + b"\2\0\1\0\2\x04\0\1x",
        SIGNATURE + b"\x20\x00\0\0",
    ]
