"""Makes tests/vectors/*.json anew from upstream's Go code; `--check` only says whether they differ."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.interop import build

VECTORS = build.HERE.parent / "vectors"
# What a live server or a clock puts into these differs from run to run.
UNSTEADY = {"wireguard.json", "derp.json", "control_noise.json"}
MAKERS = ["oracle", "lockvectors"]


def make(folder: Path) -> None:
    subprocess.run([build.binary("oracle"), "vectors", folder], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([build.binary("lockvectors"), folder / "lock.json"], check=True)


def main(argv: list[str]) -> int:
    if build.main(MAKERS) != 0 or not all(build.is_built(name) for name in MAKERS):
        return 1
    if argv != ["--check"]:
        make(VECTORS)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        different = [
            p.name
            for p in sorted(Path(folder).glob("*.json"))
            if p.name not in UNSTEADY and p.read_bytes() != (VECTORS / p.name).read_bytes()
        ]
    print(f"vectors that differ: {', '.join(different) or 'none'}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
