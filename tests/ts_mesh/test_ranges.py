"""Content-Range and Range. RFC 9110, sections 14.1 to 14.5."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_mesh import ranges

SIZE = 100


@pytest.mark.parametrize(
    ("text", "span"),
    [("bytes 0-99/100", (0, 100)), ("bytes 99-99/100", (99, 100)), ("bytes */100", (100, 100))],
)
def test_content_range_inside_the_file(text: str, span: tuple[int, int]) -> None:
    assert ranges.decode_content_range_untrusted(text, SIZE) == span
    assert ranges.encode_content_range(*span, SIZE) == text


@pytest.mark.parametrize(
    "text",
    [
        "bytes 0-100/100",  # beyond the end
        "bytes 100-100/100",
        "bytes 5-4/100",
        "bytes -5-9/100",
        "bytes 0-99/101",  # of another file
        "bytes 0-99/*",
        "bytes 0-9,20-29/100",
        "bytes=0-99",
        "items 0-99/100",
        "bytes 0-" + "9" * 30 + "/100",
        "bytes ٠-٩/100",
        "",
    ],
)
def test_content_range_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(BadPacket):
        ranges.decode_content_range_untrusted(text, SIZE)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=0-1000", (0, 100)),
        ("bytes=-", None),
        ("bytes=9-5", None),
        ("bytes=0-1,5-6", None),
        ("lines=0-9", None),
        ("", None),
    ],
)
def test_range_as_the_rfc_reads_it(text: str, span: tuple[int, int] | None) -> None:
    assert ranges.decode_range_untrusted(text, SIZE) == span


@pytest.mark.parametrize("text", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_range_behind_the_end_cannot_be_satisfied(text: str) -> None:
    with pytest.raises(BadPacket):
        ranges.decode_range_untrusted(text, SIZE)


@given(st.integers(0, 99), st.integers(1, 100))
def test_range_says_what_was_meant(start: int, length: int) -> None:
    end = min(start + length, SIZE)
    assert ranges.decode_range_untrusted(ranges.encode_range(start, end), SIZE) == (start, end)
