"""STUN packets against what Go makes and accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import fuzz_geneve, fuzz_stun
from ts_base.errors import BadPacket
from ts_dataplane import geneve, stun
from ts_dataplane.candidates import format_endpoint, parse_endpoint_untrusted

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "stun.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["parses"], ids=range(len(VECTORS["parses"])))
def test_answer_is_read_as_go_reads_it(vector):
    packet = bytes.fromhex(vector["packet"])
    assert stun.is_stun(packet) == vector["is_stun"]
    if vector["ok"]:
        transaction, seen = stun.decode_response_untrusted(packet)
        assert (transaction.hex(), format_endpoint(seen)) == (vector["tx_id"], vector["address"])
    else:
        with pytest.raises(BadPacket):
            stun.decode_response_untrusted(packet)


@pytest.mark.parametrize("vector", VECTORS["parses_as_request"], ids=range(len(VECTORS["parses_as_request"])))
def test_request_is_accepted_exactly_when_go_accepts_it(vector):
    packet = bytes.fromhex(vector["packet"])
    assert stun.is_stun(packet) == vector["is_stun"]
    if vector["ok"]:
        assert stun.decode_request_untrusted(packet).hex() == vector["tx_id"]
    else:
        with pytest.raises(BadPacket):
            stun.decode_request_untrusted(packet)


def test_request_equals_that_of_go():
    for vector in VECTORS["requests"]:
        assert stun.encode_request(bytes.fromhex(vector["tx_id"])).hex() == vector["packet"]


def test_answer_equals_that_of_go():
    for vector in VECTORS["responses"]:
        source = parse_endpoint_untrusted(vector["address"])
        assert stun.encode_response(bytes.fromhex(vector["tx_id"]), source).hex() == vector["packet"]


@given(st.binary(max_size=80))
def test_noise_raises_only_bad_packet(noise):
    fuzz_stun.fuzz_one(noise)
    fuzz_stun.fuzz_one(b"\x01\x01\0" + bytes([len(noise)]) + stun.COOKIE + bytes(12) + noise)
    fuzz_geneve.fuzz_one(noise)


@given(st.sampled_from([geneve.DISCO, geneve.WIREGUARD]), st.integers(0, geneve.MAX_VNI), st.booleans())
def test_geneve_header_survives_encoding(protocol, vni, control):
    header = geneve.encode_header(protocol, vni, control=control)
    assert geneve.decode_header_untrusted(header + b"x") == (protocol, vni, control)
    assert not geneve.is_geneve(header)


def test_geneve_bytes_are_where_the_standard_has_them():
    assert geneve.encode_header(geneve.DISCO, 0xABCDEF, control=True).hex() == "00807a11abcdef00"
    with pytest.raises(ValueError):
        geneve.encode_header(geneve.DISCO, 1 << 24)
