"""What is written where: results on stdout, everything else on stderr; colours and a live line only on terminals.

Owns the choice between rich and plain text. rich is optional, so nothing here needs it, and nothing that came over the
network reaches a terminal with its control characters.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from tailscale.foreign_text import for_json, for_terminal
from ts_base.optional import optional

Cell = str | tuple[str, str]  # text, or text and a style
ANSI = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
LONGEST_CELL = 253  # characters: what a DNS name may have
WIDE = 60
NARROWEST = 18  # columns that a sentence gets, however narrow the terminal
ERASE_LINE = "\r\x1b[K"
ERASE_SCREEN = "\x1b[H\x1b[2J"
NOTHING = ("", "-")  # of a cell that says nothing
GAP = 2  # between columns
SHORTEST = 15  # of a column that is cut: an IPv4 address stays whole
SHORTEST_AT_THE_END = 8


class Screen:
    """Both output streams of one command."""

    def __init__(self, *, plain: bool = False, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.out = out if out is not None else sys.stdout
        self.err = err if err is not None else sys.stderr
        self._styled_out = not plain and wants_style(self.out)
        self.is_live = not plain and wants_style(self.err)
        self._live = ""
        self.has_said: set[str] = set()  # addresses shown already: log lines that repeat them are left out

    # Results, on stdout

    def say(self, *parts: Cell) -> None:
        """One line of parts, each plain or styled."""
        self.hide()
        self.out.write("".join(paint(part, self._styled_out) for part in parts) + "\n")
        self.out.flush()

    def json(self, value: Any) -> None:
        self.hide()
        indent = 2 if self._styled_out else None
        self.out.write(for_json(value, indent=indent, unicode=self.speaks_unicode()) + "\n")
        self.out.flush()

    def json_line(self, value: Any) -> None:
        """One of many: each on a line of its own."""
        self.hide()
        self.out.write(for_json(value, unicode=self.speaks_unicode()) + "\n")
        self.out.flush()

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Cell]], *, indent: str = "") -> None:
        """On a terminal what fits of it; to pipes and files every column, always in the same place."""
        lines: list[Sequence[Cell]] = [header, *(tuple(map(_bounded, row)) for row in rows)]
        if self._styled_out:
            columns = self._columns(self.out)
            widths = fitting(header, lines[1:], columns - len(indent))
            unicode = self.speaks_unicode()
            lines = [[cut(line[column], width, unicode) for column, width in widths.items()] for line in lines]
            if (rich := _rich()) is not None:
                self.hide()
                _rich_table(rich, self.out, [text_of(title) for title in lines[0]], lines[1:], indent, columns)
                return
        texts = [[text_of(cell) for cell in line] for line in lines]
        ends = [max(map(len, column)) for column in zip(*texts, strict=True)]
        for words in texts:
            self.say(indent + "  ".join(text.ljust(end) for text, end in zip(words, ends, strict=True)).rstrip())

    def _columns(self, stream: TextIO) -> int:
        told: int | None = getattr(stream, "columns", None)
        return told if told is not None else shutil.get_terminal_size().columns

    def speaks_unicode(self) -> bool:
        return "utf" in (getattr(self.out, "encoding", None) or "").lower()

    def fitted(self, text: str, indent: int) -> list[str]:
        """The lines of a text that stands behind `indent` columns; one where nobody looks at a terminal."""
        return _wrapped(text, self._columns(self.out) - indent) if self._styled_out else [text]

    def is_wide(self) -> bool:
        """Whether titles and sentences stand side by side; always where nobody looks at a terminal."""
        return not self._styled_out or self._columns(self.out) >= WIDE

    def clear(self) -> None:
        """Begin anew at the top of a terminal; a line between two pictures elsewhere."""
        self.hide()
        self.out.write(ERASE_SCREEN if self._styled_out else "\n")

    # Everything else, on stderr

    def note(self, *parts: Cell) -> None:
        self.hide()
        self.err.write("".join(paint(part, self.is_live) for part in parts) + "\n")
        self.err.flush()

    def note_at(self, head: Cell, text: str) -> None:
        """A sentence behind a head, whose lines on a terminal end between words and begin below its first."""
        if not self.is_live:
            self.note(head, text)
            return
        indent, columns = len(text_of(head)), self._columns(self.err)
        below = indent if indent * 4 < columns else 2
        first, *_ = _wrapped(text, columns - indent)
        self.note(head, first)
        rest = text[len(first) :].strip()
        for line in _wrapped(rest, columns - below) if rest else ():
            self.note(" " * below + line)

    def show(self, text: str) -> None:
        """Replace the live line; nothing happens where stderr is not a terminal."""
        if not self.is_live:
            return
        self._live = for_terminal(text)[: self._columns(self.err) - 1]
        self.err.write(f"{ERASE_LINE}{paint((self._live, 'dim'), True)}")
        self.err.flush()

    def hide(self) -> None:
        """Take the live line away before something else is written."""
        if self._live:
            self._live = ""
            self.err.write(ERASE_LINE)
            self.err.flush()


def wants_style(stream: TextIO) -> bool:
    """A terminal that understands colours, and a user who wants them. A stream of somewhere else knows better."""
    told: bool | None = getattr(stream, "wants_style", None)
    if told is not None:
        return told
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def _bounded(cell: Cell) -> Cell:
    """One name of ten thousand letters must not make every line as long."""
    text = cell if isinstance(cell, str) else cell[0]
    if len(text) <= LONGEST_CELL:
        return cell
    text = text[: LONGEST_CELL - 3] + "..."
    return text if isinstance(cell, str) else (text, cell[1])


def text_of(cell: Cell) -> str:
    return for_terminal(cell if isinstance(cell, str) else cell[0])


def paint(cell: Cell, styled: bool) -> str:
    if isinstance(cell, str) or not styled:
        return text_of(cell)
    codes = ";".join(ANSI[word] for word in cell[1].split())
    return f"\x1b[{codes}m{text_of(cell)}\x1b[0m" if codes else text_of(cell)


def fitting(header: Sequence[str], rows: Sequence[Sequence[Cell]], width: int) -> dict[int, int]:
    """The columns that fit, each with its width. The first says which row it is, and stays whole as long as it can.

    Columns in which nobody has anything go first, then those with lower-case titles, which are nice to have, the
    longest before the others, then those at the end. What is left over is cut where it is widest.
    """
    needs = [max(len(text_of(row[column])) for row in (header, *rows)) for column in range(len(header))]
    says = [any(text_of(row[column]) not in NOTHING for row in rows) for column in range(len(header))]
    kept = [column for column in range(len(header)) if column == 0 or says[column]]

    def widths(longest: int) -> dict[int, int]:
        """Those of the columns kept, none but the first wider than `longest`, as far as they may be cut."""
        shortest = dict.fromkeys(kept, SHORTEST) | {kept[-1]: SHORTEST_AT_THE_END}
        cuts = {column: min(needs[column], max(longest, shortest[column])) for column in kept}
        return cuts | {0: min(needs[0], width)}

    def fits(longest: int) -> bool:
        return sum(widths(longest).values()) + GAP * (len(kept) - 1) <= width

    while len(kept) > 1:
        spare = [column for column in kept[1:] if header[column].islower()]
        if spare and not fits(max(needs)):
            kept.remove(max(spare, key=lambda column: needs[column]))
        elif not fits(0):
            kept.pop()
        else:
            break
    return widths(next((longest for longest in range(max(needs), 0, -1) if fits(longest)), 0))


def cut(cell: Cell, width: int, unicode: bool) -> Cell:
    """What fits of a cell, and a mark where something is missing."""
    text = text_of(cell)
    if len(text) > width:
        mark = "\N{HORIZONTAL ELLIPSIS}" if unicode else "~"
        text = text[: max(0, width - 1)] + mark
    return text if isinstance(cell, str) else (text, cell[1])


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(NARROWEST, width), break_long_words=False, break_on_hyphens=False) or [""]


def _rich() -> tuple[Any, ...] | None:
    """The parts of rich a table is made of."""
    named = (("console", "Console"), ("padding", "Padding"), ("table", "Table"), ("text", "Text"))
    parts = tuple(getattr(optional(f"rich.{module}", name), name, None) for module, name in named)
    return parts if all(parts) else None


def _rich_table(
    parts: tuple[Any, ...],
    out: TextIO,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    indent: str,
    width: int,
) -> None:
    Console, Padding, Table, Text = parts  # noqa: N806 - classes
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in header:
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text(text_of(cell), style="" if isinstance(cell, str) else cell[1]) for cell in row))
    Console(file=out, highlight=False, width=width).print(Padding(table, (0, 0, 0, len(indent))))


def in_time(seconds: float) -> str:
    """A duration as people read it."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 60 else f"{seconds / 60:.0f} min"
