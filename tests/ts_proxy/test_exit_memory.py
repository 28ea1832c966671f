"""The pool, the sessions, and the text in which the pool is kept."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_proxy.sticky import MOST_KEYS, Pool, Sessions, decode_pool_untrusted, encode_pool, rendezvous

keys = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)


@given(keys, st.lists(keys, max_size=MOST_KEYS))
def test_a_pool_is_read_as_it_was_written(fingerprint: str, pool: list[str]) -> None:
    assert decode_pool_untrusted(encode_pool(fingerprint, pool)) == (fingerprint, tuple(pool))


@given(st.binary(max_size=200))
def test_any_other_text_is_refused(text: bytes) -> None:
    try:
        decode_pool_untrusted(text)
    except BadPacket:
        return


@pytest.mark.parametrize(
    "text",
    [
        b'{"version": 1, "fingerprint": "x"}',
        b'{"version": true, "fingerprint": "x", "pool": []}',
        b'{"version": 1, "fingerprint": "x", "pool": ["' + b"k" * 129 + b'"]}',
        b'{"version": 1, "fingerprint": "x", "pool": ["a\\nb"]}',
        b'{"version": 1, "fingerprint": "x", "pool": [' + b'"a",' * 64 + b'"a"]}',
        b"[" * 60_000,
    ],
)
def test_what_looks_nearly_right_is_refused(text: bytes) -> None:
    with pytest.raises(BadPacket):
        decode_pool_untrusted(text)


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefg")), max_size=40))
def test_a_pool_is_bounded_and_the_newest_is_first(limit: int, script: list[tuple[bool, str]]) -> None:
    pool = Pool(limit)
    for is_use, key in script:
        before = pool.keys
        if is_use:
            assert pool.use(key) is (pool.keys != before)
            assert pool.keys[0] == key
        else:
            pool.add(key)
            assert pool.keys[: len(before)] == before, "joining moves nobody"
        assert len(pool.keys) <= limit
        assert len(set(pool.keys)) == len(pool.keys)


def test_a_full_pool_gives_up_only_a_dispensable_one() -> None:
    pool = Pool(2, ["a", "b", "c"])
    assert pool.keys == ("a", "b")
    assert not pool.add("c")
    assert pool.add("c", ["a"])
    assert pool.keys == ("b", "c")


def test_sessions_are_bounded_and_the_oldest_is_forgotten() -> None:
    sessions = Sessions(limit=3)
    for name in ("one", "two", "one", "three", "four"):
        sessions.assign(name, f"exit of {name}")
    assert [sessions.exit_of(name) for name in ("one", "two", "three")] == ["exit of one", "", "exit of three"]
    assert (len(sessions), sessions.forgotten) == (3, 1)


def test_rendezvous_spreads_evenly() -> None:
    shares = Counter(rendezvous(f"session {number}", "abcd") for number in range(4000))
    assert all(850 < share < 1150 for share in shares.values())


@given(st.text(max_size=20), st.lists(keys, min_size=1, max_size=8, unique=True), st.data())
def test_rendezvous_moves_only_the_sessions_of_who_goes(session: str, exits: list[str], data: st.DataObject) -> None:
    chosen = rendezvous(session, exits)
    gone = data.draw(st.sampled_from(exits))
    rest = [key for key in exits if key != gone]
    assert rendezvous(session, rest) == (chosen if gone != chosen else rendezvous(session, rest))
    assert rendezvous(session, list(reversed(exits))) == chosen
    assert rendezvous(session, []) == ""
