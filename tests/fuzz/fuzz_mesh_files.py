"""Everything that is said about files: words, paths, hashes, ranges, journals, answers. The first byte chooses."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec

from tailscale.mesh.files_client import decode_answer, root_in
from ts_base.errors import BadPacket
from ts_mesh import blocks, names, offers, ranges, truffle
from ts_mesh.envelope import Envelope

SIZE = 9 * blocks.BLOCK + 5
KEY = blocks.JournalKey("nodeStable", "tree/leaf", SIZE, 1_700_000_000_000_000_000)


def _path(data: bytes) -> None:
    parts = names.decode_path_untrusted(data.decode("utf-8", "surrogatepass"))
    assert parts == names.decode_path_untrusted("/".join(parts))
    for part in parts:
        assert part == names.decode_name_untrusted(part)
        assert part not in ("", ".", "..")
        assert "/" not in part
        assert len(names.part_name(part, "0" * 32).encode()) + len(".journal.bad") <= 255
        assert len(names.renamed(part, 2).encode()) <= 255


def _range(data: bytes) -> None:
    text = data.decode("latin-1")
    asked = ranges.decode_range_untrusted(text, SIZE)
    assert asked is None or 0 <= asked[0] < asked[1] <= SIZE
    if asked is not None:
        assert ranges.decode_range_untrusted(ranges.encode_range(*asked), SIZE) == asked


def _content_range(data: bytes) -> None:
    start, end = ranges.decode_content_range_untrusted(data.decode("latin-1"), SIZE)
    assert 0 <= start <= end <= SIZE
    assert ranges.decode_content_range_untrusted(ranges.encode_content_range(start, end, SIZE), SIZE) == (start, end)


def _journal(data: bytes) -> None:
    journal = blocks.decode_journal_untrusted(data)
    text = blocks.encode_header(journal.key)
    text += b"".join(blocks.encode_block(number, digest) for number, digest in enumerate(journal.hashes))
    assert blocks.decode_journal_untrusted(text).hashes == journal.hashes


def _word(data: bytes) -> None:
    word, _, payload = data.partition(b" ")
    try:
        read = json.loads(payload)
    except (ValueError, RecursionError):
        return
    message = offers.decode_word_untrusted(word.decode("latin-1"), read)
    if isinstance(message, offers.Offer | offers.Found):
        offers.check_tree(message.entries)
    if isinstance(message, offers.Accept):
        for texts in message.have.values():
            hashes = offers.decode_have_untrusted(texts, SIZE)
            assert len(hashes) <= blocks.count_blocks(SIZE)


def _truffle(data: bytes) -> None:
    token = truffle.decode_asker_untrusted(Envelope("ft", "message", msgspec.Raw(data)))
    if token:
        said = msgspec.json.decode(truffle.refusal(token, "unsupported", 1).payload or b"")
        assert said == {"type": "reject", "token": token, "reason": "unsupported"}


def _answer(data: bytes) -> None:
    decode_answer(data)
    root = root_in({b"mesh-root": data})
    assert root is None or len(root) == blocks.HASH


PARSERS: dict[bytes, Callable[[bytes], None]] = {
    b"p": _path,
    b"n": lambda data: names.decode_name_untrusted(data.decode("utf-8", "replace")) and None,
    b"r": _range,
    b"c": _content_range,
    b"j": _journal,
    b"h": lambda data: blocks.decode_hash_untrusted(data.decode("latin-1")) and None,
    b"w": _word,
    b"a": _answer,
    b"t": _truffle,
}


def fuzz_one(data: bytes) -> None:
    parse = PARSERS.get(data[:1], _word)
    try:
        parse(data[1:])
    except BadPacket:
        return
    except UnicodeDecodeError:
        assert parse is _path  # what is no UTF-8 never was in JSON


def seeds() -> list[bytes]:
    digest = bytes(range(32))
    entry = offers.Entry("tree/leaf.txt", SIZE, 5, 0o755)
    spoken: list[offers.Word] = [
        *offers.offers_of("t", [entry, offers.Entry("tree", dir=True)]),
        *offers.accepts_of("t", "0" * 32, {0: [digest, None, digest]}),
        *offers.founds_of("t", "0" * 32, [entry], [("tree/link", "it is a symbolic link")]),
        offers.Reject("t", "declined"),
        offers.Want("t", "docs/a"),
        offers.End("t", 1),
    ]
    journal = blocks.encode_header(KEY) + blocks.encode_block(3, digest) + blocks.encode_seal(blocks.Seal(7, 9))
    return [
        *(b"w" + offers.word_of(word).encode() + b" " + offers.to_json(word) for word in spoken),
        b"j" + journal,
        *(b"p" + path.encode() for path in ("tree/leaf.txt", "../x", "C:\\x", "CON", "e\u0301/é", "a" * 300)),
        b't{"type":"offer","file_name":"a","size":1,"sha256":"","save_path":"","token":"t-1","tcp_port":0}',
        b"nnul.txt",
        b"rbytes=0-99",
        b"rbytes=-5",
        b"cbytes 0-4194303/37748741",
        b"cbytes */37748741",
        b"h" + digest.hex().encode(),
        b'a{"root":"' + digest.hex().encode() + b'","why":"blocks","blocks":[1,2]}',
    ]
