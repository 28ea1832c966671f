"""The suite again and again: `python -m tests.interop.rounds 20`. Stops at the first round that is not green.

Says one line per round. The output of each stays in the folder it names, and the servers' logs of what failed.
What follows the count goes to pytest.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORKERS = 3  # most tests wait for a peer most of the time
ROOT = Path(__file__).resolve().parents[2]


def parallel() -> list[str]:
    """Pytest's arguments for several workers; none where pytest-xdist is missing."""
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(WORKERS), "--dist", "worksteal"]


def main() -> int:
    rounds, arguments = int(sys.argv[1]), sys.argv[2:]
    folder = Path(tempfile.mkdtemp(prefix="pyts-rounds-"))
    command = [sys.executable, "-m", "pytest", "tests/interop", *parallel(), *arguments]
    print(f"{rounds} rounds of {' '.join(command[1:])}; output in {folder}", flush=True)
    for number in range(1, rounds + 1):
        began, output = time.monotonic(), folder / f"round{number}.txt"
        with output.open("w") as file:
            done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
        verdict = output.read_text().rstrip().rpartition("\n")[2]
        print(f"round {number}: {verdict} ({time.monotonic() - began:.0f} s in all)", flush=True)
        if done.returncode != 0:
            print(f"round {number} FAILED: {output}", flush=True)
            return 1
    print(f"{rounds} rounds green", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
