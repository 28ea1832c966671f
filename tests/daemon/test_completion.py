"""Completions: what bash offers when it is asked, and that the other two name all there is."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tailscale.cli import main
from tailscale.cli.arguments import build_parser
from tailscale.cli.completion import Verb, bash, fish, read_parser, zsh
from tailscale.daemon.daemon import Daemon

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def offered(line: str, folder: Path) -> list[str]:
    """What bash completes after `line`; `pytailscale completion peers` says db and desk."""
    tool = folder / "pytailscale"
    tool.write_text("#!/bin/sh\necho db\necho desk\n")
    tool.chmod(0o755)
    script = folder / "complete.bash"
    script.write_text(bash(read_parser()))
    words = line.split(" ")
    listed = " ".join(f"'{word}'" for word in words)
    code = f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _pytailscale; "
    code += "printf '%s\\n' \"${COMPREPLY[@]}\""
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", code], capture_output=True, text=True, env=environment, check=True, cwd=folder
    )
    assert not done.stderr
    return done.stdout.split()


@needs_bash
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pytailscale sta", ["status"]),
        ("pytailscale --plain stat", ["status"]),
        ("pytailscale status --onl", ["--online"]),
        ("pytailscale ping d", ["db", "desk"]),
        ("pytailscale ping --kind ts", ["tsmp"]),
        ("pytailscale completion f", ["fish"]),
        ("pytailscale up --config compl", ["complete.bash"]),
        ("pytailscale up --hostname x", []),
    ],
)
def test_bash_offers_what_fits(line: str, words: list[str], tmp_path: Path) -> None:
    assert offered(line, tmp_path) == words


@pytest.mark.parametrize("dialect", [bash, zsh, fish])
def test_every_command_and_option_is_in_every_dialect(dialect: object) -> None:
    text = dialect(read_parser())  # type: ignore[operator]
    for name, parser in build_parser().commands().items():
        assert name in text
        for action in parser.actions():
            for option in action.option_strings:
                assert (
                    f"-l {option[2:]}" if dialect is fish and option.startswith("--") else option.lstrip("-")
                ) in text


@pytest.mark.parametrize("dialect", [bash, zsh, fish])
def test_what_is_opened_is_closed(dialect: Callable[[list[Verb]], str]) -> None:
    """What can be seen without the shell; tests/interop/test_shells.py asks zsh and fish themselves."""
    text = dialect(read_parser()).replace("\\'", "")  # a quotation mark inside quotes, as fish writes it
    assert shlex.split(text, comments=True)
    for opening, closing in ("{}", "[]"):
        assert text.count(opening) == text.count(closing)
    assert [row for row in text.splitlines() if row.count("'") % 2] == []


def test_peers_come_from_a_running_daemon_alone(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", "peers", "--state", str(Path(daemon.places.state).parent)]) == 0
    assert capsys.readouterr().out == "db\n"
    assert main(["completion", "peers", "--state", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_scripts_and_schemas_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert "complete -F _pytailscale pytailscale" in capsys.readouterr().out
    assert main(["schema", "ping"]) == 0
    assert '"sequence"' in capsys.readouterr().out
    assert main(["schema"]) == 0
    assert '"failure"' in capsys.readouterr().out
    assert main(["schema", "../run"]) == 2
    assert "has no --json" in capsys.readouterr().err
