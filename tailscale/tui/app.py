"""The terminal interface itself: keys, pages, a cursor, and the rule that nothing is drawn which did not change.

Owns what is on the screen. What a page shows is in pages.py; where it comes from is a `Source`. textual is imported
here and nowhere else.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import MouseScrollDown, MouseScrollUp, Resize
from textual.widgets import Static

from tailscale.tui.drawing import Line, Row, beside, cut, header_line, table_line, widths, wrapped
from tailscale.tui.history import History
from tailscale.tui.pages import NARROW, PAGES, Look, Page
from tailscale.tui.source import Source
from tailscale.tui.words import safe, width_of

LOG_LINES = 500
WHEEL = 3
COLOURS = {
    "red": "#ff6b6b",
    "green": "#4cc38a",
    "yellow": "#f5c451",
    "cyan": "#56c8d8",
    "blue": "#6ea8fe",
    "magenta": "#c792ea",
    "chosen": "on #2a3948",
}
STATE_STYLES = {"running": "green", "offline": "yellow", "connecting": "yellow", "expired": "red", "failed": "red"}
EXITS, LOG = "Exits", "Log"
EXPORT = "pytailscale-top.json"


class Top(App[None]):
    """Everything about one device, in a terminal."""

    CSS = """
    Screen { background: #101418; color: #d8dee6; overflow: hidden; }
    Static { height: 1; width: 100%; }
    #title { background: #1b222b; }
    #body { height: 1fr; }
    #foot { background: #1b222b; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(number), f"show({number - 1})", show=False) for number in range(1, len(PAGES) + 1)),
        Binding("right,tab,l", "turn(1)", show=False, priority=True),
        Binding("left,shift+tab,h", "turn(-1)", show=False, priority=True),
        Binding("down,j", "move(1)", show=False),
        Binding("up,k", "move(-1)", show=False),
        Binding("pagedown,space", "leaf(1)", show=False),
        Binding("pageup,b", "leaf(-1)", show=False),
        Binding("home,g", "move(-1000000)", show=False),
        Binding("end,G", "move(1000000)", show=False),
        Binding("enter", "pin", show=False),
        Binding("x", "unpin", show=False),
        Binding("e", "export", show=False),
        Binding("q,escape", "quit", show=False),
    ]

    def __init__(self, source: Source, export_to: Path | None = None) -> None:
        super().__init__()
        self._source = source
        self._export_to = export_to or Path(EXPORT)
        self._history = History()
        self._view: dict[str, Any] | None = None
        self._news: deque[Row] = deque(maxlen=LOG_LINES)
        self._page = 0
        self._cursors: dict[int, tuple[Hashable, int]] = {}  # by page: which row, and where it was
        self._offsets: dict[int, int] = {}
        self._problem = "waiting for the daemon"
        self._word = ""
        self._is_up = False
        self._shown: dict[str, list[Line]] = {}

    def compose(self) -> ComposeResult:
        for name in ("title", "tabs", "body", "foot"):
            yield Static("", id=name, markup=False)

    def on_mount(self) -> None:
        self._is_up = True
        self.run_worker(self._follow_looks(), exit_on_error=True)
        self.run_worker(self._follow_news(), exit_on_error=True)
        self.draw()

    async def _follow_looks(self) -> None:
        async for look in self._source.looks():
            if isinstance(look, str):
                self._problem = look
            else:
                self._problem = ""
                self._view = look
                self._history.feed(look)
            self.draw()

    async def _follow_news(self) -> None:
        async for row in self._source.news():
            self._news.append(Row(len(self._news), row.cells))
            if PAGES[self._page].name == LOG:
                self.draw()

    # What keys do

    def action_show(self, number: int) -> None:
        self._page = number
        self._word = ""
        self.draw()

    def action_turn(self, step: int) -> None:
        self.action_show((self._page + step) % len(PAGES))

    def action_move(self, step: int) -> None:
        rows = self._rows()
        if rows:
            at = min(max(self._cursor(rows) + step, 0), len(rows) - 1)
            self._cursors[self._page] = rows[at].key, at
        else:
            self._offsets[self._page] = max(0, self._offsets.get(self._page, 0) + step)
        self.draw()

    def action_leaf(self, step: int) -> None:
        self.action_move(step * max(1, self._height() - 2))

    def on_mouse_scroll_down(self, _: MouseScrollDown) -> None:
        self.action_move(WHEEL)

    def on_mouse_scroll_up(self, _: MouseScrollUp) -> None:
        self.action_move(-WHEEL)

    async def action_pin(self) -> None:
        rows = self._rows()
        if PAGES[self._page].name == EXITS and rows:
            name = rows[self._cursor(rows)].cells[1][0]
            self._say(await self._source.pin(name))

    async def action_unpin(self) -> None:
        if PAGES[self._page].name == EXITS:
            self._say(await self._source.pin(""))

    def action_export(self) -> None:
        try:
            self._export_to.write_text(json.dumps(self._view, indent=1))
        except OSError as error:
            self._say(f"not written, {error.strerror or error}: {self._export_to}")
        else:
            self._say(f"written: {self._export_to}")

    def _say(self, word: str) -> None:
        self._word = word
        self.draw()

    def on_resize(self, _: Resize) -> None:
        self.draw()

    # What is drawn

    def draw(self) -> None:
        """Bring the screen up to date; what is the same as before is not touched."""
        width = self.size.width
        self._put("title", [self._title(width)])
        self._put("tabs", [self._tabs(width)])
        self._put("body", self._body(width, self._height()))
        self._put("foot", [self._foot(width)])

    def _put(self, name: str, lines: list[Line]) -> None:
        if self._is_up and self._shown.get(name) != lines:
            self._shown[name] = lines
            self.query_one(f"#{name}", Static).update(as_text(lines))

    def _height(self) -> int:
        return max(1, self.size.height - 3)

    def _title(self, width: int) -> Line:
        view = self._view
        if view is None:
            return cut([(" pytailscale", "bold")], width)
        left: Line = [(" ● ", STATE_STYLES.get(view["state"], "dim")), (view["hostname"] or "?", "bold")]
        if view["state"] != "running":
            left.append((f" {view['state']}", STATE_STYLES.get(view["state"], "yellow")))
        address = view["addresses"][0] if view["addresses"] else ""
        relay = f"relay {view['relay']} " if view["relay"] else "no relay "
        right: Line = [(address, ""), (f"  {view['tailnet']}  " if width >= 70 else "  ", "dim"), (relay, "dim")]
        return beside(left, right, width)

    def _tabs(self, width: int) -> Line:
        is_short = sum(len(page.name) + 4 for page in PAGES) > width
        line: Line = []
        for number, page in enumerate(PAGES):
            is_here = number == self._page
            mark = "!" if page.name == "Health" and self._view is not None and self._view["health"] else ""
            text = f" {number + 1} {page.name}{mark} " if is_here or not is_short else f" {number + 1}{mark}"
            line.append((text, "bold reverse" if is_here else "yellow" if mark else "dim"))
        return cut(line, width)

    def _foot(self, width: int) -> Line:
        if self._problem:
            return cut([(f" {self._problem}", "yellow")], width)
        if self._word:
            return cut([(f" {self._word}", "cyan")], width)
        keys = "←→ page  ↑↓ move"
        keys += "  ⏎ use  x none" if PAGES[self._page].name == EXITS else ""
        return beside([(f" {keys}", "dim")], [("e export  q quit ", "dim")], width)

    def _look(self) -> Look | None:
        return Look(self._view, self._history, self._news) if self._view is not None else None

    def _rows(self) -> list[Row]:
        look = self._look()
        return PAGES[self._page].rows(look) if look is not None else []

    def _body(self, width: int, height: int) -> list[Line]:
        margin = 1 if width >= NARROW else 0
        lines = self._inside(width - 2 * margin, height)
        return [[(" " * margin, ""), *line] for line in lines] if margin else lines

    def _inside(self, width: int, height: int) -> list[Line]:
        look, page = self._look(), PAGES[self._page]
        if look is None or width < 1:
            return []
        if page.lines is not None:
            lines = page.lines(look, width, height)
            offset = min(self._offsets.get(self._page, 0), max(0, len(lines) - height))
            self._offsets[self._page] = offset
            return lines[offset : offset + height]
        rows = page.rows(look)
        if not rows:
            return [[], *wrapped(page.empty, width, "dim")]
        return self._table(page, rows, width, height)

    def _table(self, page: Page, rows: Sequence[Row], width: int, height: int) -> list[Line]:
        cursor, room = self._cursor(rows), max(1, height - 1)
        top = self._offsets.get(self._page, 0)
        top = min(max(top, cursor - room + 1), cursor, max(0, len(rows) - room))
        self._offsets[self._page] = top
        kept = widths(page.columns, width)
        lines = [cut(header_line(page.columns, kept), width)]
        for number, row in enumerate(rows[top : top + room], top):
            line = cut(table_line(page.columns, kept, row.cells), width)
            if number == cursor and page.name != LOG:
                pad = " " * (width - sum(width_of(text) for text, _ in line))
                line = [(text, f"{style} chosen") for text, style in [*line, (pad, "")]]
            lines.append(line)
        return lines

    def _cursor(self, rows: Sequence[Row]) -> int:
        """Where the row is that was chosen; the log follows its end until somebody moves."""
        if self._page not in self._cursors:
            return len(rows) - 1 if PAGES[self._page].name == LOG else 0
        key, at = self._cursors[self._page]
        found = next((number for number, row in enumerate(rows) if row.key == key), None)
        return min(at, len(rows) - 1) if found is None else found


def as_text(lines: list[Line]) -> Text:
    """Styled for textual. Every name passes here on its way to the terminal, and is made harmless."""
    text = Text(no_wrap=True, overflow="crop")
    for number, line in enumerate(lines):
        if number:
            text.append("\n")
        for piece, style in line:
            text.append(safe(piece), " ".join(COLOURS.get(word, word) for word in style.split()))
    return text


def run(source: Source) -> None:
    """Until the user leaves."""
    Top(source).run()
