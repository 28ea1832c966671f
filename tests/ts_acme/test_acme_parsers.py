"""What is read of others: addresses, times, keys, pairs of files, and the first message of a TLS client."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from acme_scripts import START, World
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from ts_acme import messages
from ts_acme.chains import chain_untrusted, matching_key_untrusted
from ts_acme.messages import Problem, Reply
from ts_acme.signing import ENTROPY_LENGTH, LARGEST_KEY, key_text, key_untrusted, new_key
from ts_base.errors import BadPacket

WHERE = "https://acme.test/dir"


def reply(**fields: object) -> Reply:
    return Reply(200, {}, json.dumps(fields).encode())


def test_retry_after_is_seconds_or_a_date() -> None:
    later = format_datetime(datetime.fromtimestamp(START + 120, UTC), usegmt=True)
    for text, moment in (
        ("30", START + 30),
        (later, START + 120),
        (later.replace("GMT", "-0000"), START + 120),
        ("Mon, 01 Jan 1990 00:00:00 GMT", START),
        ("9" * 40, START + messages.LONGEST_PAUSE),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("Mon, 99 Foo 9999 99:99:99 GMT", None),
    ):
        assert messages.retry_after_untrusted(Reply(200, {"retry-after": text}), START) == moment, text


def test_problems_are_one_short_line() -> None:
    told = {"type": "urn:ietf:params:acme:error:caa", "detail": "a\x1b[31m\nb" + "c" * 500}
    found = messages.problem_untrusted(reply(**told))
    assert found.kind == "caa"
    assert found.words.startswith("a [31m bccc")
    assert len(found.words) <= messages.LONGEST_WORDS
    inner = {"type": "about:blank", "subproblems": [{"type": "x", "detail": "the first of them"}]}
    assert messages.problem_untrusted(reply(**inner)).words == "the first of them"
    assert [str(Problem("a", "")), str(Problem("", "b")), str(Problem("a", "b"))] == ["a", "b", "a: b"]
    nested: dict[str, object] = {"type": "x"}
    for _ in range(50):
        nested = {"subproblems": [nested]}
    assert messages.problem_untrusted(reply(**nested)) == Problem("", "")


@pytest.mark.parametrize(
    ("window", "sentence"),
    [
        (None, "without a window"),
        ({"start": "2027-01-02T04:00:00Z"}, "without end"),
        ({"start": "2027-01-02T04:00:00Z", "end": "2027-01-02T04:00:00Z"}, "ends before it begins"),
        ({"start": "2027-01-02T04:00:00", "end": "2027-01-03T04:00:00Z"}, "without start"),
        ({"start": "yesterday", "end": 7}, "without start"),
    ],
)
def test_renewal_windows_that_are_none_are_refused(window: object, sentence: str) -> None:
    with pytest.raises(BadPacket, match=sentence):
        messages.window_untrusted(reply(suggestedWindow=window), START, 60.0)


def test_answers_without_what_they_need_are_refused() -> None:
    good = {"status": "pending", "finalize": "https://acme.test/f", "authorizations": []}
    assert messages.order_untrusted(reply(**good), WHERE).certificate == ""
    for spoilt in ({"status": ""}, {"status": 7}, {"authorizations": None}, {"finalize": "https://[::1"}):
        with pytest.raises(BadPacket):
            messages.order_untrusted(reply(**{**good, **spoilt}), WHERE)
    for name in (7, "", "a/b", "-a"):
        found = {"status": "pending", "identifier": {"type": "dns", "value": name}, "challenges": []}
        with pytest.raises(BadPacket, match="for no name"):
            messages.authorization_untrusted(reply(**found), WHERE)
    found = {"status": "pending", "identifier": {"type": "dns", "value": "a.test"}, "challenges": [7]}
    with pytest.raises(BadPacket, match="no object"):
        messages.authorization_untrusted(reply(**found), WHERE)


def test_keys_of_accounts_are_p256_and_nothing_else() -> None:
    key = new_key(bytes(range(ENTROPY_LENGTH)))
    assert key_untrusted(key_text(key)).private_numbers() == key.private_numbers()
    with pytest.raises(ValueError, match="bytes of entropy"):
        new_key(b"short")
    other = ec.generate_private_key(ec.SECP384R1())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    for text in (key_text(other), locked, b"", b"nonsense", bytes(LARGEST_KEY + 1)):
        with pytest.raises(BadPacket, match="no P-256 key"):
            key_untrusted(text)


def test_key_of_a_pair_is_of_any_kind_but_the_chains() -> None:
    world = World()
    key = new_key(world.entropy(ENTROPY_LENGTH))
    chain = chain_untrusted(world.server.authority.issue(key.public_key(), ["a.test"], 60.0))
    assert b"BEGIN PRIVATE KEY" in matching_key_untrusted(key_text(key), chain)
    strange = [rsa.generate_private_key(65537, 1024), ed448.Ed448PrivateKey.generate()]
    others = [one.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for one in strange]
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    for text, sentence in (
        (others[0], "not the certificate's"),
        (others[1], "not the certificate's"),
        (locked, "with a password"),
        (b"nonsense", "no private key"),
        (bytes(LARGEST_KEY + 1), "of more than"),
    ):
        with pytest.raises(BadPacket, match=sentence):
            matching_key_untrusted(text, chain)
