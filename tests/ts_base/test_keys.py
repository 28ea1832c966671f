"""Keys: text forms, clamping, equality by kind, and secrets that never show."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.box import Box
from ts_base.errors import BadPacket
from ts_base.keys import (
    DiscoPrivate,
    DiscoPublic,
    MachinePrivate,
    MachinePublic,
    NodePrivate,
    NodePublic,
    clamp,
    exchange,
)


def test_text_form_round_trips_and_names_the_kind() -> None:
    key = NodePrivate.generate(b"\x01" * 32).public
    assert str(key).startswith("nodekey:")
    assert NodePublic.parse(str(key)) == key
    assert NodePublic.parse(str(key).upper().replace("NODEKEY", "nodekey")) == key
    with pytest.raises(BadPacket):
        MachinePublic.parse(str(key))


def test_keys_of_different_kinds_are_never_equal() -> None:
    raw = b"\x07" * 32
    assert NodePublic(raw) != DiscoPublic(raw)
    assert len({NodePublic(raw), DiscoPublic(raw), NodePublic(raw)}) == 2


def test_exchange_agrees_with_rfc_7748() -> None:
    """Section 5.2, first vector."""
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert exchange(scalar, point).hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"


def test_low_order_public_key_is_refused() -> None:
    with pytest.raises(BadPacket):
        exchange(clamp(b"\x05" * 32), bytes(32))


@pytest.mark.parametrize("kind", [MachinePrivate, NodePrivate, DiscoPrivate])
def test_private_key_shows_nowhere(kind: type[NodePrivate]) -> None:
    key = kind.generate(b"\x42" * 32)
    secret = key.raw.hex()
    for text in (repr(key), str(key), f"{key}", f"{key!r}", repr([key]), repr({"k": key})):
        assert secret not in text
        assert "redacted" in text
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(TypeError):
        copy.deepcopy(key)
    assert secret in key.export()


@given(st.binary(min_size=32, max_size=32))
def test_clamped_scalars_have_the_fixed_bits(entropy: bytes) -> None:
    scalar = clamp(entropy)
    assert scalar[0] & 7 == 0
    assert scalar[31] & 128 == 0
    assert scalar[31] & 64


@given(st.text(max_size=90))
def test_parse_raises_only_bad_packet(text: str) -> None:
    for candidate in (text, "nodekey:" + text, "nodekey:" + text.ljust(64, "0")[:64]):
        try:
            NodePublic.parse(candidate)
        except BadPacket as error:
            assert text not in str(error) or len(text) < 12  # noqa: PT017 - the sentence must not repeat a pasted secret


def test_box_opens_only_with_the_right_pair() -> None:
    a, b, c = (DiscoPrivate.generate(bytes([i]) * 32) for i in (1, 2, 3))
    sealed = Box(a, b.public).seal(b"hello", bytes(24))
    assert Box(b, a.public).open_untrusted(sealed) == b"hello"
    with pytest.raises(BadPacket):
        Box(c, a.public).open_untrusted(sealed)
    for broken in (b"", sealed[:39], sealed[:-1], bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(BadPacket):
            Box(b, a.public).open_untrusted(broken)
