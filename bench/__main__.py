"""`python -m bench`: every row, one table, one JSON file in bench/results/.

    python -m bench                        # all of it, about ten minutes
    python -m bench --quick                # a smoke run in under a minute
    python -m bench --rows aead,direct.stream,derper-tls.stream
    python -m bench --list
    python -m bench --against v0.1.0       # this checkout and another (revision or folder) in turn, without Go

Each row compares sides measured in the same run, in turn. What needs Go peers that are not built is skipped with one
line.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from bench import against, inside
from bench.results import Report, Row

if TYPE_CHECKING:
    from bench.between import Place

PEERS = ("headscale-0.29.2", "derper", "tsnetpeer")
PLACES = {"direct": "direct", "derper-tls": "derper TLS", "derper-http": "derper HTTP", "our-relay": "our relay"}
RELAYED = ("stream", "rtt", "connect")
DIRECT = ("ready", "memory", "stream", "both", "eight", "udp", "rtt", "loaded", "connect", "stall")


@dataclass(frozen=True)
class Effort:
    """How long and how often."""

    rounds: int
    seconds: float
    peers: int
    crowd: int
    idle: float
    line: float


FULL = Effort(5, 3.0, 10_000, 1_000, 20.0, 12.0)
QUICK = Effort(1, 0.5, 1_000, 200, 3.0, 3.0)
QUICK_ROWS = ("aead", "engine", "stack", "pipeline", "lookups", "imports", "direct.stream", "direct.rtt",
              "direct.connect", "derper-tls.stream", "direct.ready")  # fmt: skip


def inside_rows(effort: Effort) -> dict[str, Callable[[], Iterator[Row]]]:
    n = effort.rounds
    return {
        "aead": lambda: inside.aead(n),
        "engine": lambda: inside.engines(n),
        "stack": lambda: inside.stack(n),
        "map": lambda: inside.big_map(n, effort.peers),
        "lookups": lambda: inside.lookups(n, effort.peers),
        "imports": lambda: inside.imports(2 * n),
    }


def names() -> list[str]:
    between = [f"{place}.{row}" for place in PLACES for row in (DIRECT if place == "direct" else RELAYED)]
    return [*inside_rows(FULL), "pipeline", *between, "crowd", "line"]


class Run:
    """One run of the wanted rows."""

    def __init__(self, wanted: list[str], effort: Effort, report: Report) -> None:
        self._wanted, self._effort, self._report = wanted, effort, report
        self._pipeline: Row | None = None
        self._direct: Row | None = None

    def inside(self) -> None:
        for name, make in inside_rows(self._effort).items():
            if name in self._wanted:
                for row in make():
                    self._report.add(row)
        if "pipeline" in self._wanted:
            if sys.platform != "linux":
                self._report.skip("pipeline", "needs UDP segmentation, which is Linux's")
                return
            for row in inside.bare_pipeline(self._effort.rounds, min(2.0, self._effort.seconds)):
                self._report.add(row)
                if "bare pipeline" in row.samples:
                    self._pipeline = row

    async def between(self) -> None:
        wanted = [name for name in self._wanted if "." in name or name in ("crowd", "line")]
        if not wanted:
            return
        from tests.interop import build
        from tests.interop.rig import rig

        lacking = build.missing(PEERS)
        if lacking:
            why = f"peers not built: {', '.join(lacking)} (python tests/interop/build.py)"
            self._report.skip("rows against tsnet", why)
            return
        async with rig("bench") as r:
            for short in PLACES:
                rows = [name.partition(".")[2] for name in wanted if name.startswith(f"{short}.")]
                if rows:
                    await self._in_place(r, short, rows)
            await self._alone(r, wanted)
        if self._direct is not None and self._pipeline is not None:
            from bench.between import against_pipeline

            self._report.add(against_pipeline(self._direct, self._pipeline))

    async def _in_place(self, r: Any, short: str, rows: list[str]) -> None:
        from bench import between
        from tests.interop.rig import RigError

        try:
            async with between.place(r, PLACES[short]) as where:
                for name in DIRECT:
                    if name in rows:
                        await self._row(between.ROWS[name], where, f"{short}.{name}")
        except RigError as error:
            self._report.skip(f"{short}.*", f"failed: {str(error).splitlines()[0]}")

    async def _row(self, make: Callable[..., AsyncIterator[Row]], where: Place, name: str) -> None:
        from tests.interop.rig import RigError

        try:
            async with contextlib.aclosing(make(where, self._effort.rounds, self._effort.seconds)) as rows:  # type: ignore[type-var]
                async for row in rows:
                    self._report.add(row)
                    if row.name == "direct: the same, ours both":
                        self._direct = row
        except RigError as error:
            self._report.skip(name, f"failed: {str(error).splitlines()[0]}")

    async def _alone(self, r: Any, wanted: list[str]) -> None:
        from bench import between
        from tests.interop.rig import RigError

        effort = self._effort
        if "crowd" in wanted:
            try:
                async with contextlib.aclosing(between.crowd(r, 1, effort.idle, effort.crowd)) as rows:  # type: ignore[type-var]
                    async for row in rows:
                        self._report.add(row)
            except RigError as error:
                self._report.skip("crowd", f"failed: {str(error).splitlines()[0]}")
        if "line" in wanted:
            try:
                self._report.add(await between.long_line(r, max(1, effort.rounds // 2), effort.line))
            except RigError as error:
                self._report.skip("line", f"failed: {str(error).splitlines()[0]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short and few: does everything still run?")
    parser.add_argument("--rows", default="", help="comma-separated names, * allowed; see --list")
    parser.add_argument("--rounds", type=int, help="samples per side")
    parser.add_argument("--seconds", type=float, help="length of one sample")
    parser.add_argument("--json", type=Path, help="where the figures go (default: bench/results/<date>.json)")
    parser.add_argument("--list", action="store_true", help="names of rows")
    parser.add_argument("--against", metavar="REVISION_OR_FOLDER", help="compare the packet path of two checkouts")
    options = parser.parse_args()
    known = names() if options.against is None else against.names()
    if options.list:
        print("\n".join(known))
        return 0
    effort = QUICK if options.quick else FULL
    effort = Effort(options.rounds or effort.rounds, options.seconds or effort.seconds, effort.peers, effort.crowd,
                    effort.idle, effort.line)  # fmt: skip
    everything = QUICK_ROWS if options.quick and options.against is None else ["*"]
    patterns = options.rows.split(",") if options.rows else everything
    wanted = [name for name in known if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if not wanted:
        parser.error(f"no row is called {options.rows}; --list names them")
    if options.against is not None:
        return against.compare(options.against, wanted, options.rounds or (1 if options.quick else against.ROUNDS))
    report = Report({"quick": options.quick, "rows": wanted, "rounds": effort.rounds, "seconds": effort.seconds})
    report.start()
    run = Run(wanted, effort, report)
    try:
        run.inside()
        trio.run(run.between)
    finally:
        print(f"\nfigures: {report.save(options.json)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
