"""Parts of a file in HTTP's words: `Content-Range` of a PUT, `Range` of a GET. RFC 9110, sections 14.1 to 14.5.

Owns what the headers say. Knows neither requests nor files.
"""

from __future__ import annotations

import re

from ts_base.errors import BadPacket

LONGEST = 64  # characters; two numbers and a few words
_CONTENT = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19})")
_ASKED = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")


def decode_content_range_untrusted(text: str, size: int) -> tuple[int, int]:
    """First byte and the one after the last, of a file of `size`. `*/size` is the empty part at its end."""
    match = _CONTENT.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        raise BadPacket("Content-Range is not of the form bytes FIRST-LAST/SIZE")
    first, last, whole = match.groups()
    if int(whole) != size:
        raise BadPacket("Content-Range speaks of a file of another size")
    if first is None:
        return size, size
    if not int(first) <= int(last) < size:  # RFC 9110, 14.4: such a range is invalid and must not be used
        raise BadPacket("Content-Range does not lie inside the file")
    return int(first), int(last) + 1


def encode_content_range(first: int, end: int, size: int) -> str:
    return f"bytes {first}-{end - 1}/{size}" if end > first else f"bytes */{size}"


def decode_range_untrusted(text: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None when all of the file is to be sent.

    What is not one range of bytes is as if it were not there (RFC 9110, 14.2); one that lies behind the end is
    BadPacket, to be answered by 416.
    """
    match = _ASKED.fullmatch(text) if len(text) <= LONGEST else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # the last so many bytes
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None  # RFC 9110, 14.1.1: invalid, and so ignored
    if start >= end:
        raise BadPacket("Range lies behind the end of the file")
    return start, end


def encode_range(first: int, end: int) -> str:
    return f"bytes={first}-{end - 1}"
