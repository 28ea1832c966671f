from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import fuzz_tunnel_endpoint, fuzz_tunnel_wire
from ts_base.errors import BadPacket
from ts_tunnel import wire

index = st.integers(0, 2**32 - 1)


def test_lengths_are_those_of_the_paper():
    assert (wire.INITIATION_LENGTH, wire.RESPONSE_LENGTH, wire.COOKIE_REPLY_LENGTH) == (148, 92, 64)


@given(index, index, st.binary(min_size=108, max_size=108))
def test_messages_come_back_as_they_were_encoded(sender, receiver, noise):
    macs = bytes(32)
    assert wire.decode_initiation_untrusted(wire.encode_initiation(sender, noise) + macs) == (sender, noise)
    assert wire.decode_response_untrusted(wire.encode_response(sender, receiver, noise[:48]) + macs) == (
        sender,
        receiver,
        noise[:48],
    )
    reply = wire.encode_cookie_reply(receiver, noise[:24], noise[:32])
    assert wire.decode_cookie_reply_untrusted(reply) == (receiver, noise[:24], noise[:32])


@pytest.mark.parametrize(
    ("decode", "length", "kind"),
    [
        (wire.decode_initiation_untrusted, 148, 1),
        (wire.decode_response_untrusted, 92, 2),
        (wire.decode_cookie_reply_untrusted, 64, 3),
    ],
)
def test_any_other_length_or_type_is_bad(decode, length, kind):
    good = bytes([kind, 0, 0, 0]) + bytes(length - 4)
    decode(good)
    for bad in (good[:-1], good + b"\0", b"", good[:4], bytes([kind + 1]) + good[1:], good[:3] + b"\1" + good[4:]):
        with pytest.raises(BadPacket):
            decode(bad)


def test_kind_of_is_zero_for_what_is_no_message():
    assert [wire.kind_of(bytes([kind, 0, 0, 0])) for kind in range(7)] == [0, 1, 2, 3, 4, 0, 0]
    assert wire.kind_of(b"") == wire.kind_of(b"\1") == wire.kind_of(b"\1\0\0") == wire.kind_of(b"\1\0\0\1") == 0


@given(st.binary(max_size=200))
def test_parsers_raise_nothing_but_bad_packet(data):
    fuzz_tunnel_wire.fuzz_one(data)


def test_fuzz_seeds_pass():
    for target in (fuzz_tunnel_wire, fuzz_tunnel_endpoint):
        for seed in target.seeds():
            target.fuzz_one(seed)


@given(st.binary(max_size=300))
def test_endpoint_survives_any_script_of_damage(data):
    fuzz_tunnel_endpoint.fuzz_one(data)
