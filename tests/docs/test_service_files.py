"""The files under examples/service say what the product understands, and are what their readers can parse."""

from __future__ import annotations

import configparser
import json
import re

from snippets import ROOT

FOLDER = ROOT / "examples" / "service"
TEXTS = {path.name: path.read_text() for path in FOLDER.iterdir()}
KNOWN = set(re.findall(r"`(TS_[A-Z_]+)`", (ROOT / "docs" / "configuration.md").read_text()))


def test_variables_are_those_that_a_device_reads() -> None:
    for name, text in TEXTS.items():
        assert set(re.findall(r"\bTS_[A-Z_]+", text)) <= KNOWN, name


def test_keys_come_from_files() -> None:
    for name, text in TEXTS.items():
        for value in re.findall(r"TS_AUTHKEY[=:}, ]+(?:value: )?\"?(\S+)", text):
            assert value.startswith("file:"), name


def test_unit_is_one_that_systemd_reads() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(TEXTS["pytailscale-app.service"])
    assert unit.sections() == ["Unit", "Service", "Install"]
    assert unit["Service"]["ExecStart"].endswith("http_serve.py")


def test_image_hears_signals() -> None:
    command = re.search(r"^CMD (.*)$", TEXTS["Dockerfile"], re.MULTILINE)
    assert command is not None
    assert json.loads(command[1])[0] == "python"


def test_guide_names_every_file() -> None:
    guide = (ROOT / "docs" / "services.md").read_text()
    assert [name for name in TEXTS if f"examples/service/{name})" not in guide] == []
