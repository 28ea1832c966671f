"""`pytailscale demo`: works, is quick, leaves nothing, and says why when a step fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tailscale.cli import demo as demo_module
from tailscale.cli import main

STEPS = (
    "a control server and a relay start",
    "two devices join",
    "MagicDNS",
    "TCP both ways",
    "a web page that knows who is asking",
    "from relay to direct",
    "throughput",
    "the policy changes",
    "how it stands now",
    "taken down",
)


@pytest.fixture(autouse=True)
def short_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "BULK_SECONDS", 0.05)


def test_demo_shows_every_step_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    places = [out.index(step) for step in STEPS]
    assert places == sorted(places)
    assert "\x1b" not in out
    assert "hello laptop" in out
    assert re.search(r"after +direct 127\.0\.0\.1:\d+", out)
    assert re.search(r"port 22: Connection\w+: server port 22 .*policy", re.sub(r"\n +", " ", out))
    assert re.search(r"[\d,]+ Mbit/s", out)


@pytest.mark.slow
def test_demo_in_a_process_of_its_own_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONWARNINGS": "error::ResourceWarning",
    }
    before = set(Path(tempfile.gettempdir()).glob("pytailscale*"))
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tailscale.cli", "demo"],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(home.rglob("*")) == []
    assert set(Path(tempfile.gettempdir()).glob("pytailscale*")) == before


def test_failing_step_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fetch_nothing(*_: object) -> str:
        raise ConnectionResetError("the page never came")

    monkeypatch.setattr(demo_module, "fetch_page", fetch_nothing)
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    assert re.search(r"(☒|✗|FAILED) +a web page that knows who is asking", captured.out)
    assert "the page never came" in captured.out
    assert "Traceback" not in captured.out + captured.err
