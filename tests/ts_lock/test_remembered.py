"""What is remembered of signatures between runs, and that nobody without the secret can add to it."""

from __future__ import annotations

import base64
from hashlib import blake2s

import pytest

from ts_base.errors import BadPacket
from ts_lock import remembered
from ts_lock.keys import LockPrivate
from ts_lock.remembered import Claim, Remembered
from ts_lock.signatures import NodeKeySignature, rotate, sign_node
from ts_lock.vouching import judge

ONE, OWN = LockPrivate(b"\1" * 32), LockPrivate(b"\7" * 32)
SECRET = b"\5" * 32


def key(number: int) -> bytes:
    return number.to_bytes(2, "big") * 16


def claim(number: int, signature: NodeKeySignature) -> Claim:
    return Claim(key(number), base64.b64encode(signature.encode()).decode())


DIRECT = claim(1, sign_node(ONE, key(1), None))
FIRST = sign_node(ONE, key(2), OWN.public)
ROTATED = claim(3, rotate(OWN, key(3), FIRST))


def knowing(*claims: Claim) -> Remembered:
    made = Remembered(SECRET)
    for each in claims:
        vouched = judge(each).vouched
        assert vouched is not None
        made.note(each, vouched)
    return made


def after_restart(entry: bytes, secret: bytes = SECRET) -> Remembered:
    made = Remembered(secret)
    made.read_untrusted(entry)
    return made


def test_verdict_is_the_same_after_a_restart() -> None:
    made = knowing(DIRECT, ROTATED)
    again = after_restart(made.entry([DIRECT, ROTATED]))
    assert not made.has_news
    assert not again.has_news
    for each in (DIRECT, ROTATED):
        assert again.recall(each) == judge(each).vouched


def test_another_key_or_another_signature_is_not_known() -> None:
    again = after_restart(knowing(DIRECT).entry([DIRECT]))
    assert again.recall(DIRECT._replace(key=key(9))) is None
    assert again.recall(DIRECT._replace(signature=DIRECT.signature[:-4])) is None
    assert again.recall(ROTATED) is None


def test_entry_holds_nodes_that_are_there_and_no_others() -> None:
    made = knowing(DIRECT, ROTATED)
    again = after_restart(made.entry([ROTATED, claim(8, sign_node(ONE, key(8), None))]))
    for each in (made, again):
        assert each.recall(DIRECT) is None
        assert each.recall(ROTATED) is not None


def test_entry_tampered_at_any_byte_or_of_another_device_is_not_read() -> None:
    entry = knowing(DIRECT, ROTATED).entry([DIRECT, ROTATED])
    changed = [
        entry[:at] + bytes([entry[at] ^ flip]) + entry[at + 1 :] for at in range(len(entry)) for flip in (1, 128)
    ]
    for each in [*changed, *(entry[:length] for length in range(len(entry))), entry + b" ", b"", b"{}"]:
        with pytest.raises(BadPacket):
            after_restart(each)
    with pytest.raises(BadPacket):
        after_restart(entry, b"\6" * 32)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"direct":[],"rotated":[]}',
        b'{"direct":{"00":""},"rotated":[]}',
        b'{"direct":{},"rotated":[1]}',
        b'{"direct":{},"rotated":[["00","00",["00"],null]]}',
        b'{"direct":{},"rotated":[["00","' + b"00" * 32 + b'",[' + b'"",' * 20 + b'""],null]]}',
    ],
)
def test_entry_of_another_version_is_not_read(body: bytes) -> None:
    with pytest.raises(BadPacket):
        after_restart(b'{"mac":"%s","verdicts":%s}' % (blake2s(body, key=SECRET).hexdigest().encode(), body))


def test_entry_is_worth_writing_when_losing_it_would_be_felt() -> None:
    made = Remembered(SECRET)
    vouched = judge(DIRECT).vouched
    assert vouched is not None
    claims = [DIRECT._replace(key=key(number)) for number in range(1000)]
    written = 0
    for each in claims:
        made.note(each, vouched)
        if made.is_worth_writing:
            written += 1
            made.entry(claims)
    assert 10 < written < 30


def test_entry_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "LARGEST", 10 * remembered.AS_TEXT)
    vouched = judge(DIRECT).vouched
    assert vouched is not None
    claims = [DIRECT._replace(key=key(number)) for number in range(20)]
    made = Remembered(SECRET)
    for each in claims:
        made.note(each, vouched)
    again = after_restart(made.entry(claims))
    assert sum(again.recall(each) is not None for each in claims) == 10


def test_what_is_forgotten_is_not_known_under_the_next_secret() -> None:
    made = knowing(DIRECT)
    entry = made.entry([DIRECT])
    made.forget(b"\6" * 32)
    assert made.recall(DIRECT) is None
    with pytest.raises(BadPacket):
        made.read_untrusted(entry)
