"""Every Python snippet of the docs and the public docstrings does what it says, in a tailnet with peers.

Programs that serve until they are stopped are run in a process of their own, by test_whole_programs.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import snippets
from docs_world import World
from snippets import Snippet

EVERY = snippets.all_snippets()
RUN = [s for s in EVERY if s.word not in ("pytest", "no-run") and not (s.is_whole and s.word == "forever")]
NOT_RUN_LIMIT = 11


def test_snippets_are_found_where_they_are_expected() -> None:
    files = {snippet.file for snippet in EVERY}
    assert {"README.md", "docs/getting-started.md", "docs/databases.md", "tailscale/device.py"} <= files
    assert len(RUN) > 20


def test_words_of_every_snippet_are_known() -> None:
    assert not [str(s) for s in EVERY if s.word not in snippets.WORDS]


def test_few_snippets_are_not_run_and_each_says_why() -> None:
    excused = [s for s in EVERY if s.word == "no-run"]
    assert len(excused) <= NOT_RUN_LIMIT, [str(s) for s in excused]
    assert not [str(s) for s in excused if not s.above.startswith("<!-- not run: ")]


@pytest.mark.slow
@pytest.mark.parametrize("snippet", RUN, ids=str)
def test_snippet_runs(snippet: Snippet, world: World, visitor: dict[str, str]) -> None:
    library = snippets.missing_library(snippet.source)
    if library:
        pytest.skip(f"{library} is not installed")
    snippets.run(snippet, world.control_url, world.auth_key)


@pytest.mark.slow
def test_snippets_that_are_tests_pass(tmp_path: Path) -> None:
    tests = [s for s in EVERY if s.word == "pytest"]
    for number, snippet in enumerate(tests):
        (tmp_path / f"test_snippet_{number}.py").write_text(f"# {snippet}\n{snippet.source}")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
