"""Which nodes are vouched for, from change to change, and how little of it is looked at twice."""

from __future__ import annotations

import base64

import pytest

from ts_lock.keys import LockPrivate
from ts_lock.remembered import Claim
from ts_lock.signatures import NodeKeySignature, rotate, sign_node
from ts_lock.vouching import NOT_SIGNED, NOT_TRUSTED, REPLACED, Vouching, judge

ONE, TWO = (LockPrivate(bytes([seed]) * 32) for seed in (1, 2))
OWN = LockPrivate(b"\7" * 32)  # a node's
TRUSTED = {ONE.public}


def key(number: int) -> bytes:
    return bytes([number]) * 32


def claim(number: int, signature: NodeKeySignature | None) -> Claim:
    return Claim(key(number), base64.b64encode(signature.encode()).decode() if signature is not None else "")


def test_verdict_holds_whatever_becomes_of_the_lock() -> None:
    vouching = Vouching()
    first = claim(1, sign_node(ONE, key(1), None))
    assert not vouching.knows(1, first)
    vouching.note(1, judge(first))
    vouching.note(2, judge(claim(2, None)))
    vouching.note(3, judge(claim(4, sign_node(ONE, key(3), None))))
    assert vouching.knows(1, first)
    assert not vouching.knows(1, claim(1, None))
    assert list(vouching.claims()) == [first]
    assert vouching.problem(1, TRUSTED) == ""
    assert vouching.problem(1, {TWO.public}) == NOT_TRUSTED
    assert vouching.problem(2, TRUSTED) == NOT_SIGNED
    assert "another node key" in vouching.problem(3, TRUSTED)


@pytest.mark.parametrize("text", ["!", "AA==", "a" * 20_000, "ogEC"])
def test_signature_that_is_none_is_a_problem(text: str) -> None:
    vouching = Vouching()
    vouching.note(1, judge(Claim(key(1), text)))
    assert "does not hold" in vouching.problem(1, TRUSTED)


def test_key_that_was_replaced_is_worth_nothing_while_the_newer_one_is_there() -> None:
    vouching = Vouching()
    first = sign_node(ONE, key(1), OWN.public)
    vouching.note(1, judge(claim(1, first)))
    vouching.note(2, judge(claim(2, rotate(OWN, key(2), first))))
    assert vouching.settle(TRUSTED) == {1}
    assert vouching.problem(1, TRUSTED) == REPLACED
    assert vouching.problem(2, TRUSTED) == ""
    assert vouching.settle(TRUSTED) == set()
    vouching.forget([2])
    assert vouching.settle(TRUSTED) == {1}
    assert vouching.problem(1, TRUSTED) == ""


def test_copies_of_one_node_are_all_refused_and_the_longest_chain_is_not() -> None:
    vouching = Vouching()
    first = sign_node(ONE, key(1), OWN.public)
    for number in (2, 3):
        vouching.note(number, judge(claim(number, rotate(OWN, key(number), first))))
    assert vouching.settle(TRUSTED) == {2, 3}
    longer = rotate(OWN, key(5), rotate(OWN, key(4), first))
    vouching.note(5, judge(claim(5, longer)))
    vouching.settle(TRUSTED)
    assert [bool(vouching.problem(number, TRUSTED)) for number in (2, 3, 5)] == [True, True, False]


def test_chain_that_nobody_trusts_replaces_nothing() -> None:
    vouching = Vouching()
    vouching.note(1, judge(claim(1, sign_node(ONE, key(1), OWN.public))))
    vouching.note(2, judge(claim(2, rotate(OWN, key(2), sign_node(TWO, key(1), OWN.public)))))
    assert vouching.settle(TRUSTED) == set()
    assert vouching.problem(1, TRUSTED) == ""
