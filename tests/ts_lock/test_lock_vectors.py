"""The lock against what upstream's own code made: `tests/interop/peers/lock/vectors`."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_lock.chain import Chain
from ts_lock.disablement import disablement_value, turns_off
from ts_lock.keys import LockPrivate
from ts_lock.signatures import (
    Vouched,
    decode_signature_untrusted,
    examine,
    examine_text_untrusted,
    rotate,
    sign_node,
    unwrap_auth_key,
    wrap_auth_key,
)
from ts_lock.updates import Kind, decode_update_untrusted, hash_text, parse_hash_untrusted

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "lock.json").read_text())


def seeded(seed: int) -> LockPrivate:
    return LockPrivate(bytes([seed]) * 32)


def test_disablement_value_is_upstreams() -> None:
    for case in VECTORS["disablement"]:
        value = disablement_value(bytes.fromhex(case["secret"]))
        assert value is not None
        assert value.hex() == case["value"]


def test_disablement_needs_the_secret() -> None:
    state = Chain(decode_update_untrusted(bytes.fromhex(VECTORS["updates"][0]["data"]))).state
    assert turns_off(state, b"\xa5" * 32)
    assert not turns_off(state, b"\xa5" * 31)
    assert not turns_off(state, b"")


@pytest.mark.parametrize("case", VECTORS["updates"], ids=lambda case: case["name"])
def test_update_is_read_and_written_bit_for_bit(case: dict[str, str]) -> None:
    data = bytes.fromhex(case["data"])
    update = decode_update_untrusted(data)
    assert update.data == data
    assert hash_text(update.hash) == case["hash"]
    assert update.signed_hash.hex() == case["signed_hash"]
    assert parse_hash_untrusted(case["hash"]) == update.hash


def test_update_signed_by_us_is_upstreams() -> None:
    genesis, removal = (decode_update_untrusted(bytes.fromhex(VECTORS["updates"][n]["data"])) for n in (0, 2))
    chain = Chain(genesis)
    ours = chain.next_update(Kind.REMOVE_KEY, key_id=seeded(2).public).signed_by(seeded(1))
    assert ours.data == removal.data


@pytest.mark.parametrize("number", range(len(VECTORS["trees"])))
def test_tree_ends_at_the_same_head(number: int) -> None:
    """Every update is taken or refused as upstream does, and after each the head is the same."""
    tree = VECTORS["trees"][number]
    first, *rest = tree["updates"]
    chain = Chain(decode_update_untrusted(bytes.fromhex(first["data"])))
    for step in rest:
        try:
            chain.add([decode_update_untrusted(bytes.fromhex(step["data"]))])
            accepted = True
        except BadPacket:
            accepted = False
        assert accepted == step["accepted"]
        assert hash_text(chain.head) == step["head"]
    assert [{"public": key.public.hex(), "votes": key.votes} for key in chain.state.keys.values()] == tree["keys"]
    assert Chain.of(chain.updates()).head == chain.head


@pytest.mark.parametrize("case", VECTORS["signatures"]["cases"], ids=lambda case: case["name"])
def test_node_signature_holds_where_it_does_upstream(case: dict[str, object]) -> None:
    genesis = decode_update_untrusted(bytes.fromhex(VECTORS["signatures"]["genesis"]))
    node_key, data = bytes.fromhex(str(case["node_key"])), bytes.fromhex(str(case["data"]))
    try:
        vouched = examine(node_key, decode_signature_untrusted(data))
        authorized = vouched.key_id in Chain(genesis).state.keys
    except BadPacket:
        authorized = False
    assert authorized == case["authorized"]
    if authorized:
        assert decode_signature_untrusted(data).encode() == data
        assert [key.hex() for key in (vouched.rotation.older if vouched.rotation else ())] == case["older"]


def test_node_signature_tampered_anywhere_does_not_hold() -> None:
    """Every byte of a chain, each changed in two ways."""
    data = bytes.fromhex(VECTORS["resigned"][2])
    node_key = bytes([101]) * 32
    trusted = {seeded(1).public}
    assert examine(node_key, decode_signature_untrusted(data)).key_id in trusted
    for place in range(len(data)):
        for flip in (1, 0x80):
            changed = data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :]
            try:
                assert examine(node_key, decode_signature_untrusted(changed)).key_id not in trusted
            except BadPacket:
                continue


@pytest.mark.parametrize("wrapping", [None, bytes(range(32))])
def test_direct_signature_tampered_anywhere_does_not_hold(wrapping: bytes | None) -> None:
    """Every byte of the usual layout, which is read in a shorter way, and whatever is cut off or appended."""
    node_key = bytes([101]) * 32
    data = sign_node(seeded(1), node_key, wrapping).encode()
    assert examine_text_untrusted(node_key, text_of(data)) == Vouched(seeded(1).public)
    changed = [
        data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :] for at in range(len(data)) for flip in (1, 64, 255)
    ]
    changed += [data[:length] for length in range(len(data))] + [data + more for more in (b"\0", data[-35:], data)]
    for each in changed:
        with pytest.raises(BadPacket):
            examine_text_untrusted(node_key, text_of(each))


@given(st.binary(min_size=32, max_size=32), st.none() | st.binary(min_size=32, max_size=32), st.data())
def test_usual_layout_is_read_as_every_other(node_key: bytes, wrapping: bytes | None, draw: st.DataObject) -> None:
    """The general way is the twin: the same value, or both refuse."""
    data = bytearray(sign_node(seeded(1), node_key, wrapping).encode())
    for place, value in draw.draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=2)):
        data[place] = value
    try:
        expected: Vouched | None = examine(node_key, decode_signature_untrusted(bytes(data)))
    except BadPacket:
        expected = None
    try:
        assert examine_text_untrusted(node_key, text_of(bytes(data))) == expected
    except BadPacket:
        assert expected is None


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_node_that_changes_its_key_signs_as_upstream() -> None:
    first, *rest = [bytes.fromhex(data) for data in VECTORS["resigned"]]
    signature = sign_node(seeded(1), bytes([40]) * 32, seeded(20).public)
    assert signature.encode() == first
    for step, data in enumerate(rest):
        signature = rotate(seeded(20), bytes([100 + step]) * 32, signature)
        assert signature.encode() == data
        assert examine(bytes([100 + step]) * 32, signature).key_id == seeded(1).public
    assert rotate(seeded(20), bytes([119]) * 32, signature) is signature
    with pytest.raises(BadPacket):
        rotate(seeded(21), bytes([120]) * 32, signature)


def test_auth_key_that_vouches_is_upstreams() -> None:
    case = VECTORS["wrapped"]
    unwrapped = unwrap_auth_key(case["text"])
    assert unwrapped.auth_key == case["auth_key"]
    signature = unwrapped.vouch(bytes.fromhex(case["node_key"]))
    assert signature is not None
    assert signature.encode().hex() == case["signature"]
    assert wrap_auth_key(case["auth_key"], seeded(1), seeded(30)) == case["text"]
    assert case["text"] not in repr(unwrapped)
    assert unwrap_auth_key("tskey-auth-plain").vouch(bytes(32)) is None
