"""The canonical form of a lock's values: one way to write each (RFC 8949, section 4.2.1), all else refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_lock import cbor

VALUES = st.recursive(
    st.none() | st.integers(0, (1 << 64) - 1) | st.binary(max_size=40) | st.text(max_size=10),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.integers(0, 1 << 40), inside, max_size=4),
    max_leaves=4,
)


@given(VALUES)
def test_what_is_written_is_read_again_and_in_no_other_way(value: Any) -> None:
    written = cbor.encode(value)
    assert cbor.decode_untrusted(written) == value
    with pytest.raises(BadPacket):
        cbor.decode_untrusted(written + b"\0")
    with pytest.raises(BadPacket):
        cbor.decode_untrusted(written[:-1])


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (b"\x18\x17", "short as"),
        (b"\x19\x00\xff", "short as"),
        (b"\x5f\xff", "indefinite"),
        (b"\xc0\x00", "kind of value"),
        (b"\xf5", "kind of value"),
        (b"\x61\xff", "not UTF-8"),
        (b"\x42\x00", "cut short"),
        (b"\xa2\x02\x00\x01\x00", "in order"),
        (b"\xa2\x01\x00\x01\x00", "in order"),
        (b"\xa1\x41\x00\x00", "neither number"),
        (b"\x9a\xff\xff\xff\xff", "a list of more"),
        (b"\xba\xff\xff\xff\xff", "a map of more"),
        (b"\x81" * 64 + b"\x00", "nested"),
        (bytes(cbor.LONGEST + 1), "more than"),
        (b"", "cut short"),
    ],
)
def test_what_encode_would_not_have_written_is_refused(written: bytes, why: str) -> None:
    with pytest.raises(BadPacket, match=why):
        cbor.decode_untrusted(written)


@pytest.mark.parametrize(("value", "error"), [(1.5, TypeError), (object(), TypeError), (1 << 64, ValueError)])
def test_what_no_lock_has_is_not_written(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        cbor.encode(value)


@pytest.mark.parametrize(
    ("value", "take"),
    [
        ([], lambda fields: None),
        ({1: "x"}, lambda fields: fields.number(1)),
        ({1: 9}, lambda fields: fields.number(1, 8)),
        ({}, lambda fields: fields.number(1)),
        ({1: b"four"}, lambda fields: fields.octets(1, 3)),
        ({1: 7}, lambda fields: fields.octets(1)),
        ({1: b"x"}, lambda fields: fields.items(1)),
        ({1: []}, lambda fields: fields.some_items(1)),
        ({1: None}, lambda fields: fields.some_value(1)),
        ({1: {}}, lambda fields: fields.some_texts(1)),
        ({1: {"a": 1}}, lambda fields: fields.some_texts(1)),
        ({1: 0}, lambda fields: fields.end()),
    ],
)
def test_fields_of_the_wrong_kind_and_fields_nobody_takes_are_refused(
    value: Any, take: Callable[[cbor.Fields], Any]
) -> None:
    with pytest.raises(BadPacket, match="a thing"):
        take(cbor.Fields(value, "a thing"))


def test_fields_that_are_left_out_are_nothing() -> None:
    fields = cbor.Fields({9: None}, "a thing")
    assert (fields.some_number(1), fields.some_octets(2), list(fields.some_items(3))) == (None, None, [])
    assert (fields.some_value(4), fields.some_texts(5), fields.null_or_octets(9, 32)) == (None, {}, None)
    fields.end()
