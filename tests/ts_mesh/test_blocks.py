"""Blocks, roots, what differs, and the journal."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_mesh import blocks
from ts_mesh.blocks import BLOCK, JournalKey, Run, Seal

SIZE = 5 * BLOCK + 7
KEY = JournalKey("nodeStable", "tree/leaf", SIZE, 1_700_000_000_123_456_789)
DIGESTS = [hashlib.sha256(bytes([n])).digest() for n in range(6)]
HASHES = st.lists(st.none() | st.sampled_from(DIGESTS), max_size=6)


def test_root_is_what_sha256sum_makes_of_the_block_hashes() -> None:
    joined = bytes.fromhex("".join(digest.hex() for digest in DIGESTS))
    assert blocks.root_of(DIGESTS) == hashlib.sha256(joined).digest()
    assert blocks.root_of([]) == hashlib.sha256(b"").digest()


@given(HASHES, HASHES)
def test_runs_cover_exactly_the_blocks_that_differ(mine: list[bytes | None], theirs: list[bytes | None]) -> None:
    def known(hashes: list[bytes | None], block: int) -> bytes | None:
        return hashes[block] if block < len(hashes) else None

    wanted = [b for b in range(6) if known(mine, b) is None or known(mine, b) != known(theirs, b)]
    found = blocks.differing(mine, theirs, SIZE)
    assert [b for run in found for b in range(*run)] == wanted
    assert all(one.last < other.first for one, other in itertools.pairwise(found))


def test_span_of_the_last_run_ends_with_the_file() -> None:
    assert Run(1, 2).span(SIZE) == (BLOCK, 2 * BLOCK)
    assert Run(4, 6).span(SIZE) == (4 * BLOCK, SIZE)
    assert blocks.block_length(SIZE, 5) == 7
    assert blocks.count_blocks(0) == 0
    assert blocks.count_blocks(BLOCK) == 1


def test_complete_only_with_every_hash() -> None:
    assert blocks.complete(DIGESTS, SIZE) == DIGESTS
    assert blocks.complete(DIGESTS[:5], SIZE) is None
    assert blocks.complete([*DIGESTS[:5], None], SIZE) is None
    assert blocks.complete([*DIGESTS, DIGESTS[0]], SIZE) is None
    assert blocks.complete([], 0) == []


def journal(*lines: bytes) -> bytes:
    return blocks.encode_header(KEY) + b"".join(lines)


def test_journal_says_what_was_written() -> None:
    read = blocks.decode_journal_untrusted(
        journal(blocks.encode_block(1, DIGESTS[1]), blocks.encode_block(3, DIGESTS[3]), blocks.encode_seal(Seal(7, 9)))
    )
    assert read == (KEY, [None, DIGESTS[1], None, DIGESTS[3]], Seal(7, 9))


def test_journal_without_its_last_word_is_not_sealed() -> None:
    sealed = journal(blocks.encode_block(0, DIGESTS[0]), blocks.encode_seal(Seal(7, 9)))
    assert blocks.decode_journal_untrusted(sealed + blocks.encode_block(1, DIGESTS[1])).seal is None


def test_journal_takes_back_what_it_said() -> None:
    text = journal(blocks.encode_block(0, DIGESTS[0]), blocks.encode_block(0, None))
    assert blocks.decode_journal_untrusted(text).hashes == [None]


@given(st.integers(0, 400))
def test_journal_that_was_cut_anywhere_says_less_and_nothing_else(length: int) -> None:
    whole = journal(*(blocks.encode_block(n, digest) for n, digest in enumerate(DIGESTS)))
    try:
        read = blocks.decode_journal_untrusted(whole[:length])
    except BadPacket:
        assert length <= len(blocks.encode_header(KEY)) - 1
        return
    assert read.hashes == DIGESTS[: len(read.hashes)]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no journal\n",
        b'{"journal": 2}\n',
        blocks.encode_header(KEY._replace(size=-1)),
        blocks.encode_header(KEY._replace(size=blocks.LARGEST_FILE + 1)),
        journal(b"6 " + b"0" * 64 + b"\n"),
        journal(b"-1 " + b"0" * 64 + b"\n"),
        journal(b"0 " + b"0" * 63 + b"\n"),
        journal(b"0 " + b"x" * 64 + b"\n"),
        journal(b"seal 1\n"),
        journal(b"1" * 21 + b" " + b"0" * 64 + b"\n"),
        journal(b"\n"),
    ],
)
def test_journal_that_makes_no_sense_is_refused(text: bytes) -> None:
    with pytest.raises(BadPacket):
        blocks.decode_journal_untrusted(text)
