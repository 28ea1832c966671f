"""Envelopes: Truffle's own, ours, and every one that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_mesh.envelope import (
    Envelope,
    decode_binary_untrusted,
    decode_payload,
    decode_text_untrusted,
    encode_envelope,
    is_namespace,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "truffle.json").read_text())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_envelope_of_truffle_is_read() -> None:
    found = decode_text_untrusted(json.dumps(VECTORS["envelope_message"]))
    assert (found.namespace, found.msg_type, found.timestamp) == ("chat", "message", 1752675000000)
    assert decode_payload(found, None) == VECTORS["envelope_message"]["payload"]
    assert decode_payload(found, None)["huge"] == (1 << 64) - 1


def test_bytes_of_truffle_are_read() -> None:
    found = decode_text_untrusted(json.dumps(VECTORS["envelope_bytes"]))
    assert found.raw == b"hello truffle"
    assert decode_payload(found, None) == b"hello truffle"


def test_what_truffle_does_not_know_either_is_left_alone() -> None:
    found = decode_text_untrusted(json.dumps(VECTORS["envelope_unknown_fields"]))
    assert decode_payload(found, None) == {"text": "forward compat"}
    assert (found.n, found.re, found.ask) == (0, 0, False)


def test_envelope_of_ours_is_one_of_truffles() -> None:
    """Without numbers it has no other keys; bytes are wrapped as theirs are."""
    plain = Envelope("chat", "message", msgspec.Raw(b'{"text":"hello"}'), 1752675000000)
    assert json.loads(encode_envelope(plain, binary=True)).keys() == VECTORS["envelope_message"].keys()
    wrapped = Envelope("ft", "bytes", timestamp=1752675000000, raw=b"hello truffle")
    assert json.loads(encode_envelope(wrapped, binary=False)) == VECTORS["envelope_bytes"]


@given(
    payload=JSON,
    raw=st.none() | st.binary(max_size=20),
    n=st.integers(0, (1 << 53) - 1),
    timestamp=st.none() | st.integers(0, (1 << 64) - 1),
    ask=st.booleans(),
    binary=st.booleans(),
)
def test_envelope_is_read_as_it_was_written(
    payload: Any, raw: bytes | None, n: int, timestamp: int | None, ask: bool, binary: bool
) -> None:
    kept = None if raw is not None else msgspec.Raw(msgspec.json.encode(payload))
    written = Envelope("chat", "message" if raw is None else "bytes", kept, timestamp, n, 0, ask, raw)
    frame = encode_envelope(written, binary=binary)
    found = decode_text_untrusted(frame) if isinstance(frame, str) else decode_binary_untrusted(frame)
    assert (found.namespace, found.msg_type, found.timestamp, found.n, found.ask, found.raw) == (
        *("chat", written.msg_type, timestamp, n, ask, raw),
    )
    assert decode_payload(found, None) == (payload if raw is None else raw)


def envelope(n: int = 1, payload: Any = None, **changes: Any) -> dict[str, Any]:
    return {"namespace": "chat", "msg_type": "message", "payload": payload, "n": n, **changes}


def nested(depth: int) -> str:
    return json.dumps(envelope()).replace("null", "[" * depth + "]" * depth)


BAD = {
    "depth 65": nested(65),
    "depth 100,000": nested(100_000),
    "n of 64 bits": json.dumps(envelope((1 << 64) - 1)),
    "n below zero": json.dumps(envelope(-1)),
    "n jumps by 2^63": json.dumps(envelope(1 << 63)),
    "NaN": json.dumps(envelope()).replace("null", "NaN"),
    "lone surrogate": json.dumps(envelope()).replace("null", '"\\ud800"'),
    "no namespace": json.dumps(envelope(namespace="")),
    "namespace too long": json.dumps(envelope(namespace="x" * 65)),
    "namespace in capitals": json.dumps(envelope(namespace="CHAT")),
    "no msg_type": json.dumps(envelope(msg_type="")),
    "asks and answers": json.dumps(envelope(ask=True, re=1)),
    "no JSON": "hello",
    "an array": "[]",
    "timestamp below zero": json.dumps(envelope(timestamp=-1)),
    "bytes that are no base64": json.dumps(envelope(msg_type="bytes", payload={"encoding": "base64", "data": "?"})),
    "header longer than the frame": b"\x00\x00\x01\x00{}",
    "header longer than 4 KiB": b"\x00\x00\x10\x01" + b" " * 5000,
    "no header at all": b"\x00\x00",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_envelope_that_breaks_the_rules_is_refused(bad: str | bytes) -> None:
    with pytest.raises(BadPacket):
        decode_binary_untrusted(bad) if isinstance(bad, bytes) else decode_text_untrusted(bad)


def test_envelope_may_be_64_deep() -> None:
    assert decode_payload(decode_text_untrusted(nested(64)), None) is not None
    many = json.dumps(envelope(payload=[[]] * 100))  # many, but not inside each other
    assert decode_payload(decode_text_untrusted(many), None) == [[]] * 100


def test_the_last_of_a_key_given_twice_counts() -> None:
    assert decode_text_untrusted(json.dumps(envelope())[:-1] + ', "n": 9}').n == 9


def test_a_payload_is_read_as_the_type_that_is_asked_for() -> None:
    numbers = msgspec.json.Decoder(list[int])
    assert decode_payload(decode_text_untrusted(json.dumps(envelope(payload=[1, 2]))), numbers) == [1, 2]
    with pytest.raises(BadPacket, match=r"\$\[1\]"):
        decode_payload(decode_text_untrusted(json.dumps(envelope(payload=[1, "2"]))), numbers)
    with pytest.raises(BadPacket, match="bytes"):
        decode_payload(Envelope("chat", "bytes", raw=b"x"), numbers)


@pytest.mark.parametrize("name", ["chat", "ss:presence", "a", "x" * 64, "0.1-2_3"])
def test_a_namespace_is_short_and_plain(name: str) -> None:
    assert is_namespace(name)


@pytest.mark.parametrize("name", ["", "_", "_f", "Chat", "x" * 65, "a b", "chat\n", "ü"])
def test_a_namespace_is_nothing_else(name: str) -> None:
    assert not is_namespace(name)
