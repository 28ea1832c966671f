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


def main(argv: list[str]) -> int:
    if build.main(["oracle"]) != 0 or not build.is_built("oracle"):
        return 1
    if argv != ["--check"]:
        return subprocess.run([build.binary("oracle"), "vectors", VECTORS], check=False).returncode
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([build.binary("oracle"), "vectors", folder], check=True, stdout=subprocess.DEVNULL)
        different = [
            p.name
            for p in sorted(Path(folder).glob("*.json"))
            if p.name not in UNSTEADY and p.read_bytes() != (VECTORS / p.name).read_bytes()
        ]
    print(f"vectors that differ: {', '.join(different) or 'none'}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
