"""What the packet filter and the stack must read alike is read in one place; here both are asked."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ts_base.ip import (
    UDP,
    is_link_local,
    is_loopback,
    is_martian_source,
    is_multicast,
    is_private,
    ones_complement_sum,
)
from ts_base.ip_headers import IP4_HEADER, ip_packet
from ts_dataplane import packets
from ts_dataplane.claims import PeerRoutes
from ts_dataplane.filter import Rule, run_through
from ts_dataplane.tables import compile_tables_steps
from ts_netstack.ports import FIRST_PORT, LAST_PORT, free_port
from ts_netstack.stack import Stack
from ts_netstack.wire import Unroutable, parse_packet_untrusted

US, US6 = bytes([100, 64, 0, 1]), bytes.fromhex("fd7a115ca1e0") + bytes(9) + b"\1"
EXIT = PeerRoutes(7, ("100.64.0.7/32",), ("100.64.0.7/32", "0.0.0.0/0", "::/0"))

octets4 = st.binary(min_size=4, max_size=4)
# Addresses near every boundary: random ones, and a known first part in front of random bytes.
STEMS = [
    bytes(12),
    bytes(10) + b"\xff\xff",
    b"\xff",
    b"\xfe\x80",
    b"\xfc",
    b"\xfd",
    b"\x20\x01",
    bytes(15),
    b"\xfe\xc0",
]
octets6 = st.one_of(
    st.binary(min_size=16, max_size=16),
    st.builds(lambda stem, rest: (stem + rest)[:16], st.sampled_from(STEMS), st.binary(min_size=16, max_size=16)),
)
addresses = st.one_of(octets4, octets6)


@given(addresses)
@example(bytes(16))
@example(bytes(15) + b"\1")
@example(bytes([172, 31, 255, 255]))
@example(bytes([172, 32, 0, 0]))
@example(bytes([169, 254, 169, 254]))
def test_kinds_of_addresses_are_those_of_the_standard_library(address):
    said = ipaddress.ip_address(address)
    networks = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16") if len(address) == 4 else ("fc00::/7",)
    if getattr(said, "ipv4_mapped", None) is not None:  # newer libraries look through the clothes
        assert is_martian_source(address)
        return
    assert is_multicast(address) == said.is_multicast
    assert is_link_local(address) == said.is_link_local
    assert is_private(address) == any(said in ipaddress.ip_network(one) for one in networks)
    assert is_loopback(address) == said.is_loopback
    if said.is_unspecified or said.is_loopback or said.is_multicast:
        assert is_martian_source(address)


@given(addresses)
@example(bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 1]))  # IPv4 in IPv6 clothes
@example(bytes(12) + bytes([10, 0, 0, 1]))
@example(bytes([240, 0, 0, 1]))
def test_filter_and_stack_refuse_the_same_sources(source):
    """An exit node may speak for every address but those nobody may have."""
    tables = run_through(
        compile_tables_steps(
            own=("100.64.0.1", "fd7a:115c:a1e0::1"),
            peers=(EXIT,),
            rules=(Rule(("*",), (("*", 0, 65535),)),),
            exit_node=7,
            accept_routes=True,
        )
    )
    stack = Stack(entropy=random.Random(1).randbytes)
    stack.set_addresses([US, US6], 0.0)
    destination = US if len(source) == 4 else US6
    stack.receive([((7, True), [ip_packet(source, destination, UDP, bytes(8))])], 0.0)
    assert (stack.drops["ip.martian_source"] == 1) == is_martian_source(source)
    if is_martian_source(source):
        assert not tables.accepts(7, source)
        assert not tables.offers(7, source)


@given(st.binary(max_size=40), st.booleans())
@example(b"\x83\x03\x04\0", True)
@example(b"\x44\x00\0\0", False)  # a length that leads nowhere
@example(b"\x44\x28\0\0", False)  # or beyond the header
@example(b"\x01\x01\x83\x04", False)
@example(b"\0\x83\x04\0", False)  # behind the end of options nothing is said
def test_filter_and_stack_find_the_same_source_routes(options, verify):
    options = options.ljust(-(-len(options) // 4) * 4, b"\0")
    plain = bytearray(ip_packet(US, bytes([100, 64, 0, 9]), UDP, options + bytes(8)))
    plain[0] += len(options) // 4
    plain[10:12] = bytes(2)
    header = IP4_HEADER + len(options)
    plain[10:12] = (0xFFFF - ones_complement_sum(bytes(plain[:header]))).to_bytes(2, "big")
    packet = bytes(plain)
    if packets.is_source_routed(packet):
        with pytest.raises(Unroutable, match="source_routed"):
            parse_packet_untrusted(packet, verify)
    else:
        assert parse_packet_untrusted(packet, verify).source == US


@given(addresses, st.binary(max_size=64))
def test_what_is_built_is_read_by_both(source, payload):
    destination = US if len(source) == 4 else US6
    packet = ip_packet(source, destination, 47, payload)
    assert packets.without_padding(packet + bytes(9)) == packet
    parsed = packets.parse(packet)
    read = parse_packet_untrusted(packet, True)
    assert (parsed.source, parsed.destination, parsed.protocol) == (source, destination, 47)
    assert (read.source, read.destination, read.protocol, read.payload) == (source, destination, 47, payload)


@given(st.integers(0, 1 << 34), st.sets(st.integers(FIRST_PORT, LAST_PORT), max_size=50))
def test_free_port_is_free_and_within_the_range(start, taken):
    port = free_port(start, lambda port: port not in taken)
    assert FIRST_PORT <= port <= LAST_PORT
    assert port not in taken


@pytest.mark.parametrize("last", [FIRST_PORT, LAST_PORT, 30_000])
def test_free_port_finds_the_last_one_and_says_when_there_is_none(last):
    assert free_port(12_345, lambda port: port == last) == last
    assert free_port(12_345, lambda port: False) == 0
