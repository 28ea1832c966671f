"""A file as blocks of 4 MiB: their hashes, the root over them, the runs in which two copies differ, and the journal.

Pure arithmetic and text. Reads no file and computes no hash but the root's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ts_base.errors import BadPacket

BLOCK = 4 << 20
HASH = 32  # bytes of a SHA-256
LARGEST_FILE = 1 << 42  # 4 TiB: a million blocks
JOURNAL_VERSION = 1
LONGEST_HEADER = 64 << 10

Hashes = Sequence[bytes | None]
"""One entry a block; None where it is not known. A shorter list knows nothing of the rest."""


class Run(NamedTuple):
    """Neighbouring blocks: from block `first` up to and without `last`."""

    first: int
    last: int

    def span(self, size: int) -> tuple[int, int]:
        """The bytes it covers of a file of `size`."""
        return self.first * BLOCK, min(self.last * BLOCK, size)


def count_blocks(size: int) -> int:
    return -(-size // BLOCK)


def block_length(size: int, block: int) -> int:
    return min(BLOCK, size - block * BLOCK)


def root_of(hashes: Sequence[bytes]) -> bytes:
    """SHA-256 over all block hashes, in order."""
    return hashlib.sha256(b"".join(hashes)).digest()


def complete(hashes: Hashes, size: int) -> list[bytes] | None:
    """All hashes of a file of `size`, or None while one is missing."""
    known = [each for each in hashes if each is not None]
    return known if len(known) == len(hashes) == count_blocks(size) else None


def differing(mine: Hashes, theirs: Hashes, size: int) -> list[Run]:
    """The runs that have to travel: where the copies differ, or one of the two is not known."""
    return runs(block for block in range(count_blocks(size)) if not is_same(mine, theirs, block))


def is_same(mine: Hashes, theirs: Hashes, block: int) -> bool:
    known = at(mine, block)
    return known is not None and known == at(theirs, block)


def at(hashes: Hashes, block: int) -> bytes | None:
    return hashes[block] if block < len(hashes) else None


def runs(blocks: Iterator[int]) -> list[Run]:
    """Ascending block numbers as runs of neighbours."""
    found: list[Run] = []
    for block in blocks:
        if found and found[-1].last == block:
            found[-1] = Run(found[-1].first, block + 1)
        else:
            found.append(Run(block, block + 1))
    return found


# --- the journal -----------------------------------------------------------------------------------


class JournalKey(NamedTuple):
    """Whose file an unfinished one is: what is resumed must agree in all of it."""

    sender: str
    """Stable id of the node that sends it."""
    path: str
    size: int
    mtime_ns: int


class Seal(NamedTuple):
    """What the unfinished file looked like when its writer let go of it: one that looks the same was not touched."""

    inode: int
    mtime_ns: int


class Journal(NamedTuple):
    key: JournalKey
    hashes: list[bytes | None]
    seal: Seal | None
    """None when the writer never came to let go: it was killed, or the machine stopped."""


def encode_header(key: JournalKey) -> bytes:
    fields = {"journal": JOURNAL_VERSION, **key._asdict()}
    return json.dumps(fields, ensure_ascii=True).encode() + b"\n"


def encode_block(block: int, digest: bytes | None) -> bytes:
    """None: what was said of the block before is no longer true."""
    return b"%d %s\n" % (block, digest.hex().encode() if digest is not None else b"-")


def encode_seal(seal: Seal) -> bytes:
    return b"seal %d %d\n" % seal


def longest_journal(size: int) -> int:
    """No honest journal of a file of `size` is longer: each block a few times, a seal for every time it was resumed."""
    return LONGEST_HEADER + 320 * (count_blocks(size) + 1000)


def decode_journal_untrusted(text: bytes) -> Journal:
    """What was written; a last line that was cut short is as if it had not been begun."""
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    if not lines or len(lines[0]) > LONGEST_HEADER:
        raise BadPacket("a journal has no header")
    key = _decode_header(lines[0])
    blocks = count_blocks(key.size)
    hashes: list[bytes | None] = []
    seal = None
    for line in lines[1:]:
        if line.startswith(b"seal "):
            seal = Seal(*_numbers(line[5:], 2))
            continue
        number, _, digest = line.partition(b" ")
        (block,) = _numbers(number, 1)
        if not 0 <= block < blocks:
            raise BadPacket("a journal names a block that the file has not")
        hashes += [None] * (block + 1 - len(hashes))
        hashes[block] = decode_hash_untrusted(digest.decode("latin-1")) if digest != b"-" else None
        seal = None  # whoever wrote after it has not let go again
    return Journal(key, hashes, seal)


def decode_hash_untrusted(text: str) -> bytes:
    if len(text) != 2 * HASH or not text.isascii():
        raise BadPacket("a hash is not 64 digits")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise BadPacket("a hash is not hexadecimal") from None


def _decode_header(line: bytes) -> JournalKey:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise BadPacket("the header of a journal is no JSON") from None
    if not isinstance(fields, dict) or fields.get("journal") != JOURNAL_VERSION:
        raise BadPacket("it is not a journal of this version")
    sender, path, size, mtime = (fields.get(name) for name in JournalKey._fields)
    if type(sender) is not str or type(path) is not str or type(size) is not int or type(mtime) is not int:
        raise BadPacket("the header of a journal misses a field")
    if not 0 <= size <= LARGEST_FILE:
        raise BadPacket("a journal is of a file larger than any")
    return JournalKey(sender, path, size, mtime)


def _numbers(text: bytes, count: int) -> list[int]:
    words = text.split(b" ")
    if len(words) != count or not all(word.lstrip(b"-").isdigit() and len(word) <= 20 for word in words):
        raise BadPacket("a line of a journal is damaged")
    try:
        return [int(word) for word in words]
    except ValueError:
        raise BadPacket("a line of a journal is damaged") from None
