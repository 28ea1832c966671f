"""Every parser and state machine against hostile bytes: `python -m tests.fuzz --inputs 100000`.

Ends with a table; exit status 1 when anything failed. What failed is in tests/fuzz/crashes/, smaller than it was, with
the command that shows it again. An input that found a bug moves to tests/fuzz/regressions/<target>/ with the fix.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # targets say `from golden...`, as the tests do

from fuzz import guided
from fuzz.campaign import Campaign, Target, names

DEFAULT_INPUTS = 100_000
TELL_EVERY = 60.0  # seconds


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, help=f"in all, over the targets (default {DEFAULT_INPUTS:,})")
    parser.add_argument("--minutes", type=float, help="stop after so long, whatever is left")
    parser.add_argument("--target", action="append", choices=names(), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same inputs (default 1)")
    parser.add_argument("--replay", type=Path, help="run this one file and show what it does; needs --target")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage; several targets share --minutes")
    parsed = parser.parse_args(given)
    if parsed.replay and len(parsed.target or ()) != 1:
        parser.error("--replay needs exactly one --target")
    if parsed.atheris and len(parsed.target or ()) != 1 and not parsed.minutes:
        parser.error("--atheris needs --minutes for more than one target")
    return parsed


def main() -> int:
    wanted = arguments()
    if wanted.atheris:
        chosen = wanted.target or names()
        if len(chosen) > 1:
            return guided.run_all(chosen, wanted.minutes, wanted.seed)
        return guided.run(chosen[0], wanted.inputs, wanted.minutes, wanted.seed)
    targets = [Target.load(name) for name in wanted.target or names()]
    if wanted.replay:
        targets[0].fuzz_one(wanted.replay.read_bytes())
        print(f"{targets[0].name}: nothing wrong with {wanted.replay}")
        return 0
    inputs = wanted.inputs or (sys.maxsize if wanted.minutes else DEFAULT_INPUTS)
    campaign = Campaign(targets, wanted.seed, inputs=inputs, minutes=wanted.minutes or math.inf)
    started = told = time.perf_counter()

    def tell() -> None:
        nonlocal told
        if time.perf_counter() - told >= TELL_EVERY:
            told = time.perf_counter()
            print(f"{campaign.inputs:,} inputs after {told - started:.0f} s", flush=True)

    try:
        campaign.run(tell)
    except KeyboardInterrupt:
        print("stopped")
    print(table(targets, wanted.seed, time.perf_counter() - started))
    return 1 if any(target.failures for target in targets) else 0


def table(targets: list[Target], seed: int, seconds: float) -> str:
    rows = [f"{'target':<24}{'inputs':>12}{'inputs/s':>12}{'failures':>10}"]
    for target in targets:
        speed = target.inputs / target.seconds if target.seconds else 0.0
        rows.append(f"{target.name:<24}{target.inputs:>12,}{speed:>12,.0f}{len(target.failures):>10}")
    total, failed = sum(t.inputs for t in targets), sum(len(t.failures) for t in targets)
    rows.append(f"{'all':<24}{total:>12,}{total / max(seconds, 1e-9):>12,.0f}{failed:>10}")
    rows.append(f"seed {seed}, {seconds:.0f} s")
    failures = [failure for target in targets for failure in target.failures.values()]
    rows += [f"FAILED {failure.target}: {failure.signature}\n       {failure.command}" for failure in failures]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
