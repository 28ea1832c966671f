"""The pictures of the docs stand by themselves, are small, and show what the program says today."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ElementTree

from snippets import ROOT

PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))
LARGEST = 200 << 10
DRAWN_BY_HAND = ("packet", "deployment")


def test_pictures_are_small_and_load_nothing() -> None:
    for path in PICTURES:
        text = path.read_text()
        assert len(text) < LARGEST, path.name
        assert re.findall(r"(?:href|src)=[\"'](?!#)|url\((?!#)|@import", text) == [], path.name
        ElementTree.fromstring(text)


def test_drawings_say_what_they_show_and_fit_the_dark() -> None:
    for name in DRAWN_BY_HAND:
        text = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text()
        assert "<title" in text, name
        assert "<desc" in text, name
        assert "prefers-color-scheme: dark" in text, name


def test_recording_shows_every_step_of_the_demo() -> None:
    """Run docs/record_demo.py where it does not."""
    tree = ast.parse((ROOT / "tailscale" / "cli" / "demo.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    titles = [ast.unparse(call.args[0]) for call in calls if call.func.attr == "step"]  # type: ignore[attr-defined]
    assert len(titles) == 10
    drawn = ElementTree.fromstring((ROOT / "docs" / "pictures" / "demo.svg").read_text())
    shown = re.sub(r"\s+", " ", "".join(drawn.itertext()).replace("\N{NO-BREAK SPACE}", " "))
    for title in titles:
        begin = re.split(r"[{]", title.removeprefix("f").strip("'\""))[0]
        assert begin in shown, begin
