"""A lock's keys: their text forms, and that the secret one shows itself to nobody."""

from __future__ import annotations

import copy
import pickle

import pytest

from ts_base.errors import BadPacket
from ts_lock.keys import LockPrivate, is_signed_by, parse_public, public_text, registered_text

SEED = bytes(range(32))


def test_text_forms_are_read_again() -> None:
    key = LockPrivate(SEED)
    assert LockPrivate.parse(key.export()) == key
    assert hash(LockPrivate.parse(key.export())) == hash(key)
    assert parse_public(public_text(key.public)) == parse_public(registered_text(key.public)) == key.public
    assert key != LockPrivate(bytes(32))
    assert key != key.export()


@pytest.mark.parametrize(
    "text", ["", "nlpriv:", "nlpriv:" + "g" * 64, "nlpriv:" + "0" * 63, "tlpub:" + "0" * 64, "nlpriv:" + "\u0660" * 64]
)
def test_what_is_no_private_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(BadPacket) as caught:
        LockPrivate.parse(text)
    assert not text.removeprefix("nlpriv:") or text.removeprefix("nlpriv:") not in str(caught.value)


@pytest.mark.parametrize("text", ["", "tlpub:", "tlpub:" + "z" * 64, "nodekey:" + "0" * 64])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(BadPacket):
        parse_public(text)


def test_the_secret_is_in_no_repr_and_in_no_copy() -> None:
    key = LockPrivate(SEED)
    assert SEED.hex() not in repr(key) + str(key) + f"{key}"
    for take in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="export"):
            take(key)
    with pytest.raises(BadPacket):
        LockPrivate(SEED[:-1])


def test_a_signature_holds_for_one_message_and_one_key() -> None:
    key, other = LockPrivate(SEED), LockPrivate(bytes(32))
    signature = key.sign(b"message")
    assert is_signed_by(key.public, signature, b"message")
    assert not is_signed_by(key.public, signature, b"massage")
    assert not is_signed_by(other.public, signature, b"message")
    assert not is_signed_by(key.public[:-1], signature, b"message")
    assert not is_signed_by(key.public, signature[:-1], b"message")
