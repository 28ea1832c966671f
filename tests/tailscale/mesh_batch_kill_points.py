"""A program that is killed in the middle of a batch: `python mesh_batch_kill_points.py FOLDER EXISTS`. A line per life.

Small files arrive in FOLDER together, in two folders. Life n dies by SIGKILL in place of its n-th call that changes the
disk; then another one is sent the same, and lives. What is found after every death and after every life is printed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from mesh_kill_points import die_at

from tailscale.mesh.batch import Batch, SmallFile
from tailscale.mesh.hash_cache import HashCache
from tailscale.mesh.landing import Landing
from ts_mesh.offers import Entry

OLD = b"old"
CONTENTS = {"a/one": b"first of them", "a/empty": b"", "b/one": b"of the same name"}
FILES = [SmallFile(Entry(path, len(data), 10**18, 0o644), data, None) for path, data in CONTENTS.items()]


def live(folder: Path, exists: str) -> None:
    """What a receiver does with one PUT of several files."""
    landing = Landing(folder, exists, HashCache(None), None)  # type: ignore[arg-type]
    batch: Batch = landing.batch()
    batch.write(FILES)
    batch.sync()
    failed = [became for became in batch.name() if isinstance(became, Exception)]
    assert not failed, failed


def run(folder: Path, exists: str, *, dying_at: int) -> bool:
    """Whether it died by our hand."""
    child = os.fork()
    if not child:
        if dying_at:
            die_at(dying_at)
        try:
            live(folder, exists)
        except BaseException as problem:
            print(repr(problem), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert not os.WIFEXITED(status) or not os.WEXITSTATUS(status), "a life ended otherwise than by death"
    return status != 0


def held(folder: Path) -> list[str]:
    """Of each file, in order."""
    return [_held(folder / path, data) for path, data in CONTENTS.items()]


def _held(target: Path, new: bytes) -> str:
    if not target.exists():
        return "none"
    found = target.read_bytes()
    return "new" if found == new else "old" if found == OLD else "HALF"


def main(folder: Path, exists: str) -> None:
    for count in range(1, 1000):
        for name in os.listdir(folder):
            shutil.rmtree(folder / name)
        if exists == "replace":
            for path in CONTENTS:
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_bytes(OLD)
        died = run(folder, exists, dying_at=count)
        after_death = held(folder)
        run(folder, exists, dying_at=0)
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        print(json.dumps({"died": died, "held": after_death, "then": held(folder), "names": names}), flush=True)
        if not died:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
