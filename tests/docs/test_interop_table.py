"""The table of interop scenarios names tests that exist, and leaves none of the scenario files' tests out."""

from __future__ import annotations

import ast
import re

from snippets import ROOT

FOLDER = ROOT / "tests" / "interop"
COLUMNS = ["scenario", "peers", "path", "expectation", "test"]
TOLD_IN_FULL = (
    "test_scenarios.py",
    "test_scenarios_control.py",
    "test_capture_tshark.py",
    "test_control_scripted.py",
    "test_dask_notebook.py",
    "test_dask_real.py",
    "test_derp_real.py",
    "test_embedded_control.py",
    "test_engines_real.py",
    "test_forward_real.py",
    "test_impair.py",
    "test_natlab.py",
    "test_notebooks.py",
    "test_paths_real.py",
    "test_peer_relay_real.py",
    "test_peerapi_real.py",
    "test_real_clients.py",
    "test_shells.py",
    "test_ssh_real.py",
    "test_web_real.py",
)


def rows() -> list[list[str]]:
    text = (FOLDER / "README.md").read_text()
    section = text.split("## The scenarios\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row != COLUMNS]


def held_in(file: str) -> set[str]:
    tree = ast.parse((FOLDER / file).read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {f"{file}::{node.name}" for node in functions if node.name.startswith("test_")}


def test_every_row_is_whole_and_named_once() -> None:
    table = rows()
    assert len(table) > 50
    assert [row for row in table if len(row) != len(COLUMNS) or not all(row)] == []
    scenarios = [row[0] for row in table]
    assert len(set(scenarios)) == len(scenarios)


def test_every_row_names_a_test_that_exists() -> None:
    named = [re.fullmatch(r"`(\w+\.py)::\w+`", row[-1]) for row in rows()]
    assert all(named)
    lost = [match[0] for match in named if match and match[0].strip("`") not in held_in(match[1])]
    assert lost == []


def test_no_scenario_is_left_out() -> None:
    named = {row[-1].strip("`") for row in rows()}
    assert sorted(set().union(*map(held_in, TOLD_IN_FULL)) - named) == []
