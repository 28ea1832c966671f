"""A program that is killed at a chosen call: `python mesh_kill_points.py FOLDER`. One process, one line per life.

A file arrives in FOLDER over an old one, in two runs. Life n of it dies by SIGKILL in place of its n-th call that
changes the disk; then another one takes over from what it left, and lives. Each is a fork, so that nothing is cleaned
up. What is found after every death and after every life is printed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tailscale.mesh.hash_cache import HashCache
from tailscale.mesh.landing import Landing
from tailscale.mesh.sink import Missing
from ts_mesh.blocks import BLOCK, root_of
from ts_mesh.offers import Entry

NAME, SIZE = "file", BLOCK + 1000
OLD = b"old"
NEW = bytes(n % 251 for n in range(1000)) * (SIZE // 1000 + 1)
NEW = NEW[:SIZE]
HASHES = [hashlib.sha256(NEW[:BLOCK]).digest(), hashlib.sha256(NEW[BLOCK:]).digest()]
CHANGING = ("open", "write", "pwrite", "ftruncate", "fsync", "fchmod", "utime", "link", "unlink", "replace", "mkdir")


def die_at(count: int) -> None:
    """In place of the count-th call that changes the disk, the process ends; halfway through one that writes."""
    left = count

    def deadly(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if name == "open" and not arguments[1] & os.O_CREAT:
                return call(*arguments, **options)
            left -= 1
            if left == 0:
                if name in ("write", "pwrite"):  # torn: half of it is there
                    descriptor, data, *rest = arguments
                    call(descriptor, bytes(data)[: len(data) // 2], *rest)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return instead

    for name in CHANGING:
        setattr(os, name, deadly(name, getattr(os, name)))


def live(folder: Path, exists: str) -> None:
    """What a receiver does with two runs of blocks, beginning with what an earlier life left."""
    landing = Landing(folder, exists, HashCache(None), None)  # type: ignore[arg-type]
    entry = Entry(NAME, SIZE, 1_000_000_000_000_000_000, 0o644)
    root = root_of(HASHES)
    have = landing.present("sender", entry)
    missing = [block for block, digest in enumerate(HASHES) if block >= len(have) or have[block] != digest]
    if not missing:
        landing.complete("sender", entry, root)
        return
    sink = landing.open("sender", entry)
    for block in missing:
        sink.begin_run(block * BLOCK)
        start, end = block * BLOCK, min((block + 1) * BLOCK, SIZE)
        sink.write([NEW[start : start + 700], NEW[start + 700 : end]])
    landing.finish(sink, entry, root)
    sink.close()


def run(folder: Path, exists: str, *, dying_at: int) -> bool:
    """Whether it died."""
    child = os.fork()
    if not child:
        if dying_at:
            die_at(dying_at)
        try:
            live(folder, exists)
        except Missing:  # the journal of the killed one claimed too much, and the sender is told to send again
            live(folder, exists)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def held(folder: Path) -> str:
    target = folder / NAME
    names = {OLD: "old", NEW: "new", None: "none"}
    return names.get(target.read_bytes() if target.exists() else None, "HALF")


def main(folder: Path, exists: str) -> None:
    for count in range(1, 1000):
        for name in os.listdir(folder):
            (folder / name).unlink()
        if exists == "replace":
            (folder / NAME).write_bytes(OLD)
        died = run(folder, exists, dying_at=count)
        after_death = held(folder)
        run(folder, exists, dying_at=0)
        line = {"died": died, "held": after_death, "then": held(folder), "names": sorted(os.listdir(folder))}
        print(json.dumps(line), flush=True)
        if not died:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
