"""Branch coverage of each room from the last run, and a failure where a sans-IO room is below the floor."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from coverage import Coverage

FLOOR = 95.0
PURE_ROOMS = (
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
)


def main() -> int:
    coverage = Coverage()
    coverage.load()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        coverage.json_report(outfile=str(report), show_contexts=False)
        files = json.loads(report.read_text())["files"]
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, file in files.items():
        summary = file["summary"]
        total = rooms[Path(name).parts[0]]
        total[0] += summary["covered_lines"] + summary["covered_branches"]
        total[1] += summary["num_statements"] + summary["num_branches"]
    table = io.StringIO()
    below = []
    for room, (covered, total) in sorted(rooms.items()):
        share = 100.0 * covered / max(total, 1)
        table.write(f"  {room:<14}{share:6.1f} %\n")
        if room in PURE_ROOMS and share < FLOOR:
            below.append(room)
    print("coverage, lines and branches by room:\n" + table.getvalue(), end="")
    if below:
        print(f"below the floor of {FLOOR:g} %: {', '.join(below)}", file=sys.stderr)
    return 1 if below else 0


if __name__ == "__main__":
    raise SystemExit(main())
