"""What may become part of a lock, and what of it is in force."""

from __future__ import annotations

import pytest

from ts_base.errors import BadPacket
from ts_lock.chain import MAX_UPDATES, Chain
from ts_lock.keys import LockPrivate
from ts_lock.updates import Checkpoint, Key, Kind, Update, decode_update_untrusted, hash_text, parse_hash_untrusted

ONE, TWO, THREE, STRANGER = (LockPrivate(bytes([seed]) * 32) for seed in (1, 2, 3, 9))
VALUE = b"\5" * 32


def begun(*keys: Key) -> Chain:
    named = Checkpoint((VALUE,), keys or (Key(ONE.public), Key(TWO.public, 2)), (7, 8))
    return Chain(Update(Kind.CHECKPOINT, state=named).signed_by(ONE))


def added(chain: Chain, private: LockPrivate, by: LockPrivate) -> Update:
    update = chain.next_update(Kind.ADD_KEY, key=Key(private.public)).signed_by(by)
    chain.add([update])
    return update


def test_chain_begins_with_a_checkpoint_that_its_own_keys_signed() -> None:
    named = Checkpoint((VALUE,), (Key(ONE.public),))
    for bad in (
        Update(Kind.CHECKPOINT, state=named).signed_by(STRANGER),
        Update(Kind.CHECKPOINT, state=named),
        Update(Kind.NO_OP).signed_by(ONE),
    ):
        with pytest.raises(BadPacket):
            Chain(bad)


def test_add_is_all_or_nothing() -> None:
    chain = begun()
    good = chain.next_update(Kind.ADD_KEY, key=Key(THREE.public)).signed_by(ONE)
    bad = Update(Kind.NO_OP, good.hash).signed_by(STRANGER)
    with pytest.raises(BadPacket):
        chain.add([good, bad])
    assert chain.updates() == [chain.genesis]
    chain.add([good, good])
    chain.add([good])
    assert chain.head == good.hash


def test_update_whose_parent_is_missing_is_refused() -> None:
    chain = begun()
    first = chain.next_update(Kind.NO_OP).signed_by(ONE)
    second = Update(Kind.NO_OP, first.hash).signed_by(ONE)
    with pytest.raises(BadPacket, match="parent"):
        chain.add([second, first])
    with pytest.raises(BadPacket, match="parent"):
        chain.add([Update(Kind.NO_OP, None).signed_by(ONE)])


def test_removed_key_signs_nothing_more_but_where_it_was_trusted() -> None:
    chain = begun()
    before = chain.head
    chain.add([chain.next_update(Kind.REMOVE_KEY, key_id=ONE.public).signed_by(TWO)])
    with pytest.raises(BadPacket, match="not trusted"):
        chain.add([chain.next_update(Kind.NO_OP).signed_by(ONE)])
    head = chain.head
    chain.add([Update(Kind.NO_OP, before).signed_by(ONE)])  # a fork from the past, of less weight
    assert chain.head == head


def test_branch_that_revokes_from_the_past_wins_by_its_weight() -> None:
    """A key was stolen and made updates; the others go on from before that, and everybody follows them."""
    chain = begun(Key(ONE.public), Key(TWO.public), Key(THREE.public))
    before = chain.head
    for _ in range(5):
        added(chain, LockPrivate(chain.head), ONE)
    named = Checkpoint((VALUE,), (Key(TWO.public), Key(THREE.public)), (7, 8))
    revoking = Update(Kind.CHECKPOINT, before, state=named).signed_by(TWO).signed_by(THREE)
    chain.add([revoking])
    assert chain.head == revoking.hash
    assert set(chain.state.keys) == {TWO.public, THREE.public}


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": Kind.ADD_KEY, "key": Key(TWO.public)},
        {"kind": Kind.ADD_KEY, "key": Key(THREE.public, 4097)},
        {"kind": Kind.REMOVE_KEY, "key_id": THREE.public},
        {"kind": Kind.UPDATE_KEY, "key_id": ONE.public, "votes": 0},
        {"kind": Kind.UPDATE_KEY, "key_id": THREE.public, "votes": 1},
        {"kind": Kind.CHECKPOINT, "state": Checkpoint((VALUE,), (Key(ONE.public),), (7, 9))},
        {"kind": Kind.CHECKPOINT, "state": Checkpoint((), (Key(ONE.public),), (7, 8))},
        {"kind": Kind.CHECKPOINT, "state": Checkpoint((VALUE, VALUE), (Key(ONE.public),), (7, 8))},
        {"kind": Kind.CHECKPOINT, "state": Checkpoint((VALUE,), (), (7, 8))},
        {"kind": Kind.NO_OP, "votes": 3},
    ],
)
def test_update_that_makes_no_sense_is_refused(bad: dict[str, object]) -> None:
    chain = begun()
    update = chain.next_update(bad.pop("kind"), **bad).signed_by(ONE)  # type: ignore[arg-type]
    with pytest.raises(BadPacket):
        chain.add([decode_update_untrusted(update.data)])
    assert chain.head == chain.genesis.hash


def test_last_key_stays() -> None:
    chain = begun(Key(ONE.public))
    with pytest.raises(BadPacket, match="last"):
        chain.add([chain.next_update(Kind.REMOVE_KEY, key_id=ONE.public).signed_by(ONE)])


def test_update_tampered_at_any_byte_is_refused() -> None:
    chain = begun()
    data = chain.next_update(Kind.ADD_KEY, key=Key(THREE.public, 1, {"a": "b"})).signed_by(ONE).data
    for place in range(len(data)):
        for flip in (1, 0x80):
            changed = data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :]
            with pytest.raises(BadPacket):
                chain.add([decode_update_untrusted(changed)])
    assert chain.updates() == [chain.genesis]


def test_more_updates_than_a_lock_may_have_are_refused_at_once() -> None:
    """A hundred thousand cost what the first two thousand do: nothing is signed wrongly, there are too many."""
    chain = begun()
    looked_at = 0

    def endless() -> object:
        nonlocal looked_at
        parent = chain.head
        for _ in range(100_000):
            looked_at += 1
            update = Update(Kind.NO_OP, parent).signed_by(ONE)
            parent = update.hash
            yield update

    with pytest.raises(BadPacket, match="more than"):
        chain.add(endless())  # type: ignore[arg-type]
    assert looked_at == MAX_UPDATES
    assert chain.updates() == [chain.genesis]


@pytest.mark.parametrize("length", [1, 2, 5, 30, 90])
def test_missing_is_what_brings_another_chain_up_to_date(length: int) -> None:
    chain = begun()
    behind = Chain.of(chain.updates())
    for _ in range(length):
        update = chain.next_update(Kind.NO_OP).signed_by(ONE)
        chain.add([update])
        if length % 2:
            behind.add([update])
    behind.add(chain.missing(behind.head, behind.ancestors()))
    assert behind.head == chain.head
    assert chain.missing(behind.head, ()) == []
    # One that went another way names ancestors that we know.
    fork = Chain.of(chain.updates()[: length // 2 + 1])
    fork.add([fork.next_update(Kind.ADD_KEY, key=Key(THREE.public)).signed_by(ONE)])
    fork.add(chain.missing(fork.head, fork.ancestors()))
    chain.add(fork.updates())
    assert fork.head == chain.head


def test_another_lock_has_nothing_in_common() -> None:
    other = Chain(Update(Kind.CHECKPOINT, state=Checkpoint((VALUE,), (Key(TWO.public),))).signed_by(TWO))
    with pytest.raises(BadPacket, match="nothing in common"):
        begun().missing(other.head, other.ancestors())


def test_hash_has_one_text() -> None:
    text = hash_text(bytes(range(32)))
    assert parse_hash_untrusted(text) == bytes(range(32))
    for bad in (text.lower(), text[:-1], text + "=", "é" * 52, text[:-1] + "B"):
        with pytest.raises(BadPacket):
            parse_hash_untrusted(bad)
