"""Writes docs/pictures/demo.svg: `pytailscale demo` in a terminal, line after line. For when the demo has changed.

    .venv/bin/python docs/record_demo.py

Runs the command in a terminal of its own, keeps what each line was in the end and when it came, and lets rich draw the
last screen. The lines then appear in the rhythm in which they came, slow enough to be read, again and again; where a
viewer does not animate pictures, or its user has asked for less motion, all of it is there at once.
"""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import sys
import time
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "pictures" / "demo.svg"
COMMAND = ["pytailscale", "demo"]
COLUMNS, ROWS = 92, 60
BEGINS, LASTS, STAYS = 1.0, 7.0, 9.0  # seconds until the first line, until the last one, and that the end is seen
ENVIRONMENT = {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS), "PYTHONUTF8": "1"}
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")  # all but colours
WORD = re.compile(r'<text class="([^"]*)"[^>]* clip-path="url\(#demo-line-(\d+)\)">.*?</text>', re.DOTALL)


def record() -> list[tuple[float, str]]:
    """Every line with the second at which it was whole."""
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [sys.executable, "-m", "pytailscale", *COMMAND[1:]], os.environ | ENVIRONMENT)  # noqa: S606
    began, rest, lines = time.monotonic(), "", []
    while data := read(terminal):
        *whole, rest = (rest + data.decode(errors="replace")).split("\n")
        lines += [(time.monotonic() - began, last_state(line)) for line in whole]
    _, status = os.waitpid(process, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit("the demo failed:\n" + "\n".join(line for _, line in lines))
    return lines


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError as error:  # how Linux says that nobody has the other end open
        if error.errno != errno.EIO:
            raise
        return b""


def last_state(line: str) -> str:
    """What stays of a line that was written over and over."""
    return CONTROLS.sub("", line.rstrip("\r").rpartition("\r")[2])


def draw(lines: list[tuple[float, str]]) -> str:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), legacy_windows=False)
    console.print(Text.assemble(("$ ", "dim"), " ".join(COMMAND)))
    for _, line in lines:
        console.print(Text.from_ansi(line), no_wrap=True, crop=True, overflow="crop")
    picture = console.export_svg(title=" ".join(COMMAND), unique_id="demo")
    picture = re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.DOTALL)  # fonts are not fetched from elsewhere
    began, ended = lines[0][0], lines[-1][0]
    return animated(picture, [0.0, *(BEGINS + LASTS * (at - began) / (ended - began) for at, _ in lines)])


def animated(picture: str, seconds: list[float]) -> str:
    """The same with every line in a group that begins to be seen at its second."""
    cycle = seconds[-1] + STAYS
    words = list(WORD.finditer(picture))
    groups = []
    for number, found in groupby(words, key=lambda word: int(word[2])):
        groups.append(f'<g class="demo-{number}">' + "".join(word[0] for word in found) + "</g>")
    styles = [appearance(f"demo-{number}", at / cycle, cycle) for number, at in enumerate(seconds) if number]
    still = "@media (prefers-reduced-motion: reduce) { g { animation: none !important } }"
    start, end = words[0].start(), words[-1].end()
    picture = picture[:start] + "\n".join(groups) + picture[end:]
    return picture.replace("</style>", "\n".join([*styles, still, "</style>"]), 1)


def appearance(name: str, share: float, cycle: float) -> str:
    """Unseen for that share of a cycle, then seen."""
    frames = f"0%, {share:.2%} {{ opacity: 0 }} {share + 1e-4:.2%}, 100% {{ opacity: 1 }}"
    return f"@keyframes {name} {{ {frames} }}\n.{name} {{ animation: {name} {cycle:.1f}s infinite }}"


if __name__ == "__main__":
    PICTURE.write_text(draw(record()))
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size >> 10} KiB")
