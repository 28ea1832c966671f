"""A library that is optional is as good as absent when it does not import, whatever it raises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ts_base.optional import is_installed, optional

ROOT = Path(__file__).parents[2]
# What each optional library is for, and that we do without it.
WITHOUT = {
    "numpy": """
from ts_netstack import checksums
assert checksums.fastest_burst_sums() is checksums.burst_sums_by_folding
assert checksums.burst_sums([bytes(2)] * 9) == [0] * 9
""",
    "rich": """
import io
from tailscale.cli.screen import Screen
class Terminal(io.StringIO):
    isatty = lambda self: True
out = Terminal()
Screen(out=out, err=Terminal()).table(["name"], [["db"]])
assert "db" in out.getvalue()
""",
    "wsproto": """
from ts_base.optional import optional
import tailscale.http.server
assert optional("tailscale.http.websocket") is None
""",
}
BROKEN = (
    "raise ImportError('libopenblas.so.0: cannot open shared object file')",
    "raise AttributeError('_ARRAY_API not found')",
    "raise RuntimeError('CPU dispatcher tracer already initialized')",
    "raise OSError('wrong architecture')",
    "1 / 0",
    "",  # a folder that was left behind
)


@pytest.mark.parametrize("broken", BROKEN)
def test_what_does_not_import_is_as_if_absent(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wobbly.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wobbly", raising=False)
    assert optional("wobbly", "needed") is None
    assert optional("no_such_library_anywhere") is None


def test_what_imports_is_handed_over() -> None:
    import json

    assert optional("json", "dumps") is json


def test_what_is_installed_is_known_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left_behind").mkdir()
    (tmp_path / "wobbly.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed("wobbly")
    assert not is_installed("left_behind")
    assert not is_installed("no_such_library_anywhere")


@pytest.mark.parametrize("library", WITHOUT)
def test_a_broken_library_breaks_nothing(library: str, tmp_path: Path) -> None:
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text("raise RuntimeError('broken on purpose')")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT[library]],
        env={"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))), "TERM": "xterm"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
