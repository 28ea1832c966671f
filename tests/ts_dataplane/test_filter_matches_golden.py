"""The fast filter against the slow one: random rules, random packets, mutated seeds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.fuzz_filter import fuzz_one, seeds
from golden.filter import SlowFilter
from ts_base.errors import BadPacket
from ts_base.ip import parse_address, parse_prefix
from ts_base.ip_headers import ip_packet
from ts_dataplane.bart import Bart
from ts_dataplane.filter import Rule, compile_filter, prefixes_untrusted
from ts_dataplane.packets import parse

HOSTS4 = ["100.64.0.1", "100.64.0.2", "100.64.0.200", "10.20.1.2", "10.21.0.1", "8.8.8.8"]
HOSTS6 = ["fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2", "2001:db8::1"]
LOCAL = ["100.64.0.1/32", "10.20.0.0/16", "fd7a:115c:a1e0::1/128"]
PORTS = [0, 1, 22, 79, 80, 90, 91, 443, 65534, 65535]

NESTED = ["100.64.0.0/10", "100.64.0.0/24", "10.20.0.0/16", "0.0.0.0/0", "::/0", "fd7a:115c:a1e0::/48"]
RANGES = ["100.64.0.1-100.64.0.7", "10.0.0.0-10.255.255.255"]
BAD = ["bad", "10.0.0.1/8", "10.0.0.9-10.0.0.1", "1.1.1.1-::1"]
entries = st.sampled_from(["*", *HOSTS4, *HOSTS6, *NESTED, *RANGES, *BAD])
sources = st.lists(entries | st.sampled_from(["cap:x", "cap:y"]), max_size=4).map(tuple)
ports = st.sampled_from(PORTS)
destinations = st.lists(st.tuples(entries, ports, ports), max_size=4).map(tuple)
protocols = st.lists(st.sampled_from([1, 6, 17, 47, 58, 132]), max_size=3).map(tuple)
rules = st.lists(st.builds(Rule, sources, destinations, protocols), max_size=5)
ends = st.tuples(st.sampled_from(HOSTS4), st.sampled_from(HOSTS4)) | st.tuples(
    st.sampled_from(HOSTS6), st.sampled_from(HOSTS6)
)
questions = st.tuples(
    ends, st.sampled_from([1, 6, 17, 47, 58, 99, 132]), ports, st.sampled_from([0, 2, 8, 16, 18, 128])
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(rules, st.lists(questions, min_size=1, max_size=12), st.sets(st.sampled_from(["x", "y"])))
def test_filter_agrees_with_the_slow_list(wire, asked, held):
    built, slow, local = compile_filter(wire), SlowFilter(wire, LOCAL), Bart[bool]()
    for text in LOCAL:
        local.insert(parse_prefix(text), True)
    for (source, destination), protocol, port, kind in asked:
        body = bytes([kind, 0]) + port.to_bytes(2, "big") + bytes(8) + bytes([0x50, kind]) + bytes(6)
        whole = ip_packet(parse_address(source), parse_address(destination), protocol, body)
        parsed = parse(whole)
        verdict = built.decide(whole, parsed, is_local=bool(local.lookup(parsed.destination)), held=frozenset(held))
        assert (verdict == "") == slow.inbound(whole, frozenset(held))


def test_mutated_packets_agree_with_the_slow_list():
    source = random.Random(5)
    pool = seeds()
    for _ in range(3_000):
        data = bytearray(source.choice(pool))
        for _ in range(source.randrange(4)):
            if data:
                data[source.randrange(len(data))] = source.choice([0, 1, 2, 6, 17, 44, 0x20, 0x40, 0x60, 0xFF])
        fuzz_one(bytes(data[: source.choice([len(data), source.randrange(len(data) + 1)])]))


def test_port_ranges_mean_exactly_what_they_say():
    for first, last in ((0, 65534), (1, 65535), (0, 65535), (80, 80), (90, 80)):
        built = compile_filter([Rule(("*",), (("*", first, last),), (17, 47))])
        for port in PORTS:
            body = bytes(2) + port.to_bytes(2, "big") + bytes(12)
            whole = ip_packet(bytes([1, 1, 1, 1]), bytes([2, 2, 2, 2]), 17, body)
            verdict = built.decide(whole, parse(whole), is_local=True, held=frozenset())
            assert (verdict == "") == (first <= port <= last)
        whole = ip_packet(bytes([1, 1, 1, 1]), bytes([2, 2, 2, 2]), 47, bytes(20))
        verdict = built.decide(whole, parse(whole), is_local=True, held=frozenset())
        assert (verdict == "") == ((first, last) == (0, 65535))


def test_ports_of_one_clause_do_not_meet_addresses_of_another():
    built = compile_filter([Rule(("*",), (("10.0.0.1", 22, 22), ("10.0.0.2", 80, 80)))])
    for last, port, admitted in ((1, 22, True), (2, 80, True), (1, 80, False), (2, 22, False)):
        whole = ip_packet(
            bytes([1, 1, 1, 1]), bytes([10, 0, 0, last]), 17, bytes(2) + port.to_bytes(2, "big") + bytes(12)
        )
        assert (built.decide(whole, parse(whole), is_local=True, held=frozenset()) == "") == admitted


def test_a_bad_entry_is_skipped_and_reported_and_the_rest_is_used():
    built = compile_filter([Rule(("nonsense", "10.0.0.1/8", "1.1.1.1"), (("also bad", 1, 2), ("*", 80, 80)))])
    assert len(built.problems) == 3
    whole = ip_packet(bytes([1, 1, 1, 1]), bytes([2, 2, 2, 2]), 17, bytes([0, 1, 0, 80]) + bytes(12))
    assert built.decide(whole, parse(whole), is_local=True, held=frozenset()) == ""


@pytest.mark.parametrize(
    "text", ["", "-", "1.1.1.1-", "1.1.1.2-1.1.1.1", "1.1.1.1-::1", "cap:x", "10.0.0.0/33", "1-2-3"]
)
def test_nonsense_is_no_set_of_prefixes(text):
    with pytest.raises(BadPacket):
        prefixes_untrusted(text)
