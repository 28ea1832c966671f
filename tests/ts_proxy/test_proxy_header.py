"""PROXY headers as we write them: the examples of the HAProxy specification, and read back by our own reader."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_proxy.proxy_header import (
    LONGEST_LINE,
    SIGNATURE,
    ProxyHeader,
    decode_proxy_header_untrusted,
    encode_proxy_header,
)

PORTS = st.integers(0, 65535)
V4 = st.tuples(st.ip_addresses(v=4).map(str), PORTS)
V6 = st.tuples(st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None).map(str), PORTS)


def test_version_1_is_the_line_of_the_specification() -> None:
    line = encode_proxy_header(1, ("192.168.0.1", 56324), ("192.168.0.11", 443))
    assert line == b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"  # section 2.1, the example of a client
    worst = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    assert len(encode_proxy_header(1, (worst, 65535), (worst, 65535))) == 104  # section 2.1, the longest of TCP6
    assert LONGEST_LINE == 107


def test_version_2_is_the_block_of_the_specification() -> None:
    block = encode_proxy_header(2, ("192.0.2.1", 56324), ("192.0.2.2", 443))
    assert block == SIGNATURE + bytes.fromhex("21 11 000c c0000201 c0000202 dc04 01bb")  # section 2.2
    block = encode_proxy_header(2, ("2001:db8::1", 1), ("2001:db8::2", 65535))
    addresses = bytes.fromhex("20010db8000000000000000000000001 20010db8000000000000000000000002")
    assert block == SIGNATURE + bytes.fromhex("21 21 0024") + addresses + bytes.fromhex("0001 ffff")


@pytest.mark.parametrize("version", [1, 2])
@settings(max_examples=30)
@given(ends=st.one_of(st.tuples(V4, V4), st.tuples(V6, V6)), behind=st.binary(max_size=8))
def test_what_is_written_is_read_back(
    version: int, ends: tuple[tuple[str, int], tuple[str, int]], behind: bytes
) -> None:
    header = encode_proxy_header(version, *ends)
    assert decode_proxy_header_untrusted(header + behind) == ProxyHeader(ends[0], len(header))
    assert decode_proxy_header_untrusted(header[:-1]) is None
