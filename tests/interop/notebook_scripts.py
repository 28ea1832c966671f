"""Notebooks executed cell by cell in a real kernel, and what their cells said.

nbclient and ipykernel come from the `notebooks` group, which `make interop` installs: where they are missing the tests
fail, and say so.
"""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 120


def library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.fail(f"no Python package {name} here: `make interop` installs it (pip install --group notebooks)")


def example(name: str) -> Any:
    """A notebook of the examples, which is kept without outputs: they hold addresses, perhaps a key."""
    notebook = library("nbformat").read(EXAMPLES / name, as_version=4)
    assert not [cell for cell in code_of(notebook) if cell.outputs or cell.execution_count], "clear its outputs"
    return notebook


def cells(*sources: str) -> Any:
    """A notebook of these cells."""
    made = library("nbformat").v4
    return made.new_notebook(cells=[made.new_code_cell(source) for source in sources])


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: Any, folder: Path, **options: Any) -> Any:
    """Run every cell, or up to the first that fails; with `allow_errors=True` all of them."""
    client = library("nbclient").NotebookClient(
        notebook, timeout=PATIENCE, resources={"metadata": {"path": str(folder)}}, **options
    )
    asyncio.run(client.async_execute())
    return notebook


def answer_of(cell: Any) -> str:
    """What the cell's last line is worth."""
    return next((str(o.data["text/plain"]) for o in cell.outputs if o.output_type == "execute_result"), "")


def html_of(cell: Any) -> str:
    """As what notebooks show it."""
    shown = [output.data for output in cell.outputs if output.output_type in ("execute_result", "display_data")]
    return "".join(str(data.get("text/html", "")) for data in shown)


def said_by(cell: Any) -> str:
    """What it printed, or logged."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def failure_of(cell: Any) -> list[str]:
    """The lines that are shown of what it failed of; [] if it did not."""
    return [line for o in cell.outputs if o.output_type == "error" for line in "\n".join(o.traceback).splitlines()]
