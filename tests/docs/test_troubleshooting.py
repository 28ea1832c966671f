"""What docs/troubleshooting.md quotes is what the program says, and no health code is missing."""

from __future__ import annotations

import ast
import re

from snippets import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
CODES_MADE_UP = {"control-says-...", "failed-...", "relay-N-unwell"}  # a word or a number is filled in
RAISES = {"show"}


def said() -> str:
    """Every text in the source, f-strings with `...` where a value goes."""
    texts = []
    for path in (*(ROOT / "tailscale").rglob("*.py"), *(ROOT / "ts_control").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(p.value) if isinstance(p, ast.Constant) else "..." for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_every_quoted_sentence_is_one_the_program_says() -> None:
    everything = said()
    quoted = [q for line in PAGE.splitlines() if line.startswith("### ") for q in re.findall(r"`([^`]+)`", line)]
    assert len(quoted) > 15
    pieces = {piece.strip(" :,'") for sentence in quoted for piece in re.split(r"\.\.\.|: ", sentence)}
    assert not [piece for piece in pieces if len(piece) > 3 and piece not in everything]


def test_every_health_code_is_explained_and_exists() -> None:
    listed = set(re.findall(r"^\| `([\w.-]+)` \|", PAGE, re.MULTILINE)) - CODES_MADE_UP
    raised = set()
    wings = ("certificates", "dial", "kernel", "runtime")
    for path in (path for wing in wings for path in (ROOT / "tailscale" / wing).glob("*.py")):
        tree = ast.parse(path.read_text())
        constants = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in RAISES and node.args:
                code = node.args[0]
                value = constants.get(code.id) if isinstance(code, ast.Name) else getattr(code, "value", None)
                raised |= {value} if isinstance(value, str) else set()
    assert listed == raised
