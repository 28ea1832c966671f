"""A cell that joins is run again: in notebooks the device of its earlier run leaves first; `open` twice is no harm.

IPython is played by an object with its two names; tests/interop/test_notebooks.py has the real one.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from thread_scripts import our_threads

from tailscale import MemoryStore, aio, sync
from tailscale.testing.threaded import TailnetThread
from tailscale.threads.cells import Claim, claim_of, running_cell


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Its `execution_count` is the number of the cell that runs."""
    shell = SimpleNamespace(execution_count=1)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    return shell


def test_a_later_cell_takes_the_name_of_an_earlier_one(
    net: TailnetThread, notebook: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    before, first = our_threads(), sync.Device("note", **net.options()).open()
    notebook.execution_count = 2
    with sync.Device("note", **net.options()) as second:
        assert (first.is_open, second.hostname) == (False, "note")
        assert len(our_threads()) == len(before) + 1
        assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
            "note of an earlier cell is closed now: this one opens a device of the same name or state"
        ]


def test_the_same_in_asyncio_ends_its_servers_too(net: TailnetThread, notebook: SimpleNamespace) -> None:
    async def main() -> None:
        first = await aio.Device("note", **net.options()).open()
        server = await first.start_server(lambda *_: None, 80)
        notebook.execution_count = 2
        async with aio.Device("note", **net.options()) as second:
            assert (first.is_open, server.is_serving(), second.hostname) == (False, False, "note")
        await first.close()

    asyncio.run(main())


def test_two_of_one_cell_and_two_of_a_program_are_both_wanted(
    net: TailnetThread, notebook: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sync.Device("twin", **net.options()) as a, sync.Device("twin", **net.options()) as b:
        assert {a.hostname, b.hostname} == {"twin", "twin-1"}
    monkeypatch.delitem(sys.modules, "IPython")
    with sync.Device("twin", **net.options()) as a, sync.Device("twin", **net.options()) as b:
        assert a.is_open
        assert b.is_open


def test_threads_that_a_cell_left_running_are_no_cells(notebook: SimpleNamespace) -> None:
    found: list[int | None] = [running_cell()]
    thread = threading.Thread(target=lambda: found.append(running_cell()))
    thread.start()
    thread.join()
    assert found == [1, None]


@pytest.mark.parametrize("module", [None, SimpleNamespace(), SimpleNamespace(get_ipython=lambda: None)])
def test_without_a_shell_there_is_no_cell(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", module)  # type: ignore[arg-type]
    assert running_cell() is None


def test_who_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TS_CONTROL_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    one = claim_of("Note Book", {"control_url": "https://c.example/", "state": "x"})
    assert one == Claim("note-book", "https://c.example", str(tmp_path / "x"))
    one = one._replace(cell=1)
    for other, gives_way in [
        (one, False),
        (one._replace(cell=2), True),
        (one._replace(cell=None), False),
        (one._replace(cell=2, hostname="b"), True),
        (one._replace(cell=2, hostname="b", state=None), False),
        (one._replace(cell=2, control_url="https://d.example", state=None), False),
        (one._replace(cell=2, state=None), True),
    ]:
        assert one.gives_way_to(other) is gives_way
    store = MemoryStore()
    assert claim_of("a", {"state": store}).state == claim_of("b", {"state": store}).state
    assert claim_of("a", {}).state is None


def test_open_twice_is_the_same_device(net: TailnetThread, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with aio.Device("again", **net.options()) as device:
            assert await device.open() is device

    with sync.Device("again", **net.options()) as device:
        assert device.open() is device
    asyncio.run(main())
    said = [r.getMessage() for r in caplog.records if "open() has nothing to do" in r.getMessage()]
    assert [text.split()[0] for text in said] == ["<tailscale.sync.Device", "<tailscale.aio.Device"]
