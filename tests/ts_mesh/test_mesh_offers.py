"""The words of the namespace `_f`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ts_base.errors import BadPacket
from ts_mesh import offers
from ts_mesh.blocks import BLOCK
from ts_mesh.offers import Accept, Entry, Found, Offer

TICKET = "0123456789abcdef" * 2
DIGEST = bytes(range(32))


def over_the_wire(message: offers.Word) -> offers.Word:
    return offers.decode_word_untrusted(offers.word_of(message), json.loads(offers.to_json(message)))


@pytest.mark.parametrize(
    "message",
    [
        Offer("t", [Entry("tree", dir=True), Entry("tree/leaf", 5, -7, 0o755)], 5),
        Accept("t", TICKET, {3: [DIGEST.hex(), ""]}),
        Found("t", TICKET, [Entry("a")], skipped=[("link", "it is a symbolic link")]),
        offers.Reject("t", "busy"),
        offers.Want("t", "docs/a"),
        offers.End("t", 3),
        offers.Still("t"),
    ],
)
def test_words_arrive_as_they_were_said(message: offers.Word) -> None:
    assert over_the_wire(message) == message


def entry(**fields: Any) -> dict[str, Any]:
    return {"token": "t", "entries": [{"path": "a", **fields}]}


@pytest.mark.parametrize(
    ("word", "payload"),
    [
        ("offer", None),
        ("offer", []),
        ("offer", {"entries": []}),
        ("offer", {"token": "", "entries": []}),
        ("offer", {"token": "a b", "entries": []}),
        ("offer", {"token": "x" * 65, "entries": []}),
        ("offer", entry(path="../x")),
        ("offer", entry(path="C:\\x")),
        ("offer", entry(path="CON")),
        ("offer", entry(path="a\0b")),
        ("offer", entry(path=7)),
        ("offer", entry(size=-1)),
        ("offer", entry(size=1 << 63)),
        ("offer", entry(size=1.5)),
        ("offer", entry(mtime_ns=1 << 64)),
        ("offer", entry(mode=-1)),
        ("offer", entry(dir=True, size=1)),
        ("offer", {"token": "t", "entries": [{"path": f"{n}"} for n in range(offers.ENTRIES_A_MESSAGE + 1)]}),
        ("accept", {"token": "t", "ticket": "short"}),
        ("accept", {"token": "t", "ticket": TICKET, "have": {"-1": []}}),
        ("accept", {"token": "t", "ticket": TICKET, "have": {"0": [""] * (offers.HASHES_A_MESSAGE + 1)}}),
        ("reject", {"token": "t", "why": "x" * 65}),
        ("want", {"token": "t", "path": "/etc/passwd"}),
        ("teleport", {"token": "t"}),
    ],
)
def test_word_that_breaks_the_rules_is_refused(word: str, payload: object) -> None:
    with pytest.raises(BadPacket):
        offers.decode_word_untrusted(word, payload)


def test_unknown_keys_are_left_alone() -> None:
    heard = offers.decode_word_untrusted("reject", {"token": "t", "why": "busy", "since": 3})
    assert heard == offers.Reject("t", "busy")


def test_names_arrive_in_nfc_and_twins_are_found() -> None:
    heard = over_the_wire(Offer("t", [Entry("e\u0301"), Entry("\u00e9")]))
    assert isinstance(heard, Offer)
    assert [each.path for each in heard.entries] == ["\u00e9", "\u00e9"]
    with pytest.raises(BadPacket, match="the same name"):
        offers.check_tree(heard.entries)


@pytest.mark.parametrize(
    "entries",
    [
        [Entry("a"), Entry("a/b")],
        [Entry("a/b/c"), Entry("a/b")],
        [Entry("a", dir=True), Entry("a")],
        [Entry("a", dir=True), Entry("a", dir=True)],
    ],
)
def test_tree_in_which_a_file_has_insides_is_refused(entries: list[Entry]) -> None:
    with pytest.raises(BadPacket):
        offers.check_tree(entries)


def test_a_million_entries_are_too_many() -> None:
    with pytest.raises(BadPacket, match="entries"):
        offers.check_tree([Entry("a")] * 1_000_000)


def test_a_large_offer_takes_several_messages() -> None:
    entries = [Entry(f"tree/{number}", 1) for number in range(10_000)]
    parts = offers.offers_of("t", entries)
    assert [part.more for part in parts] == [True, True, False]
    assert [each for part in parts for each in part.entries] == entries
    assert {part.total for part in parts} == {10_000}
    assert all(len(offers.to_json(part)) < 1 << 20 for part in parts)
    assert [part.more for part in offers.founds_of("t", TICKET, [], [])] == [False]


def test_hashes_of_a_large_file_go_on_in_the_next_message() -> None:
    many = [DIGEST, None] * 10_000
    size = len(many) * BLOCK
    together: list[bytes | None] = []
    parts = offers.accepts_of("t", TICKET, {0: [], 5: many})
    for part in parts:
        heard = over_the_wire(part)
        assert isinstance(heard, Accept)
        together += offers.decode_have_untrusted(heard.have.get(5, []), size)
    assert together == many[:-1]  # what is not known at the end need not be said
    assert len(parts) == 3
    assert [part.more for part in parts] == [True, True, False]


def test_hashes_of_blocks_that_the_file_has_not_are_refused() -> None:
    with pytest.raises(BadPacket):
        offers.decode_have_untrusted([DIGEST.hex()] * 2, BLOCK)
    with pytest.raises(BadPacket):
        offers.decode_have_untrusted(["zz" * 32], BLOCK)
