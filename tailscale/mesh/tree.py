"""What there is to send below the paths somebody named: files and folders in a fixed order, and what is left out.

Links, devices and names that no other system could keep are skipped and told. Everything blocks.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tailscale.files.folders import Folder, walk
from tailscale.files.transfers import Skipped
from tailscale.mesh.errors import TransferFailed
from tailscale.mesh.hash_cache import FileKey
from ts_mesh.blocks import LARGEST_FILE
from ts_mesh.names import DEEPEST, objection_to
from ts_mesh.offers import ENTRIES_LIMIT, Entry


class Item(NamedTuple):
    """One entry of an offer, and where it lies here."""

    entry: Entry
    top: Path
    parts: tuple[str, ...]
    """Below `top`, as the disk spells them; the last is the file's own name."""
    key: FileKey

    def folder(self) -> Folder:
        """The folder it is in, open."""
        return walk(self.top, self.parts[:-1])


class Tree(NamedTuple):
    items: list[Item]
    skipped: list[Skipped]

    @property
    def total(self) -> int:
        return sum(item.entry.size for item in self.items)


def scan(paths: Iterable[Path], into: str = "") -> Tree:
    """Everything below the paths, each under its own last name, or under `into` and that."""
    tree = Tree([], [])
    taken: set[str] = set()
    for path in paths:
        top = Path(os.path.abspath(path))  # not resolved: a link that is named by hand is followed, under its own name
        name = unicodedata.normalize("NFC", top.name)
        if not name:
            raise TransferFailed(f"cannot send {path}: the root of a disk has no name; send what is inside")
        if objection := objection_to(top.name):
            raise TransferFailed(f"cannot send {path}: its name {objection}")
        try:
            status = os.stat(top)
            _add(tree, taken, top, (), f"{into}/{name}".strip("/"), status)
        except OSError as problem:
            raise TransferFailed(f"cannot read {problem.filename or path}: {problem.strerror}") from problem
    return tree


def scan_shared(top: Path, parts: tuple[str, ...], name: str) -> Tree:
    """What somebody else asks for, below what is shared as `name`: no link is followed, and it keeps its last name."""
    tree = Tree([], [])
    if not parts:
        _add(tree, set(), top, (), name, os.stat(top))
        return tree
    with walk(top, parts[:-1]) as folder:
        # Names travel in NFC, and the disk may spell them otherwise.
        spelled = [name for name in folder.names() if unicodedata.normalize("NFC", name) == parts[-1]]
        status = folder.look(spelled[0]) if spelled else None
    if status is None or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise FileNotFoundError
    _add(tree, set(), top, (*parts[:-1], spelled[0]), parts[-1], status)
    return tree


def _add(tree: Tree, taken: set[str], top: Path, parts: tuple[str, ...], path: str, status: os.stat_result) -> None:
    """The file or folder, and all inside it."""
    # What is named by hand may be a link; from its folder on, nothing is.
    home, below = (
        (top, parts) if parts or stat.S_ISDIR(status.st_mode) else (top.resolve().parent, (top.resolve().name,))
    )
    waiting: list[tuple[tuple[str, ...], str, os.stat_result]] = [(below, path, status)]
    while waiting:
        parts, path, status = waiting.pop()
        if problem := _objection(path, status, taken):
            tree.skipped.append(Skipped(path, problem))
            continue
        taken.add(path)
        if len(tree.items) >= ENTRIES_LIMIT:
            raise TransferFailed(f"more than {ENTRIES_LIMIT} files and folders at once: send their folders one by one")
        mode = stat.S_IMODE(status.st_mode)
        is_folder = stat.S_ISDIR(status.st_mode)
        entry = Entry(path, 0 if is_folder else status.st_size, status.st_mtime_ns, mode, is_folder)
        tree.items.append(Item(entry, home, parts, FileKey.of(status)))
        if is_folder:
            waiting += reversed(list(_inside(tree, home, parts, path)))


def _inside(
    tree: Tree, home: Path, parts: tuple[str, ...], path: str
) -> Iterator[tuple[tuple[str, ...], str, os.stat_result]]:
    with walk(home, parts) as folder:
        for name in folder.names():
            status = folder.look(name)
            if status is None:
                continue  # gone since
            if problem := objection_to(name):
                tree.skipped.append(Skipped(f"{path}/{name}", f"its name {problem}"))
                continue
            yield (*parts, name), f"{path}/{unicodedata.normalize('NFC', name)}", status


def _objection(path: str, status: os.stat_result, taken: set[str]) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return "it is neither a file nor a folder"
    if path in taken:
        return "another of the same name is sent"
    if path.count("/") >= DEEPEST:
        return f"it lies deeper than {DEEPEST} folders"
    return f"it is larger than {LARGEST_FILE} bytes" if status.st_size > LARGEST_FILE else ""
