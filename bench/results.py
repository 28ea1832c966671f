"""One row of the bench: samples of two or more sides taken in turn, the ratio between two of them, and how it is shown.

Owns the arithmetic (medians, spreads, ratios round by round), the table and the JSON file. Refuses to know what is
measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

RESULTS = Path(__file__).parent / "results"
# An installed package has its bytecode; a checkout may be told not to write any, and would compile at every start.
AS_INSTALLED = {
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": os.path.join(tempfile.gettempdir(), f"pytailscale-bench-{os.getuid()}"),
}


@dataclass
class Row:
    """`samples[side]` holds one figure per round; the ratio is `ours` / `against`, taken round by round."""

    name: str
    unit: str
    samples: dict[str, list[float]]
    ours: str
    against: str = ""
    lower_is_better: bool = False
    aim: float | None = None
    floor: float | None = None
    note: str = ""

    def ratios(self) -> list[float]:
        """Round by round, so that what disturbs a whole round cancels out."""
        if not self.against:
            return []
        pairs = zip(self.samples[self.ours], self.samples[self.against], strict=False)
        return [ours / other for ours, other in pairs if other]

    def verdict(self) -> str:
        ratios = self.ratios() or self.samples[self.ours]
        if self.aim is None or self.floor is None or not ratios:
            return ""
        sign = -1 if self.lower_is_better else 1
        ratio = statistics.median(ratios) * sign
        return "aim" if ratio >= self.aim * sign else "floor" if ratio >= self.floor * sign else "MISSED"

    def as_json(self) -> dict[str, Any]:
        return {
            "row": self.name,
            "unit": self.unit,
            "lower_is_better": self.lower_is_better,
            "samples": self.samples,
            "medians": {side: statistics.median(taken) for side, taken in self.samples.items() if taken},
            "ours": self.ours,
            "against": self.against,
            "ratio": statistics.median(self.ratios()) if self.ratios() else None,
            "aim": self.aim,
            "floor": self.floor,
            "verdict": self.verdict(),
            "note": self.note,
        }


def figure(value: float) -> str:
    """Three digits that count, and no more zeros than needed."""
    if value == 0 or math.isnan(value):
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def spread(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    return f"{figure(min(values))}..{figure(max(values))}"


COLUMNS = f"{'row':<32}{'side':<24}{'median':>10} {'unit':<13}{'spread':<18}{'ratio':>7}  {'spread':<14}verdict"


def lines(row: Row) -> Iterable[str]:
    """The row as it is printed: one line per side, the ratio beside ours."""
    name = row.name
    for side, taken in row.samples.items():
        if not taken:
            continue
        ratio = of = verdict = ""
        if side == row.ours:
            verdict = row.verdict()
            if verdict:
                verdict += (
                    f" (aim {row.aim:g}, floor {row.floor:g}{', lower is better' if row.lower_is_better else ''})"
                )
            if row.ratios():
                ratio, of = figure(statistics.median(row.ratios())), spread(row.ratios())
        median = f"{figure(statistics.median(taken)):>10} {row.unit:<13}{spread(taken):<18}"
        yield f"{name:<32}{side:<24}{median}{ratio:>7}  {of:<14}{verdict}".rstrip()
        name = ""
    if row.note:
        yield f"{'':<32}{row.note}"


@dataclass
class Report:
    """All rows of one run, told as they come and kept for the file."""

    options: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        print(COLUMNS)
        print("-" * len(COLUMNS), flush=True)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        for line in lines(row):
            print(line, flush=True)

    def skip(self, name: str, why: str) -> None:
        self.skipped[name] = why
        print(f"{name:<32}skipped: {why}", flush=True)

    def save(self, path: Path | None) -> Path:
        now = datetime.datetime.now(datetime.UTC)
        if path is None:
            RESULTS.mkdir(exist_ok=True)
            path = RESULTS / f"{now:%Y-%m-%d-%H%M%S}.json"
        machine = {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
        }
        said = {
            "when": now.isoformat(timespec="seconds"),
            "machine": machine,
            "options": self.options,
            "rows": [row.as_json() for row in self.rows],
            "skipped": self.skipped,
        }
        path.write_text(json.dumps(said, indent=1) + "\n")
        return path


def run_measure(
    name: str,
    measure: Callable[[int, int, Report], Awaitable[None]],
    about: str | None,
    *,
    megabytes: int,
    of: str,
) -> None:
    """`python -m bench.NAME`: measure so many rounds, `of` something of a size, and keep the figures."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=(about or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=megabytes, help=f"MiB of {of}")
    options = parser.parse_args()
    report = Report({"rows": [name], "rounds": options.rounds})
    report.start()
    try:
        trio.run(measure, options.rounds, options.size << 20, report)
    finally:
        print(f"\nfigures: {report.save(None)}")
