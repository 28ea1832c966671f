"""Numbers and names as they stand in a cell: short, of known width, and harmless.

Names come from others. Whatever is not printable is shown as a question mark, and marks are never read as markup.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from tailscale.figures import in_bytes
from tailscale.foreign_text import for_terminal

BARS = "▁▂▃▄▅▆▇█"
FLOOR = 1000.0  # bytes a second that a bar is measured against at least: a keep-alive is no peak
ELLIPSIS = "…"
EMPTY = "·"


def safe(text: object) -> str:
    return for_terminal(str(text))


def width_of(text: str) -> int:
    """Columns of a terminal: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Exactly `width` columns of it."""
    if width_of(text) > width:
        kept, used = [], 0
        for character in text:
            used += width_of(character)
            if used > width - 1:
                break
            kept.append(character)
        text = "".join(kept) + ELLIPSIS if width else ""
    gap = " " * (width - width_of(text))
    return gap + text if right else text + gap


def counted(count: float | None) -> str:
    """Bytes; "" for what is not counted."""
    return "" if count is None else in_bytes(count)


def in_rate(rate: float) -> str:
    """Bytes a second; a dot for less than one, so that what moves stands out."""
    return f"{in_bytes(rate)}/s" if rate >= 0.5 else EMPTY


def in_time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def spark(series: Sequence[float], width: int) -> str:
    """The newest `width` values as bars, the newest at the right; nothing is a space."""
    newest = list(series[-width:]) if width > 0 else []
    top = max([FLOOR, *newest])
    bars = "".join(BARS[min(7, int(value / top * 7.999))] if value >= 0.5 else " " for value in newest)
    return bars.rjust(max(width, 0))


def plot(series: Sequence[float], width: int, height: int) -> list[str]:
    """The same over several lines, top line first."""
    newest = list(series[-width:]) if width > 0 else []
    top = max([FLOOR, *newest])
    eighths = [round(value / top * height * 8) if value >= 0.5 else 0 for value in newest]
    eighths = [max(1, one) if value >= 0.5 else 0 for one, value in zip(eighths, newest, strict=True)]
    lines = []
    for row in range(height - 1, -1, -1):
        filled = [min(8, max(0, one - row * 8)) for one in eighths]
        lines.append("".join(BARS[one - 1] if one else " " for one in filled).rjust(max(width, 0)))
    return lines
