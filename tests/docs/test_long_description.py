"""What PyPI shows of the README leads nowhere that does not exist, and the wheel says what pyproject.toml says."""

from __future__ import annotations

import email
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from snippets import ROOT

pytest.importorskip("hatchling")
README = (ROOT / "README.md").read_text()
SOURCE = "https://git.example.com/somebody/pytailscale/"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relative(text: str) -> list[str]:
    return [target for target in LINK.findall(text) if not target.startswith(("https://", "#"))]


def test_links_lead_nowhere_while_there_is_no_repository() -> None:
    assert relative(README)
    shown = hook().long_description(README, "")
    assert relative(shown) == []
    assert "[Headscale](https://headscale.net)" in shown
    assert hook().long_description("see [the guide](docs/guide.md#here)", "") == "see the guide"


def test_links_lead_into_the_repository_once_there_is_one() -> None:
    shown = hook().long_description(README + "![a map](docs/map.png)", SOURCE)
    assert relative(shown) == []
    for target in set(relative(README)):
        kind = "raw" if target.endswith(".svg") else "blob"
        assert f"](https://git.example.com/somebody/pytailscale/{kind}/HEAD/{target})" in shown
    assert "![a map](https://git.example.com/somebody/pytailscale/raw/HEAD/docs/map.png)" in shown


@pytest.mark.slow
def test_the_wheel_shows_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True, timeout=60)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert relative(str(metadata.get_payload())) == []
