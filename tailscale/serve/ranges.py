"""What of a file a request is answered with: conditions in the order of RFC 9110, 13.2.2, and ranges of its section 14.

Owns no file: takes its size, its tag and when it changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

MOST_RANGES = 64
RANGE = re.compile(r"(\d{0,19})-(\d{0,19})")
TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


class Facts(NamedTuple):
    """Of one file. `changed` is in whole seconds, as HTTP has dates."""

    size: int
    etag: str
    changed: int


class Piece(NamedTuple):
    """Bytes from `start` up to, not including, `end`."""

    start: int
    end: int

    def header(self, size: int) -> str:
        """Content-Range."""
        return f"bytes {self.start}-{self.end - 1}/{size}"


class Selection(NamedTuple):
    """The status of an answer, and which pieces it has: none are all of the file."""

    status: int
    pieces: tuple[Piece, ...] = ()


def select(method: str, headers: Mapping[str, str], facts: Facts) -> Selection:
    """What a GET or HEAD is answered with: 200, 206, 304, 412 or 416."""
    status = _by_conditions(headers, facts)
    if status != 200:
        return Selection(status)
    asked = headers.get("range")
    if method != "GET" or asked is None or not _is_if_range_true(headers.get("if-range"), facts):
        return Selection(200)
    return _by_range(asked, facts.size)


def _by_conditions(headers: Mapping[str, str], facts: Facts) -> int:
    if (wanted := headers.get("if-match")) is not None:
        if not _has_tag(wanted, facts.etag, is_weak=False):
            return 412
    elif (when := _seconds(headers.get("if-unmodified-since"))) is not None and facts.changed > when:
        return 412
    if (unwanted := headers.get("if-none-match")) is not None:
        return 304 if _has_tag(unwanted, facts.etag, is_weak=True) else 200
    when = _seconds(headers.get("if-modified-since"))
    return 304 if when is not None and facts.changed <= when else 200


def _has_tag(value: str, etag: str, *, is_weak: bool) -> bool:
    if value.strip() == "*":
        return True
    tags = TAG.findall(value)
    return etag in (tag.removeprefix("W/") for tag in tags) if is_weak else etag in tags


def _is_if_range_true(value: str | None, facts: Facts) -> bool:
    """RFC 9110, 13.1.5: a tag must be the same and strong, a date exactly that one."""
    if value is None:
        return True
    if value.lstrip().startswith(('"', "W/")):
        return value.strip() == facts.etag
    return _seconds(value) == facts.changed


def _seconds(value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return int(parsedate_to_datetime(value).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


def _by_range(asked: str, size: int) -> Selection:
    unit, equals, rest = asked.partition("=")
    words = [word.strip() for word in rest.split(",")]
    if unit.strip().lower() != "bytes" or not equals or len(words) > MOST_RANGES:
        return Selection(200)  # RFC 9110, 14.2: what is not understood is ignored
    pieces: list[Piece] = []
    for word in filter(None, words):
        found = RANGE.fullmatch(word)
        if found is None or found[1] == found[2] == "":
            return Selection(416)
        piece = _piece(found[1], found[2], size)
        if piece is None:
            return Selection(416)
        if piece.start < piece.end:
            pieces.append(piece)
    if not pieces:
        return Selection(416 if any(words) else 200)
    if sum(piece.end - piece.start for piece in pieces) > size:
        return Selection(200)  # who asks for more than there is wants to cost us something
    return Selection(206, tuple(pieces))


def _piece(first: str, last: str, size: int) -> Piece | None:
    """None for one that is none; empty for one beyond the end."""
    if not first:
        return Piece(max(size - int(last), 0), size)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        return Piece(0, 0)
    return Piece(start, min(int(last) + 1, size) if last else size)
