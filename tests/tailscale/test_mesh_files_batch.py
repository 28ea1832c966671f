"""Small files that land together: each whole or not at all, whatever happens to another, and few calls for many."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tailscale.files.parts import Busy, Occupied
from tailscale.mesh.batch import TOGETHER, SmallFile, Stored
from tailscale.mesh.hash_cache import HashCache
from tailscale.mesh.landing import BATCHES, SYNCING, Landing
from tailscale.mesh.sink import Unequal
from ts_mesh.blocks import root_of
from ts_mesh.offers import Entry

MTIME = 1_000_000_000_000_000_000


def small(path: str, data: bytes, *, is_inside: bool = False) -> SmallFile:
    root = root_of([hashlib.sha256(data).digest()] if data else [])
    return SmallFile(Entry(path, len(data), MTIME, 0o640), data, root, is_inside)


def many(count: int, *, folder: str = "tree", is_inside: bool = False) -> list[SmallFile]:
    return [small(f"{folder}/{n}", b"content of %d" % n, is_inside=is_inside) for n in range(count)]


def landing(folder: Path, exists: Any = "refuse") -> Landing:
    hashes = HashCache(None)
    hashes.close()  # nothing here reads a file twice
    return Landing(folder, exists, hashes, trio.CapacityLimiter(8))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


class Calls:
    """What is asked of the disk, and how much of it at once. A call whose descriptor or name is chosen fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *watched: str) -> None:
        self.counted: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.threads: dict[str, set[int]] = {name: set() for name in watched}
        self.failing: Callable[[str, tuple[Any, ...]], OSError | None] = lambda name, arguments: None
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()
        for name in watched:
            monkeypatch.setattr(os, name, partial(self._call, name, getattr(os, name)))

    def _call(self, name: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with self._lock:
            self.counted[name] += 1
            self._running[name] += 1
            self.most[name] = max(self.most[name], self._running[name])
            self.threads[name].add(threading.get_ident())
            problem = self.failing(name, arguments)
        try:
            if problem is not None:
                raise problem
            return call(*arguments, **options)
        finally:
            with self._lock:
                self._running[name] -= 1


# --- what becomes of each ---------------------------------------------------------------------------


async def test_batch_leaves_every_file_whole_and_nothing_beside(tmp_path: Path) -> None:
    files = [*many(200), small("other/empty", b"")]
    became = await landing(tmp_path).store_many(files)
    assert became == [Stored(file.entry.path.rpartition("/")[2], file.root or b"") for file in files]
    assert names(tmp_path) == sorted(file.entry.path for file in files)
    for file in files:
        path = tmp_path / file.entry.path
        assert path.read_bytes() == file.data
        assert (path.stat().st_mtime_ns, path.stat().st_mode & 0o777) == (MTIME, 0o640)


@pytest.mark.parametrize("exists", ["refuse", "replace", "rename"])
async def test_name_that_is_taken_concerns_its_own_file_only(tmp_path: Path, exists: str) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "1").write_bytes(b"somebody's")
    (tmp_path / "tree" / "2").mkdir()
    first, taken, folder, last = await landing(tmp_path, exists).store_many(many(4))
    assert isinstance(first, Stored)
    assert isinstance(last, Stored)
    if exists == "rename":
        assert isinstance(taken, Stored)
        assert isinstance(folder, Stored)
        assert (taken.name, folder.name) == ("1 (2)", "2 (2)")
    else:
        assert isinstance(folder, Occupied)
        assert isinstance(taken, Stored if exists == "replace" else Occupied)
    assert (tmp_path / "tree" / "1").read_bytes() == (b"content of 1" if exists == "replace" else b"somebody's")
    assert not [name for name in names(tmp_path) if name.endswith(".part")]


@pytest.mark.parametrize("exists", ["refuse", "rename"])
async def test_batch_that_is_sent_twice_is_there_already(tmp_path: Path, exists: str) -> None:
    place = landing(tmp_path, exists)
    first = await place.store_many(many(3))
    assert await place.store_many(many(3)) == first
    assert names(tmp_path) == ["tree/0", "tree/1", "tree/2"]


async def test_damaged_file_is_not_written_and_the_others_are(tmp_path: Path) -> None:
    files = many(3)
    files[1] = files[1]._replace(data=b"content of x")
    became = await landing(tmp_path).store_many(files)
    assert [type(each) for each in became] == [Stored, Unequal, Stored]
    assert names(tmp_path) == ["tree/0", "tree/2"]


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
async def test_disk_full_in_the_middle_of_a_batch_fails_what_did_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A file system that gives out room late says so at the sync."""
    calls = Calls(monkeypatch, call)

    def full(name: str, arguments: tuple[Any, ...]) -> OSError | None:
        told = os.readlink(f"/proc/self/fd/{arguments[0]}").rpartition("/")[2]
        number = told.removeprefix(".").removesuffix(".part")
        return OSError(errno.ENOSPC, "full") if number.isdigit() and int(number) >= 5 else None

    calls.failing = full
    became = await landing(tmp_path).store_many(many(9))
    assert [getattr(each, "errno", 0) for each in became] == [0] * 5 + [errno.ENOSPC] * 4
    assert names(tmp_path) == [f"tree/{n}" for n in range(5)]


async def test_file_that_somebody_else_writes_is_busy_alone(tmp_path: Path) -> None:
    other = landing(tmp_path).batch()
    other.write(many(2)[1:])
    became = await landing(tmp_path).store_many(many(3))
    assert [type(each) for each in became] == [Stored, Busy, Stored]
    other.close()
    assert names(tmp_path) == ["tree/0", "tree/2"]


async def test_part_that_a_killed_writer_left_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / ".0.part").write_bytes(b"longer than what comes now " * 9)
    (tmp_path / "tree" / ".1.part").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "tree" / ".2.part")
    await landing(tmp_path).store_many(many(3))
    assert names(tmp_path) == ["tree/0", "tree/1", "tree/2"]
    assert [(tmp_path / "tree" / f"{n}").read_bytes() for n in range(3)] == [b"content of %d" % n for n in range(3)]


async def test_folder_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    outside, inbox = tmp_path / "outside", tmp_path / "inbox"
    outside.mkdir()
    inbox.mkdir()
    (inbox / "tree").symlink_to(outside)
    became = await landing(inbox).store_many([*many(2), small("good/0", b"x")])
    assert [type(each) for each in became] == [NotADirectoryError, NotADirectoryError, Stored]
    assert os.listdir(outside) == []


async def test_two_batches_into_two_folders_at_once(tmp_path: Path) -> None:
    place = landing(tmp_path)
    async with trio.open_nursery() as nursery:
        for folder in ("a", "b", "c"):
            nursery.start_soon(place.store_many, many(150, folder=folder))
    assert names(tmp_path) == sorted(f"{folder}/{n}" for folder in "abc" for n in range(150))


async def test_batch_that_is_broken_off_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a descriptor: what had no name yet is thrown away."""
    calls = Calls(monkeypatch, "fsync")
    scope = trio.CancelScope()
    first = [scope.cancel]

    def cancel(name: str, arguments: tuple[Any, ...]) -> None:
        if first:
            trio.from_thread.run_sync(first.pop())

    calls.failing = cancel
    place, before = landing(tmp_path), len(os.listdir("/proc/self/fd"))
    with scope:
        await place.store_many(many(20))
    assert scope.cancelled_caught
    assert names(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before


async def test_few_descriptors_make_small_batches(tmp_path: Path) -> None:
    """A system that lets few files be open gets its files all the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    await landing(tmp_path).store_many(many(1, folder="warm"))  # threads have what they need
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 12, hard))
    try:
        became = await landing(tmp_path).store_many(many(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [each for each in became if not isinstance(each, Stored)] == []


# --- deaths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", ["replace", pytest.param("refuse", marks=pytest.mark.slow)])
def test_kill_at_any_write_of_a_batch_leaves_each_file_old_or_new(tmp_path: Path, exists: str) -> None:
    """Every call that changes the disk is the last one of some life; no file has a name before all are on the disk."""
    program = [sys.executable, str(Path(__file__).with_name("mesh_batch_kill_points.py")), str(tmp_path), exists]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(program, capture_output=True, text=True, check=True, env=env)
    lives = [json.loads(line) for line in run.stdout.splitlines()]
    assert [life["died"] for life in lives] == [True] * (len(lives) - 1) + [False]
    before = "old" if exists == "replace" else "none"
    named = [life["held"].count("new") for life in lives]
    assert {state for life in lives for state in life["held"]} == {before, "new"}
    assert named == sorted(named)
    assert (named[0], named[-1]) == (0, 3)
    assert named.index(1) > 12  # three are made, filled, given mode and time, and synced before any has its name
    for life in lives:
        assert life["then"] == ["new"] * 3
        assert life["names"] == ["a/empty", "a/one", "b/one"]


# --- what it costs ----------------------------------------------------------------------------------


async def test_thousand_small_files_cost_few_threads_calls_and_folder_syncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed. Each file is synced once; calls for it are a dozen, and thread hops are for whole batches."""
    calls = Calls(monkeypatch, "fsync", "open", "stat", "fstat", "mkdir", "pwrite", "replace", "unlink")
    hops = Counter[str]()
    run_sync = trio.to_thread.run_sync

    async def hop(*arguments: Any, **options: Any) -> Any:
        hops["hop"] += 1
        return await run_sync(*arguments, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", hop)
    place = landing(tmp_path, "replace")
    await place.store_many(many(1000, is_inside=True))
    batches = -(-1000 // TOGETHER)
    assert hops["hop"] == batches * (SYNCING + 2)
    assert calls.counted["fsync"] == 1000  # the folder has a PUT of its own, and is synced then
    assert calls.most["fsync"] <= BATCHES * SYNCING
    assert calls.counted["open"] <= 1000 + batches * 4
    assert calls.counted["stat"] <= 1000
    assert calls.counted["fstat"] <= 2000
    assert (calls.counted["pwrite"], calls.counted["replace"], calls.counted["unlink"]) == (1000, 1000, 0)
