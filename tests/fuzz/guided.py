"""The same targets guided by coverage, where atheris is installed (`pip install atheris`; it is no dependency of ours).

The corpus starts from the target's seeds and grows from run to run. libFuzzer's own report says what it found; its
crash files are ordinary inputs for `--replay`.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time

from fuzz.campaign import CRASHES, TOO_LONG, Target

NOT_INSTALLED = "atheris is not installed: pip install atheris, or leave --atheris out for the built-in mutations"
REPORT_TAIL = 4000  # characters of libFuzzer's report on a failure
OURS = [
    "tailscale",
    "ts_acme",
    "ts_base",
    "ts_control",
    "ts_dataplane",
    "ts_derp",
    "ts_lock",
    "ts_mesh",
    "ts_netstack",
    "ts_proxy",
    "ts_tunnel",
]


def run(name: str, inputs: int | None, minutes: float | None, seed: int) -> int:
    """One target in this process, which libFuzzer ends."""
    try:
        import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        print(NOT_INSTALLED)
        return 2
    with atheris.instrument_imports(include=OURS):
        target = Target.load(name)
    corpus = CRASHES / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(data)
    options = [f"-seed={seed}", f"-artifact_prefix={CRASHES}/{name}-", "-max_len=4096", "-print_final_stats=1"]
    options.append(f"-timeout={TOO_LONG:.0f}")
    if inputs:
        options.append(f"-runs={inputs}")
    if minutes:
        options.append(f"-max_total_time={int(minutes * 60)}")
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.fuzz_one)
    atheris.Fuzz()
    return 0


def run_all(names: list[str], minutes: float, seed: int) -> int:
    """Each target for an equal share of the time, in a process of its own; ends with a table."""
    if importlib.util.find_spec("atheris") is None:
        print(NOT_INSTALLED)
        return 2
    started, total, failed = time.perf_counter(), 0, []
    print(f"{'target':<24}{'inputs':>12}{'new paths':>12}{'coverage':>10}", flush=True)
    for name in names:
        command = [sys.executable, "-m", "tests.fuzz", "--atheris", "--target", name, "--seed", str(seed)]
        command += ["--minutes", str(minutes / len(names))]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        said = done.stdout + done.stderr
        inputs, new = (_figure(said, f"stat::{stat}: +") for stat in ("number_of_executed_units", "new_units_added"))
        total += inputs
        verdict = "" if done.returncode == 0 else "  FAILED"
        print(f"{name:<24}{inputs:>12,}{new:>12,}{_figure(said, ' cov: '):>10,}{verdict}", flush=True)
        if verdict:
            failed.append(name)
            print(said[-REPORT_TAIL:], flush=True)
    print(f"{'all':<24}{total:>12,}")
    print(f"seed {seed}, {time.perf_counter() - started:.0f} s; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _figure(text: str, before: str) -> int:
    """The last number that follows these words."""
    return int((re.findall(before + r"(\d+)", text) or ["0"])[-1])
