"""Two checkouts measured in turn: what a change did to the packet path.

Owns the other checkout (a git worktree for as long as it is needed), the order of turns, the ratios and the verdict.
Refuses to know what is measured: `sample.py` does. Every sample is a process of its own; in each round both checkouts
run one after the other, every other round the other way round, and a ratio is taken between these neighbours, so that
a machine that gets slower meanwhile slows both.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.results import AS_INSTALLED, figure, spread
from bench.sample import GROUPS

ROOT = Path(__file__).resolve().parents[1]
BAR = 0.03
# A heap that grows once and stays: else whether memory is given back between rounds decides a row by a third.
STEADY_HEAP = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
}
ROUNDS = 9
SAMPLE_SECONDS = 300
COLUMNS = f"{'row':<36}{'then':>10}{'now':>10} {'unit':<14}{'cost ratio':>10} {'of best':>8}  {'spread':<14}verdict"


Sample = Mapping[str, tuple[float, str, bool]]  # row -> figure, unit, is lower better
Measure = Callable[[Path, str], Sample]


class Failed(Exception):
    """A checkout could not be had or measured."""


def is_no_chance(on_one_side: int, of: int) -> bool:
    """The sign test: a fair coin falls this way in one of twenty tries at most. Below five rounds nothing passes."""
    return sum(math.comb(of, k) for k in range(on_one_side, of + 1)) / 2**of <= 0.05


@dataclass
class Compared:
    """Samples of one row, paired by round."""

    name: str
    unit: str
    lower_is_better: bool
    then: list[float] = field(default_factory=list)
    now: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """What it costs now over what it cost then, round by round: above one is worse, whatever the unit."""
        pairs = [(now, then) for now, then in zip(self.now, self.then, strict=True) if now and then]
        return [now / then if self.lower_is_better else then / now for now, then in pairs]

    def ratio(self) -> float:
        return statistics.median(self.ratios() or [1.0])

    def ratio_of_best(self) -> float:
        """The undisturbed rounds of both: noise only ever adds."""
        if self.lower_is_better:
            return min(self.now) / (min(self.then) or 1.0)
        return max(self.then) / (max(self.now) or 1.0)

    def verdict(self, bar: float = BAR) -> str:
        """Median and best must agree, and the rounds point one way, or more rounds are needed."""
        both, ratios = (self.ratio(), self.ratio_of_best()), self.ratios()
        if min(both) > 1 + bar and is_no_chance(sum(ratio > 1 for ratio in ratios), len(ratios)):
            return "SLOWER"
        if max(both) < 1 / (1 + bar) and is_no_chance(sum(ratio < 1 for ratio in ratios), len(ratios)):
            return "faster"
        if all(1 / (1 + bar) <= each <= 1 + bar for each in both):
            return "same"
        return "unclear"

    def line(self, bar: float = BAR) -> str:
        then, now = figure(statistics.median(self.then)), figure(statistics.median(self.now))
        ratios = f"{self.ratio():>10.3f} {self.ratio_of_best():>8.3f}  {spread(self.ratios()):<14}"
        return f"{self.name:<36}{then:>10}{now:>10} {self.unit:<14}{ratios}{self.verdict(bar)}"


@contextlib.contextmanager
def checkout(wanted: str) -> Iterator[Path]:
    """A folder that is a checkout already, or a revision laid out beside it for a while."""
    if (Path(wanted) / "bench" / "__init__.py").is_file():
        yield Path(wanted).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="pytailscale-against-") as folder:
        place = Path(folder) / "checkout"
        git = ("git", "-C", str(ROOT), "worktree")
        made = subprocess.run([*git, "add", "--detach", str(place), wanted], capture_output=True, text=True)
        if made.returncode:
            raise Failed(f"{wanted} is neither a checkout nor a revision: {made.stderr.strip().splitlines()[-1]}")
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True, capture_output=True)


def measure(root: Path, group: str) -> Sample:
    """One sample in a fresh process, where `root` is what is imported."""
    environment = {**os.environ, **AS_INSTALLED, **STEADY_HEAP, "PYTHONPATH": str(root), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-P", str(Path(__file__).with_name("sample.py")), group]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=SAMPLE_SECONDS, check=False
    )
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["no word"])[-1])
    return {name: (value, unit, lower) for name, (value, unit, lower) in json.loads(done.stdout).items()}


def take_in_turn(
    sides: Mapping[str, Path], group: str, rounds: int, measure: Measure = measure
) -> tuple[list[Compared], dict[str, str]]:
    """The rows both have, and for each that only one has, which."""
    compared: dict[str, Compared] = {}
    alone: dict[str, str] = {}
    for number in range(rounds):
        taken = {side: measure(sides[side], group) for side in list(sides)[:: -1 if number % 2 else 1]}
        pair(taken, compared, alone)
    return list(compared.values()), alone


def pair(taken: Mapping[str, Sample], compared: dict[str, Compared], alone: dict[str, str]) -> None:
    """One round's samples of both sides, added to what there is."""
    then, now = taken["then"], taken["now"]
    for name in then.keys() ^ now.keys():
        alone[name] = "then" if name in then else "now"
    for name, (value, unit, lower) in now.items():
        if name in then:
            row = compared.setdefault(name, Compared(name, unit, lower))
            row.now.append(value)
            row.then.append(then[name][0])


def compare(wanted: str, groups: Sequence[str], rounds: int, bar: float = BAR) -> int:
    """The table; 1 if a row became slower, 2 if a checkout could not be had."""
    slower = []
    try:
        with checkout(wanted) as other:
            print(
                f"then: {wanted}; now: {ROOT}; {rounds} rounds; the bar is {bar:.0%}\n{COLUMNS}\n{'-' * len(COLUMNS)}"
            )
            for group in groups:
                try:
                    rows, alone = take_in_turn({"then": other, "now": ROOT}, group, rounds)
                except (Failed, subprocess.TimeoutExpired) as error:
                    print(f"{group:<36}not compared: {error}", flush=True)
                    continue
                for row in rows:
                    print(row.line(bar), flush=True)
                slower += [row.name for row in rows if row.verdict(bar) == "SLOWER"]
                for name, side in sorted(alone.items()):
                    print(f"{name:<36}only {side}", flush=True)
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print(f"\nslower by more than {bar:.0%}: {', '.join(slower) or 'nothing'}")
    return 1 if slower else 0


def names() -> list[str]:
    return list(GROUPS)
