"""The wheel: the same bytes wherever and whenever it is built, with a bill of what it wants beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from snippets import ROOT

pytest.importorskip("hatchling")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILT_FROM = ["pyproject.toml", "hatch_build.py", "README.md", "LICENSE"]


def built(tree: Path, mask: int, touched: float) -> Path:
    """A wheel built in a copy of the repository that lies elsewhere, has other modes and is of another day."""
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, tree / name)
    for path in tree.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        os.utime(path, (touched, touched))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, check=True, timeout=60, cwd=tree, stdout=subprocess.DEVNULL)
    [wheel] = (tree / "dist").iterdir()
    return wheel


@pytest.mark.slow
def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    one = built(tmp_path / "here", 0o022, 1_000_000_000)
    other = built(tmp_path / "far" / "away", 0o077, 1_700_000_000)
    assert one.name == other.name == f"pytailscale-{PROJECT['project']['version']}-py3-none-any.whl"
    assert one.read_bytes() == other.read_bytes()
    with zipfile.ZipFile(one) as archive:
        [bill] = [name for name in archive.namelist() if ".dist-info/sboms/" in name]
        check_bill(json.loads(archive.read(bill)))


def check_bill(bill: dict[str, Any]) -> None:
    project = PROJECT["project"]
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.7")
    assert bill["metadata"]["component"]["purl"] == f"pkg:pypi/pytailscale@{project['version']}"
    components = {each["name"]: each for each in bill["components"]}
    needed = {name for name, each in components.items() if each["scope"] == "required"}
    assert needed == {canonicalize_name(Requirement(each).name) for each in project["dependencies"]}
    assert components["noiseprotocol"]["versionRange"] == "vers:pypi/>=0.3.0|<0.4"
    assert components["numpy"]["scope"] == "optional"
    assert components["backports-zstd"]["properties"][0]["value"] == 'python_version < "3.14"'
    assert bill["dependencies"][0]["dependsOn"] == [components[name]["purl"] for name in sorted(components)]
    assert "timestamp" not in bill["metadata"]
    assert "serialNumber" not in bill
