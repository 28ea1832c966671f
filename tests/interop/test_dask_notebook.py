"""examples/dask_on_a_tailnet.ipynb, executed cell by cell in a real kernel, in a tailnet of our own on loopback.

nbclient and ipykernel come from the `notebooks` group; without them the test is skipped with a loud line.
"""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

import pytest

from tailscale.testing.threaded import TailnetThread

pytestmark = [pytest.mark.peerless, pytest.mark.filterwarnings("default")]  # jupyter_client has warnings of its own
NOTEBOOK = Path(__file__).parents[2] / "examples/dask_on_a_tailnet.ipynb"


def library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"NOTEBOOK SKIPPED: no Python package {name} here: pip install --group notebooks --group clients")


@pytest.mark.timeout(240)
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library("distributed"), library("ipykernel")
    nbclient, nbformat = library("nbclient"), library("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in cells if cell.outputs or cell.execution_count], "outputs hold addresses, perhaps a key"
    with TailnetThread() as net:
        control, key = net.control_url, net.auth_key(reusable=True)
        monkeypatch.setenv("TS_CONTROL_URL", control)
        monkeypatch.setenv("TS_AUTHKEY", key)
        client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
        asyncio.run(client.async_execute())
    assert [answer for answer in map(answer_of, notebook.cells) if answer] == [
        "['one', 'two']",
        "303",
        str(32 << 20),
        "b'ok'",
    ]


def answer_of(cell: Any) -> str:
    """What the cell's last line is worth."""
    for output in cell.get("outputs", ()):
        if output.output_type == "execute_result":
            return str(output.data["text/plain"])
    return ""
