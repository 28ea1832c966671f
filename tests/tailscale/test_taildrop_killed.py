"""A receiver that is killed at any call that changes the disk: nothing under the name, or all of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tailscale.taildrop.partial import Partial, hash_lines, sweep, waiting_files

DATA = bytes(range(256)) * 1024  # 256 KiB, in four pieces
KEY = "k" * 16
CHANGES = ("pwrite", "ftruncate", "fsync", "link", "unlink", "rename", "replace", "open", "close")


def receive(folder: Path) -> None:
    part = Partial(folder, "x", KEY)
    part.begin(0)
    for start in range(0, len(DATA), 65536):
        part.write([DATA[start : start + 65536]])
    part.finish("rename")
    part.close()


def killed_at(folder: Path, number: int) -> bool:
    """Whether the child lived to call `number`, and died there."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] >> 8 == 9
    calls = 0
    for name in CHANGES:
        real = getattr(os, name)

        def counted(*arguments: object, _real: object = real, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                os._exit(9)
            return _real(*arguments, **options)  # type: ignore[operator]

        setattr(os, name, counted)
    try:
        receive(folder)
    finally:
        os._exit(0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_killed_anywhere_leaves_nothing_under_the_name_or_all_of_it(tmp_path: Path) -> None:
    number, wholes = 1, 0
    while killed_at(folder := tmp_path / str(number), number) if (tmp_path / str(number)).mkdir() is None else False:
        found = dict(waiting_files(folder))
        assert found in ({}, {"x": len(DATA)}), number
        if found:
            wholes += 1
            assert (folder / "x").read_bytes() == DATA
        lines = b"".join(hash_lines(folder, "x", KEY))
        assert lines.count(b"\n") <= len(DATA) // 65536
        receive(folder)  # its sender comes again
        assert dict(waiting_files(folder)) == {"x": len(DATA)}
        assert (folder / "x").read_bytes() == DATA
        sweep(folder, 1e12)
        assert os.listdir(folder) == ["x"]
        number += 1
    assert number > 12
    assert wholes >= 1
