"""Disco datagrams against what Go makes and accepts, and against everything in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import fuzz_disco
from ts_base.box import Box
from ts_base.errors import BadPacket
from ts_base.ip import format_address
from ts_base.keys import DiscoPrivate, DiscoPublic
from ts_dataplane import disco
from ts_dataplane.candidates import format_endpoint, parse_endpoint_untrusted

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "disco.json").read_text())
KINDS = {4: "bind_udp_relay_endpoint", 5: "bind_udp_relay_endpoint_challenge", 6: "bind_udp_relay_endpoint_answer"}


def as_go_says(message: disco.Message) -> dict:
    match message:
        case disco.Ping(transaction, node_key, padding):
            key = None if node_key is None else node_key.hex()
            return {"type": "ping", "tx_id": transaction.hex(), "node_key": key, "padding": padding}
        case disco.Pong(transaction, source):
            return {"type": "pong", "tx_id": transaction.hex(), "src": format_endpoint(source)}
        case disco.CallMeMaybe(endpoints):
            return {"type": "call_me_maybe", "endpoints": [format_endpoint(e) for e in endpoints]}
        case disco.Bind(kind, vni, generation, remote, challenge):
            keys = {"remote_key": remote.hex(), "challenge": challenge.hex()}
            return {"type": KINDS[kind], "vni": vni, "generation": generation} | keys
        case disco.CallMeMaybeVia(endpoint):
            return {"type": "call_me_maybe_via"} | endpoint_as_go_says(endpoint)
        case disco.AllocateRequest(clients, generation):
            keys = [key.hex() for key in clients]
            return {"type": "allocate_udp_relay_endpoint_request", "client_disco": keys, "generation": generation}
        case disco.AllocateResponse(generation, endpoint):
            fields = {"type": "allocate_udp_relay_endpoint_response", "generation": generation}
            return fields | endpoint_as_go_says(endpoint)


def endpoint_as_go_says(endpoint: disco.RelayEndpoint) -> dict:
    return {
        "server_disco": endpoint.server_disco.hex(),
        "client_disco": [key.hex() for key in endpoint.client_discos],
        "lamport_id": endpoint.lamport,
        "vni": endpoint.vni,
        "bind_lifetime_ns": endpoint.bind_lifetime_ns,
        "steady_state_lifetime_ns": endpoint.steady_lifetime_ns,
        "addr_ports": [format_endpoint(e) for e in endpoint.addresses],
    }


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda v: v["message"]["type"])
def test_datagram_of_go_opens_and_is_made_again_byte_for_byte(vector):
    datagram, nonce = bytes.fromhex(vector["datagram"]), bytes.fromhex(vector["nonce"])
    receiver = disco.Boxes(DiscoPrivate(bytes.fromhex(vector["to_private"])), bytes)
    assert disco.sender_untrusted(datagram).hex() == vector["from_public"]
    message = receiver.open_untrusted(datagram)
    assert as_go_says(message) == vector["message"]
    sender = disco.Boxes(DiscoPrivate(bytes.fromhex(vector["from_private"])), lambda _: nonce)
    assert sender.seal(bytes.fromhex(vector["to_public"]), message) == datagram


@pytest.mark.parametrize("vector", VECTORS["parses"], ids=lambda v: v["plain"][:12])
def test_plaintext_is_accepted_exactly_when_go_accepts_it(vector):
    plain = bytes.fromhex(vector["plain"])
    means_nothing = plain[:1] in (b"\x07", b"\x08", b"\x09") and plain[1:2] != b"\0"  # Go: a message of zeros
    if vector["ok"] and not means_nothing:
        assert as_go_says(disco.decode_message_untrusted(plain)) == vector["message"]
    else:
        with pytest.raises(BadPacket):
            disco.decode_message_untrusted(plain)


keys = st.binary(min_size=32, max_size=32)
hosts = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)).map(
    lambda raw: disco._decode_endpoint((raw if len(raw) == 16 else bytes(10) + b"\xff\xff" + raw) + b"\0\0")[0]
)
endpoints = st.tuples(hosts, st.integers(0, 65535))
lists = st.lists(endpoints, max_size=20).map(tuple)
transactions = st.binary(min_size=12, max_size=12)
relay_endpoints = st.builds(
    disco.RelayEndpoint,
    keys,
    st.tuples(keys, keys),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**24 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.lists(endpoints, min_size=1, max_size=8).map(tuple),
)
messages = st.one_of(
    st.builds(disco.Ping, transactions, keys, st.integers(0, 1400)),
    st.builds(disco.Ping, transactions, st.none(), st.integers(0, 31)),
    st.builds(disco.Pong, transactions, endpoints),
    st.builds(disco.CallMeMaybe, lists),
    st.builds(disco.Bind, st.sampled_from([4, 5, 6]), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), keys, keys),
    st.builds(disco.CallMeMaybeVia, relay_endpoints),
    st.builds(disco.AllocateRequest, st.tuples(keys, keys), st.integers(0, 2**32 - 1)),
    st.builds(disco.AllocateResponse, st.integers(0, 2**32 - 1), relay_endpoints),
)


@given(messages)
def test_message_survives_encoding(message):
    assert disco.decode_message_untrusted(disco.encode_message(message)) == message


@given(messages, st.integers(0, 200), st.integers(0, 7))
def test_mangled_plaintext_raises_only_bad_packet(message, position, bit):
    fuzz_disco.fuzz_one(disco.encode_message(message)[:position])
    mangled = bytearray(disco.encode_message(message))
    mangled[position % len(mangled)] ^= 1 << bit
    fuzz_disco.fuzz_one(bytes(mangled))


def test_every_flipped_bit_of_a_datagram_is_noticed():
    datagram = bytes.fromhex(VECTORS["messages"][0]["datagram"])
    boxes = disco.Boxes(DiscoPrivate(bytes.fromhex(VECTORS["messages"][0]["to_private"])), bytes)
    for position in range(len(datagram)):
        mangled = bytearray(datagram)
        mangled[position] ^= 0x40
        with pytest.raises(BadPacket):
            boxes.open_untrusted(bytes(mangled))


def test_mapped_address_is_unmapped_and_v6_keeps_its_text():
    pong = disco.decode_message_untrusted(b"\x02\0" + bytes(12) + bytes(10) + b"\xff\xff\xc0\0\2\7" + b"\xa2\xa9")
    assert pong == disco.Pong(bytes(12), ("192.0.2.7", 41641))
    assert parse_endpoint_untrusted("[::ffff:192.0.2.7]:1") == ("192.0.2.7", 1)
    assert parse_endpoint_untrusted("[2001:DB8:0::7]:1") == (
        format_address(bytes.fromhex("20010db8" + "0" * 22 + "07")),
        1,
    )


@pytest.mark.parametrize(
    "text", ["", "1.2.3.4", "1.2.3.4:", "1.2.3.4:x", "1.2.3.4:70000", "fe80::1%eth0:1", "host:1", "1:²"]
)
def test_endpoint_text_of_no_use_is_refused(text):
    with pytest.raises(BadPacket):
        parse_endpoint_untrusted(text)


def test_endless_list_is_cut():
    plain = disco.encode_message(disco.CallMeMaybe((("192.0.2.7", 1),) * 1000))
    message = disco.decode_message_untrusted(plain)
    assert isinstance(message, disco.CallMeMaybe)
    assert len(message.endpoints) == disco.MAX_ENDPOINTS


def test_boxes_are_made_once_and_forgotten_in_the_end(monkeypatch):
    made = []
    monkeypatch.setattr(disco, "Box", lambda ours, theirs: made.append(theirs) or Box(ours, theirs))
    monkeypatch.setattr(disco, "MAX_BOXES", 2)
    boxes = disco.Boxes(DiscoPrivate.generate(bytes(range(32))), lambda n: bytes(n))
    others = [DiscoPrivate.generate(bytes([n]) * 32).public.raw for n in (1, 2, 3)]
    for other in (others[0], others[0], others[1], others[0], others[2], others[0], others[1]):
        boxes.seal(other, disco.CallMeMaybe(()))
    assert made == [DiscoPublic(others[n]) for n in (0, 1, 2, 1)]


def test_low_order_key_is_a_bad_packet():
    boxes = disco.Boxes(DiscoPrivate.generate(bytes(range(32))), bytes)
    with pytest.raises(BadPacket):
        boxes.open_untrusted(disco.MAGIC + bytes(32) + bytes(80))
