"""examples/dask_on_a_tailnet.ipynb, executed cell by cell in a real kernel, in a tailnet of our own on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailscale.testing.threaded import TailnetThread
from tests.interop.notebook_scripts import answer_of, code_of, example, execute, library

pytestmark = [pytest.mark.peerless, pytest.mark.filterwarnings("default")]  # jupyter_client has warnings of its own


@pytest.mark.timeout(240)
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library("distributed"), library("ipykernel")
    notebook = example("dask_on_a_tailnet.ipynb")
    with TailnetThread() as net:
        monkeypatch.setenv("TS_CONTROL_URL", net.control_url)
        monkeypatch.setenv("TS_AUTHKEY", net.auth_key(reusable=True))
        execute(notebook, tmp_path)
    assert [answer for answer in map(answer_of, code_of(notebook)) if answer] == [
        "['one', 'two']",
        "303",
        str(32 << 20),
        "b'ok'",
    ]
