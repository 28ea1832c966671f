"""What lies on the disk while files arrive: parts, journals, seals, links that somebody planted, and deaths."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tailscale.files.parts import Busy, Occupied
from tailscale.mesh.batch import SmallFile
from tailscale.mesh.hash_cache import FileKey, HashCache
from tailscale.mesh.landing import Landing
from tailscale.mesh.sink import Missing, Sink, Unequal
from tailscale.mesh.source import Source, Unreadable
from tailscale.mesh.tree import scan
from ts_mesh.blocks import BLOCK, complete, root_of
from ts_mesh.offers import Entry

MTIME = 1_000_000_000_000_000_000
SIZE = 2 * BLOCK + 1000
CONTENT = os.urandom(1 << 16) * (SIZE // (1 << 16) + 1)
CONTENT = CONTENT[:SIZE]
BLOCKS = [CONTENT[at : at + BLOCK] for at in range(0, SIZE, BLOCK)]
HASHES = [hashlib.sha256(block).digest() for block in BLOCKS]
ROOT = root_of(HASHES)
Caches = Callable[[Path | None], HashCache]
ENTRY = Entry("file", SIZE, MTIME, 0o640)


def landing(folder: Path, exists: Any = "refuse") -> Landing:
    hashes = HashCache(None)
    hashes.close()  # nothing here reads a file twice
    return Landing(folder, exists, hashes, None)  # type: ignore[arg-type] # no threads are needed here


def fill(sink: Sink, *blocks: int) -> None:
    for block in blocks:
        sink.begin_run(block * BLOCK)
        sink.write([BLOCKS[block]])


def left_behind(folder: Path, *blocks: int) -> None:
    """As after a connection that was lost: the writer let go of what it has."""
    sink = landing(folder).open("a", ENTRY)
    fill(sink, *blocks)
    sink.close()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    place = landing(tmp_path)
    sink = place.open("a", ENTRY)
    fill(sink, 2, 0)
    with pytest.raises(Missing) as missing:
        place.finish(sink, ENTRY, ROOT)
    assert missing.value.blocks == (1,)
    assert names(tmp_path) == [".file.part", ".file.part.journal"]
    fill(sink, 1)
    assert place.finish(sink, ENTRY, ROOT) == ("file", ROOT)
    sink.close()
    assert names(tmp_path) == ["file"]
    status = (tmp_path / "file").stat()
    assert (status.st_mtime_ns, status.st_mode & 0o777) == (MTIME, 0o640)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_what_was_hashed_is_not_hashed_again_when_it_goes_on(tmp_path: Path) -> None:
    left_behind(tmp_path, 0, 1)
    place = landing(tmp_path)
    assert place.present("a", ENTRY) == [*HASHES[:2], None]
    sink = place.open("a", ENTRY)
    fill(sink, 2)
    place.finish(sink, ENTRY, ROOT)
    assert sink.bytes_hashed == len(BLOCKS[2])
    sink.close()
    assert complete(place.present("a", ENTRY), SIZE) == HASHES
    assert place.is_in_place(ENTRY)


def test_part_that_is_complete_is_not_the_file(tmp_path: Path) -> None:
    """A pull once took it for that, and left it without its name."""
    left_behind(tmp_path, 0, 1, 2)
    place = landing(tmp_path)
    assert complete(place.present("a", ENTRY), SIZE) == HASHES
    assert not place.is_in_place(ENTRY)


@pytest.mark.parametrize(
    "other", [("b", ENTRY), ("a", Entry("file", SIZE, MTIME + 1)), ("a", Entry("file", SIZE - 1, MTIME))]
)
def test_part_of_another_file_is_begun_anew(tmp_path: Path, other: tuple[str, Entry]) -> None:
    """Sender, path, size and mtime must agree."""
    left_behind(tmp_path, 0, 1)
    assert not any(landing(tmp_path).present(*other))


def test_corrupt_journal_is_put_aside_and_all_begins_anew(tmp_path: Path) -> None:
    left_behind(tmp_path, 0, 1)
    journal = tmp_path / ".file.part.journal"
    journal.write_bytes(journal.read_bytes().replace(b"1 ", b"x ", 1))
    sink = landing(tmp_path).open("a", ENTRY)
    assert not any(sink.hashes)
    assert (tmp_path / ".file.part.journal.bad").exists()
    fill(sink, 0, 1, 2)
    assert landing(tmp_path).finish(sink, ENTRY, ROOT).root == ROOT
    sink.close()


def test_part_that_somebody_edited_is_looked_at_again(tmp_path: Path) -> None:
    left_behind(tmp_path, 0, 1)
    with (tmp_path / ".file.part").open("r+b") as part:
        part.seek(BLOCK + 5)
        part.write(b"edited")
    place = landing(tmp_path)
    sink = place.open("a", ENTRY)
    assert sink.hashes[:2] == HASHES[:2]  # the sender need not wait until it is known
    fill(sink, 2)
    with pytest.raises(Missing) as missing:
        place.finish(sink, ENTRY, ROOT)
    assert missing.value.blocks == (1,)
    fill(sink, 1)
    place.finish(sink, ENTRY, ROOT)
    sink.close()
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_part_that_was_cut_lacks_what_was_cut(tmp_path: Path) -> None:
    left_behind(tmp_path, 0, 1)
    os.truncate(tmp_path / ".file.part", BLOCK + 5)
    assert landing(tmp_path).present("a", ENTRY) == [HASHES[0], None, None]


def test_block_that_is_half_overwritten_is_no_longer_claimed(tmp_path: Path) -> None:
    left_behind(tmp_path, 0, 1)
    sink = landing(tmp_path).open("a", ENTRY)
    sink.begin_run(BLOCK)
    sink.write([b"half of another version"])
    sink.close()
    assert landing(tmp_path).present("a", ENTRY) == [HASHES[0], None, None]


def test_wrong_root_throws_away_what_came(tmp_path: Path) -> None:
    place = landing(tmp_path)
    sink = place.open("a", ENTRY)
    fill(sink, 0, 1, 2)
    with pytest.raises(Unequal):
        place.finish(sink, ENTRY, bytes(32))
    sink.close()
    assert names(tmp_path) == []


def test_two_writers_of_one_file_exclude_each_other(tmp_path: Path) -> None:
    sink = landing(tmp_path).open("a", ENTRY)
    with pytest.raises(Busy):
        landing(tmp_path).open("a", ENTRY)
    sink.close()
    landing(tmp_path).open("a", ENTRY).close()


SMALL = Entry("small", 5, MTIME)
HELLO_ROOT = root_of([hashlib.sha256(b"hello").digest()])
HELLO = SmallFile(SMALL, b"hello", HELLO_ROOT)


@pytest.mark.parametrize(
    ("exists", "holds"), [("replace", ["small"]), ("rename", ["small", "small (2)"]), ("refuse", ["small"])]
)
def test_existing_file_is_kept_replaced_or_stands_beside(tmp_path: Path, exists: str, holds: list[str]) -> None:
    (tmp_path / "small").write_bytes(b"old one")
    place = landing(tmp_path, exists)
    if exists == "refuse":
        with pytest.raises(Occupied):
            place.present("a", SMALL)
        with pytest.raises(Occupied):
            place.store(HELLO)
    else:
        assert place.present("a", SMALL) == []
        assert place.store(HELLO).name == holds[-1]
        assert (tmp_path / holds[-1]).read_bytes() == b"hello"
    assert [name for name in names(tmp_path) if not name.startswith(".")] == holds
    if exists != "replace":
        assert (tmp_path / "small").read_bytes() == b"old one"


def test_same_file_twice_is_there_already(tmp_path: Path) -> None:
    place = landing(tmp_path, "rename")
    for _ in range(2):
        assert place.store(HELLO).name == "small"
    assert names(tmp_path) == ["small"]


# --- links ------------------------------------------------------------------------------------------


def test_link_planted_as_the_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "small").symlink_to(victim)
    landing(inbox, "replace").store(HELLO)
    assert victim.read_bytes() == b"precious"
    assert not (inbox / "small").is_symlink()


@pytest.mark.parametrize("planted", [".small.part", ".file.part.journal"])
def test_link_planted_as_part_or_journal_is_not_followed(tmp_path: Path, planted: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / planted).symlink_to(victim)
    entry = SMALL if "small" in planted else ENTRY
    try:
        landing(inbox).open("a", entry).close()
    except OSError:
        assert "journal" in planted
    assert victim.read_bytes() == b"precious"


def test_hard_link_planted_as_part_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    os.link(victim, inbox / ".small.part")
    landing(inbox).store(HELLO)
    assert victim.read_bytes() == b"precious"
    assert (inbox / "small").read_bytes() == b"hello"


def test_folder_swapped_for_a_link_between_check_and_open_leads_nowhere(tmp_path: Path) -> None:
    outside, inbox = tmp_path / "outside", tmp_path / "inbox"
    outside.mkdir()
    (inbox / "tree").mkdir(parents=True)
    entry = Entry("tree/small", 5, MTIME)
    place = landing(inbox)
    assert place.present("a", entry) == []  # the check ...
    (inbox / "tree").rmdir()
    (inbox / "tree").symlink_to(outside)
    with pytest.raises(NotADirectoryError):  # ... and the open
        place.store(SmallFile(entry, b"hello", HELLO_ROOT))
    assert names(outside) == []


@pytest.fixture
def caches() -> Iterator[Caches]:
    """Makes caches, and closes them behind the test."""
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(closing(HashCache(path)))


# --- what is sent -----------------------------------------------------------------------------------


def source_of(path: Path, cache: HashCache) -> Source:
    return Source.open(scan([path]).items[0], cache)


def test_hashes_are_kept_by_what_the_file_is(tmp_path: Path, caches: Caches) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(MTIME, MTIME))
    cache = caches(tmp_path / "state" / "hashes.sqlite")
    one = source_of(path, cache)
    assert b"".join(one.read_bytes(0, SIZE)) == CONTENT
    assert one.root() == ROOT
    one.close()
    cache.close()
    two = source_of(path, caches(tmp_path / "state" / "hashes.sqlite"))
    assert two.known_root() == ROOT
    assert (one.bytes_hashed, two.bytes_hashed) == (SIZE, 0)
    two.close()
    os.utime(path, ns=(MTIME, MTIME + 1))
    assert source_of(path, cache).known_root() is None


def test_part_of_a_file_that_was_sent_is_kept_as_well(tmp_path: Path, caches: Caches) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(MTIME, MTIME))
    cache = caches(None)
    one = source_of(path, cache)
    next(one.read_bytes(0, SIZE))
    list(one.read_bytes(BLOCK, 2 * BLOCK))
    one.close()
    assert source_of(path, cache).hashes == [None, HASHES[1], None]


def test_file_that_changed_within_a_tick_of_its_clock_is_not_remembered(tmp_path: Path, caches: Caches) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello")
    ahead = os.stat(path).st_mtime_ns + 3_600_000_000_000
    os.utime(path, ns=(ahead, ahead))
    cache = caches(None)
    one = source_of(path, cache)
    one.root()
    one.close()
    assert cache.get(one.key) == []


@pytest.mark.parametrize("deed", ["truncate", "grow", "replace", "remove", "touch"])
def test_source_that_changes_is_told(tmp_path: Path, deed: str, caches: Caches) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(MTIME, MTIME))
    source = source_of(path, caches(None))
    reading = source.read_bytes(0, SIZE)
    next(reading)
    if deed == "truncate":
        os.truncate(path, 10)
    elif deed == "grow":
        os.truncate(path, SIZE + 1)
    elif deed == "replace":
        (tmp_path / "new").write_bytes(CONTENT)
        os.utime(tmp_path / "new", ns=(MTIME, MTIME))
        os.replace(tmp_path / "new", path)
    elif deed == "remove":
        path.unlink()
    else:
        os.utime(path)
    with pytest.raises(Unreadable, match="changed while it was sent"):
        for _ in reading:
            pass
        source.root()
    source.close()


def test_damaged_cache_is_put_aside(tmp_path: Path, caches: Caches) -> None:
    path = tmp_path / "hashes.sqlite"
    path.write_bytes(b"this is no database, and longer than a header of one would have to be" * 10)
    cache = caches(path)
    key = FileKey(1, 2, 3, 4)
    assert cache.get(key) == []
    cache.put(key, [bytes(range(32)), None])
    assert cache.get(key) == [bytes(range(32)), None]
    assert (tmp_path / "hashes.sqlite.bad").exists()


def test_cache_knows_the_largest_numbers(tmp_path: Path, caches: Caches) -> None:
    cache = caches(tmp_path / "hashes.sqlite")
    key = FileKey((1 << 64) - 1, (1 << 64) - 2, 1 << 42, -1)
    cache.put(key, [bytes(range(32))])
    cache.close()
    assert caches(tmp_path / "hashes.sqlite").get(key) == [bytes(range(32))]


def test_cache_that_was_closed_is_not_opened_again(tmp_path: Path, caches: Caches) -> None:
    path = tmp_path / "state" / "hashes.sqlite"
    cache = caches(path)
    key = FileKey(1, 2, 3, 4)
    cache.close()
    cache.put(key, [bytes(range(32))] * 2)
    assert cache.get(key) == []
    assert not path.exists()


def test_cache_that_cannot_be_written_is_only_slower(tmp_path: Path, caches: Caches) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = caches(tmp_path / "file" / "hashes.sqlite")
    cache.put(FileKey(1, 2, 3, 4), [bytes(32)] * 2)
    assert cache.get(FileKey(1, 2, 3, 4)) == []


def test_tree_leaves_out_links_specials_and_odd_names(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "leaf").write_bytes(b"x")
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "CON").write_bytes(b"x")
    os.mkfifo(tree / "pipe")
    (tree / os.fsdecode(b"\xff")).write_bytes(b"x")
    (tree / "e\u0301").write_bytes(b"x")
    (tree / "\u00e9").write_bytes(b"y")
    found = scan([tree], "into")
    assert [item.entry.path for item in found.items] == [
        "into/tree",
        "into/tree/\u00e9",
        "into/tree/sub",
        "into/tree/sub/leaf",
    ]
    assert {skipped.path.rpartition("/")[2]: skipped.why for skipped in found.skipped} == {
        "link": "it is a symbolic link",
        "CON": "its name is a device of Windows",
        "pipe": "it is neither a file nor a folder",
        "\udcff": "its name is no text",
        "\u00e9": "another of the same name is sent",
    }


# --- deaths -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("exists", ["replace", "refuse"])
def test_kill_at_any_write_leaves_the_old_file_or_the_new_one(tmp_path: Path, exists: str) -> None:
    """Every call that changes the disk is the last one of some life; writes are torn in the middle."""
    program = [sys.executable, str(Path(__file__).with_name("mesh_kill_points.py")), str(tmp_path), exists]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(program, capture_output=True, text=True, check=True, env=env)
    lives = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(lives) > 15
    assert [life["died"] for life in lives] == [True] * (len(lives) - 1) + [False]
    held = [life["held"] for life in lives]
    before = "old" if exists == "replace" else "none"
    turned = held.index("new")
    assert turned > 10
    assert set(held[:turned]) == {before}
    assert set(held[turned:]) == {"new"}
    for life in lives:
        assert (life["then"], life["names"]) == ("new", ["file"]), life
