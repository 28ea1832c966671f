from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.noise import public_of, twin_initiation, twin_response
from ts_base.errors import BadPacket
from ts_base.noise import Handshake
from ts_tunnel.handshake import IDENTIFIER, NAME, encode_timestamp, tick_of

keys = st.binary(min_size=32, max_size=32)


def handshake(static: bytes, remote: bytes | None, psk: bytes) -> Handshake:
    return Handshake(NAME, prologue=IDENTIFIER, static=static, remote_static=remote, psk=psk)


@settings(max_examples=25, deadline=None)
@given(keys, keys, keys, keys, keys, st.binary(min_size=12, max_size=12))
def test_both_makings_of_a_handshake_agree(i, ei, r, er, psk, timestamp):
    initiator, responder = handshake(i, public_of(r), psk), handshake(r, None, psk)
    first = initiator.write(timestamp, ephemeral=ei)
    twin_first, chain, digest = twin_initiation(i, ei, public_of(r), timestamp)
    assert first == twin_first
    assert responder.read_untrusted(first) == timestamp
    assert responder.remote_static == public_of(i)
    second = responder.write(ephemeral=er)
    twin_second, (to_responder, to_initiator) = twin_response(chain, digest, er, public_of(ei), public_of(i), psk)
    assert second == twin_second
    assert initiator.read_untrusted(second) == b""
    assert initiator.keys() == (to_responder, to_initiator)
    assert responder.keys() == (to_initiator, to_responder)
    assert initiator.digest == responder.digest


def test_handshake_message_with_any_bit_wrong_is_bad():
    first = handshake(b"i" * 32, public_of(b"r" * 32), bytes(32)).write(bytes(12), ephemeral=b"e" * 32)
    for position in range(len(first)):
        damaged = bytearray(first)
        damaged[position] ^= 0x40
        with pytest.raises(BadPacket):
            handshake(b"r" * 32, None, bytes(32)).read_untrusted(bytes(damaged))


@pytest.mark.parametrize("length", [0, 1, 31, 32, 79, 80, 95])
def test_handshake_message_cut_short_is_bad(length):
    first = handshake(b"i" * 32, public_of(b"r" * 32), bytes(32)).write(b"", ephemeral=b"e" * 32)
    with pytest.raises(BadPacket):
        handshake(b"r" * 32, None, bytes(32)).read_untrusted(first[:length])


def test_handshake_repr_is_redacted():
    assert repr(handshake(b"i" * 32, None, bytes(32))) == "Handshake([redacted])"


def test_timestamps_are_tai64n_in_steps_of_2_to_the_24_nanoseconds():
    assert encode_timestamp(tick_of(0.0)).hex() == "400000000000000a00000000"
    assert encode_timestamp(tick_of(1.0)).hex() == "400000000000000b00000000"
    assert encode_timestamp(tick_of(1.5)).hex() == "400000000000000b1d000000"
    assert encode_timestamp(tick_of(1.017)).hex() == "400000000000000b01000000"


@given(st.floats(-1e9, 1e11), st.integers(1, 1000))
def test_timestamps_sort_like_time(moment, ticks):
    tick = tick_of(moment)
    assert encode_timestamp(tick) < encode_timestamp(tick + ticks)
    assert int.from_bytes(encode_timestamp(tick)[8:], "big") < 1_000_000_000
    assert tick_of(moment + 1.0) > tick
