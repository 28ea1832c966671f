"""What peers say in Taildrop: names in paths, ranges, lengths, hashes of blocks. The first byte chooses."""

from __future__ import annotations

from collections.abc import Callable

from tailscale.taildrop import names, wire
from ts_base.errors import BadPacket


def _name(data: bytes) -> None:
    name = names.decode_name_untrusted(data.decode("latin-1"))
    assert name == names.decode_name_untrusted(names.encode_name(name))
    assert name not in ("", ".", "..")
    assert not set("/\\\0") & set(name)
    assert not names.is_partial(name)
    for key in (names.key_of(name), names.key_of("")):
        partial = names.partial_name(name, key)
        assert names.is_partial(partial, key)
        assert len(partial.encode()) <= 255
    for attempt in (1, 999):
        other = names.renamed(name, attempt)
        assert other != name
        assert len(other.encode()) <= 255
        assert not names.objection_to_name(other), other


def _blocks(data: bytes) -> None:
    whole, pieces = wire.Blocks(), wire.Blocks()
    at_once = list(whole.receive_untrusted(data))
    one_by_one = [block for at in range(len(data)) for block in pieces.receive_untrusted(data[at : at + 1])]
    assert at_once == one_by_one
    assert all(0 <= block.size <= wire.BLOCK and len(block.digest) == 32 for block in at_once)


def _offset(data: bytes) -> None:
    assert 0 <= wire.decode_offset_untrusted(data.decode("latin-1")) <= wire.LARGEST


def _length(data: bytes) -> None:
    length = wire.decode_length_untrusted(data.decode("latin-1"))
    assert length is None or 0 <= length <= wire.LARGEST


def _block(data: bytes) -> None:
    assert len(wire.decode_block_untrusted(data).digest) == 32


PARSERS: dict[bytes, Callable[[bytes], None]] = {b"n": _name, b"b": _blocks, b"o": _offset, b"l": _length, b"k": _block}


def fuzz_one(data: bytes) -> None:
    try:
        PARSERS.get(data[:1], _name)(data[1:])
    except BadPacket:
        return


def seeds() -> list[bytes]:
    told = ("a.tar.gz", "%C3%A9%20b", "e%CC%81", "CON", "..", "a%2Fb", "%252e", ".hidden", "x.partial", "y" * 255)
    return [
        *(b"n" + name.encode() for name in told),
        b"b" + wire.encode_block(b"x" * 65536) + wire.encode_block(b"y"),
        b"k" + wire.encode_block(b"x"),
        b"obytes=196608-",
        b"obytes=0-5",
        b"l4294967296",
    ]
