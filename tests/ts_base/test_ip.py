"""Addresses without objects, against the standard library's objects."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base import ip
from ts_base.errors import BadPacket

ADDRESSES = st.ip_addresses()


@given(ADDRESSES)
def test_address_text_agrees_with_the_standard_library(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    raw = ip.parse_address(str(address))
    mapped = getattr(address, "ipv4_mapped", None)
    assert raw == (mapped or address).packed
    assert ipaddress.ip_address(ip.format_address(raw)) == (mapped or address)
    assert ip.maybe_address(str(address)) == raw


@pytest.mark.parametrize("text", ["", "db", "1.2.3", "1.2.3.4:80", "[fd7a::1]", "fe80::1%eth0"])
def test_what_is_no_address_may_be_a_name(text: str) -> None:
    assert ip.maybe_address(text) is None


@given(ADDRESSES, st.integers(0, 128))
def test_prefixes_agree_with_the_standard_library(address: ipaddress.IPv4Address, length: int) -> None:
    length %= address.max_prefixlen + 1
    network = ipaddress.ip_network((address, length), strict=False)
    if getattr(network.network_address, "ipv4_mapped", None):
        return
    prefix = ip.parse_prefix(str(network))
    assert prefix == (network.network_address.packed, length)
    assert ip.prefix_contains(prefix, address.packed)
    assert ip.format_prefix(prefix) == str(network)


@pytest.mark.parametrize(
    "text", ["", "1.2.3", "1.2.3.4/33", "1.2.3.4/-1", "10.0.0.1/8", "fe80::1%eth0", "::/129", "a/8", "1.2.3.4/ 8"]
)
def test_bad_prefix_is_a_bad_packet(text: str) -> None:
    with pytest.raises(BadPacket):
        ip.parse_prefix(text)


@given(st.binary(max_size=200))
def test_checksum_makes_the_whole_sum_to_zero(data: bytes) -> None:
    if len(data) % 2:
        data += b"\0"
    field = ip.checksum(data)
    words = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)) + field
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    assert words in (0, 0xFFFF)


def test_tailscale_ranges() -> None:
    for text, inside in (
        ("100.64.0.1", True),
        ("100.127.255.255", True),
        ("100.128.0.0", False),
        ("fd7a:115c:a1e0::1", True),
    ):
        assert ip.is_tailscale_address(ip.parse_address(text)) is inside
    assert ip.format_address(ip.SERVICE_IP4) == "100.100.100.100"
    assert ip.format_address(ip.SERVICE_IP6) == "fd7a:115c:a1e0::53"
