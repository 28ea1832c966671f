"""Lines of styled pieces, and tables that fit a width: what pages are made of. Knows neither textual nor the daemon."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from tailscale.tui.words import fit, safe, width_of

Piece = tuple[str, str]  # text and a style: words of "bold dim red green yellow cyan blue magenta reverse"
Line = list[Piece]
GAP = 2


class Column(NamedTuple):
    """One of a table. The higher `rank` is, the sooner it goes where there is no room; rank 0 always stays."""

    title: str
    width: int
    rank: int = 0
    is_right: bool = False
    share: int = 0
    """How much of what is left it takes, beside others that take some."""


class Row(NamedTuple):
    """One line of a table, and what it stands for."""

    key: Hashable
    cells: Sequence[Piece]


def widths(columns: Sequence[Column], width: int) -> dict[int, int]:
    """The columns that fit, and how wide each is."""
    kept = list(range(len(columns)))

    def need() -> int:
        return sum(columns[one].width for one in kept) + GAP * (len(kept) - 1)

    while need() > width and any(columns[one].rank for one in kept):
        kept.remove(max(kept, key=lambda one: columns[one].rank))
    left, shares = max(0, width - need()), sum(columns[one].share for one in kept)
    return {one: columns[one].width + (left * columns[one].share // shares if shares else 0) for one in kept}


def table_line(columns: Sequence[Column], kept: dict[int, int], cells: Sequence[Piece]) -> Line:
    line: Line = []
    for one, width in kept.items():
        if line:
            line.append((" " * GAP, ""))
        text, style = cells[one]
        line.append((fit(safe(text), width, right=columns[one].is_right), style))
    return line


def header_line(columns: Sequence[Column], kept: dict[int, int]) -> Line:
    return table_line(columns, kept, [(column.title, "dim") for column in columns])


def cut(line: Line, width: int) -> Line:
    """Not wider than the screen."""
    kept: Line = []
    for text, style in line:
        room = width - sum(width_of(piece) for piece, _ in kept)
        if width_of(text) > room:
            return [*kept, (fit(text, room), style)] if room > 0 else kept
        kept.append((text, style))
    return kept


def wrapped(text: str, width: int, style: str = "", indent: str = "") -> list[Line]:
    """A sentence over several lines, at spaces."""
    lines: list[Line] = []
    row = indent
    for word in safe(text).split():
        if width_of(row) + 1 + width_of(word) > width and row.strip():
            lines.append([(row, style)])
            row = indent
        row += word if row == indent else f" {word}"
    return [cut(line, width) for line in [*lines, [(row, style)]]]


def beside(left: Line, right: Line, width: int) -> Line:
    """Two ends of one line; where they meet, the right one goes."""
    used = sum(width_of(text) for text, _ in left)
    needed = sum(width_of(text) for text, _ in right)
    if used + 1 + needed > width:
        return cut(left, width)
    return [*left, (" " * (width - used - needed), ""), *right]
