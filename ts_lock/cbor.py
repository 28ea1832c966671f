"""The little CBOR that a lock is written in: unsigned integers, bytes, text, lists, maps and null, one spelling each.

Owns: the canonical form (RFC 8949 section 4.2.3, the length-first order of CTAP2) and its limits. Refuses to know:
what a map means. Floats, tags, booleans, negative numbers and indefinite lengths do not occur, and are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ts_base.errors import BadPacket

LONGEST = 1 << 20  # bytes of one value
MAX_NESTING = 16
MAX_LIST = 4096
MAX_PAIRS = 1024

_UNSIGNED, _BYTES, _TEXT, _LIST, _MAP = 0, 2, 3, 4, 5
_NULL = 0xF6
_FOLLOWING = {24: 1, 25: 2, 26: 4, 27: 8}  # the low five bits of a head: how many bytes of number follow


def encode(value: Any) -> bytes:
    """The one canonical spelling."""
    out = bytearray()
    _write(out, value)
    return bytes(out)


def _write(out: bytearray, value: Any) -> None:
    if value is None:
        out.append(_NULL)
    elif isinstance(value, int):
        _write_head(out, _UNSIGNED, value)
    elif isinstance(value, bytes):
        _write_head(out, _BYTES, len(value))
        out += value
    elif isinstance(value, str):
        text = value.encode()
        _write_head(out, _TEXT, len(text))
        out += text
    elif isinstance(value, list | tuple):
        _write_head(out, _LIST, len(value))
        for each in value:
            _write(out, each)
    elif isinstance(value, dict):
        _write_head(out, _MAP, len(value))
        pairs = sorted(((encode(key), each) for key, each in value.items()), key=lambda pair: _order(pair[0]))
        for key, each in pairs:
            out += key
            _write(out, each)
    else:
        raise TypeError(f"{type(value).__name__} is not written in a lock")


def _order(key: bytes) -> tuple[int, int, bytes]:
    return key[0] >> 5, len(key), key


def _write_head(out: bytearray, kind: int, number: int) -> None:
    if number < 24:
        out.append(kind << 5 | number)
        return
    for low, length in _FOLLOWING.items():
        if number < 1 << (8 * length):
            out.append(kind << 5 | low)
            out += number.to_bytes(length, "big")
            return
    raise ValueError("a number of more than 64 bits")


def decode_untrusted(data: bytes) -> Any:
    """The value, or BadPacket for everything that `encode` would not have written exactly so."""
    if len(data) > LONGEST:
        raise BadPacket(f"more than {LONGEST} bytes")
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise BadPacket("bytes behind the value")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def value(self, depth: int) -> Any:
        kind, number = self._head()
        if kind == _UNSIGNED:
            return number
        if kind == _BYTES:
            return self._take(number)
        if kind == _TEXT:
            try:
                return self._take(number).decode()
            except UnicodeDecodeError:
                raise BadPacket("text that is not UTF-8") from None
        if kind == _NULL:
            return None
        if depth >= MAX_NESTING:
            raise BadPacket(f"nested more than {MAX_NESTING} deep")
        if kind == _LIST:
            if number > MAX_LIST:
                raise BadPacket(f"a list of more than {MAX_LIST}")
            return [self.value(depth + 1) for _ in range(number)]
        return self._map(number, depth)

    def _map(self, pairs: int, depth: int) -> dict[Any, Any]:
        if pairs > MAX_PAIRS:
            raise BadPacket(f"a map of more than {MAX_PAIRS} pairs")
        found: dict[Any, Any] = {}
        last = None
        for _ in range(pairs):
            start = self.at
            key = self.value(depth + 1)
            if not isinstance(key, int | str):
                raise BadPacket("a key of a map that is neither number nor text")
            order = _order(self.data[start : self.at])
            if last is not None and order <= last:
                raise BadPacket("keys of a map that are double or not in order")
            last = order
            found[key] = self.value(depth + 1)
        return found

    def _take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise BadPacket("cut short")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def _head(self) -> tuple[int, int]:
        first = self._take(1)[0]
        if first == _NULL:
            return _NULL, 0
        kind, low = first >> 5, first & 31
        if kind not in (_UNSIGNED, _BYTES, _TEXT, _LIST, _MAP):
            raise BadPacket("a kind of value that does not occur in a lock")
        if low < 24:
            return kind, low
        length = _FOLLOWING.get(low)
        if length is None:
            raise BadPacket("an indefinite length")
        number = int.from_bytes(self._take(length), "big")
        # RFC 8949, section 4.2.1: the shortest form of a number is the only one.
        if number < 24 or (length > 1 and number < 1 << (4 * length)):
            raise BadPacket("a number that is not as short as it can be")
        return kind, number


class Fields:
    """A map with small numbers as keys, taken apart field by field; what nobody took is refused."""

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise BadPacket(f"{what} is not a map")
        self._left = dict(value)
        self.what = what

    def number(self, key: int, largest: int = (1 << 64) - 1) -> int:
        value = self._taken(key)
        if type(value) is not int or value > largest:
            raise BadPacket(f"{self.what}: field {key} is no number in range")
        return value

    def some_number(self, key: int, largest: int = (1 << 64) - 1) -> int | None:
        return self.number(key, largest) if key in self._left else None

    def octets(self, key: int, length: int | None = None) -> bytes:
        value = self._taken(key)
        if not isinstance(value, bytes) or length not in (None, len(value)):
            raise BadPacket(f"{self.what}: field {key} is not bytes of the right length")
        return value

    def some_octets(self, key: int, length: int | None = None) -> bytes | None:
        return self.octets(key, length) if key in self._left else None

    def null_or_octets(self, key: int, length: int) -> bytes | None:
        if self._left.get(key, 0) is None:
            del self._left[key]
            return None
        return self.octets(key, length)

    def items(self, key: int) -> Sequence[Any]:
        value = self._taken(key)
        if not isinstance(value, list):
            raise BadPacket(f"{self.what}: field {key} is no list")
        return value

    def some_items(self, key: int) -> Sequence[Any]:
        """What is left out is empty, and what is empty is left out."""
        if key not in self._left:
            return ()
        found = self.items(key)
        if not found:
            raise BadPacket(f"{self.what}: field {key} is written and empty")
        return found

    def some_value(self, key: int) -> Any:
        """None where it is left out; what is null is not."""
        if key not in self._left:
            return None
        value = self._left.pop(key)
        if value is None:
            raise BadPacket(f"{self.what}: field {key} is null")
        return value

    def some_texts(self, key: int) -> dict[str, str]:
        if key not in self._left:
            return {}
        value = self._taken(key)
        if not isinstance(value, dict) or not value:
            raise BadPacket(f"{self.what}: field {key} is no map of texts")
        for name, text in value.items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise BadPacket(f"{self.what}: field {key} is no map of texts")
        return value

    def end(self) -> None:
        if self._left:
            raise BadPacket(f"{self.what} with fields that do not belong there")

    def _taken(self, key: int) -> Any:
        if key not in self._left:
            raise BadPacket(f"{self.what} without field {key}")
        return self._left.pop(key)
