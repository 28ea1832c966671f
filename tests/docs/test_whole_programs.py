"""What a page calls a whole program is one: pasted into a file, `python file.py` runs it, with nothing around it."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import snippets
import trio
from docs_world import World, running_world
from snippets import ROOT, Snippet

import tailscale

WHOLE = [s for s in snippets.all_snippets() if s.is_whole]
SERVING = [s for s in WHOLE if s.word == "forever"]
ENDING = [s for s in WHOLE if s not in SERVING]
PAGES_THAT_BEGIN_WITH_ONE = (
    "README.md",
    "docs/getting-started.md",
    "docs/asyncio.md",
    "docs/asgi.md",
    "docs/policy.md",
)
PATIENCE = 30.0
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_whole_programs_are_found() -> None:
    assert {s.file for s in WHOLE} >= set(PAGES_THAT_BEGIN_WITH_ONE)
    assert [s for s in WHOLE if s.word not in ("", "forever")] == [], "a program has a loop of its own: no word for it"


@pytest.mark.parametrize("snippet", WHOLE, ids=str)
def test_whole_program_is_python_by_itself_and_what_waits_has_a_main(snippet: Snippet) -> None:
    tree = ast.parse(snippet.source)
    compile(tree, str(snippet), "exec")  # an `await` outside a function is a SyntaxError here, as in a file
    assert snippet.calls_main or "await" not in snippet.source, f"{snippet} has no main that it calls"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Of these programs only: elsewhere nodes stay that were given a state, and have the names that these ask for."""
    with running_world() as made:
        yield made


@pytest.fixture
def pasted(request: pytest.FixtureRequest, world: World, visitor: dict[str, str], tmp_path: Path) -> list[str]:
    """The command that runs the snippet as a file in an empty folder."""
    snippet: Snippet = request.param
    if library := snippets.missing_library(snippet.source):
        pytest.skip(f"{library} is not installed")
    path = tmp_path / "program.py"
    path.write_text(snippets.filled(snippet, world.control_url, world.auth_key))
    return [sys.executable, "-W", "error", str(path)]


@pytest.mark.parametrize("pasted", ENDING, ids=str, indirect=True)
@pytest.mark.slow
def test_program_pasted_into_a_file_runs_to_its_end(pasted: list[str], visitor: dict[str, str]) -> None:
    done = subprocess.run(pasted, env=visitor, capture_output=True, text=True, timeout=PATIENCE)
    is_told_on_purpose = done.stderr.startswith("this device is locked out")  # by the page on the lock
    assert (done.returncode, "" if is_told_on_purpose else done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(("pasted", "snippet"), [(s, s) for s in SERVING], ids=map(str, SERVING), indirect=["pasted"])
@pytest.mark.slow
async def test_program_pasted_into_a_file_serves(pasted: list[str], snippet: Snippet, visitor: dict[str, str]) -> None:
    port = int(snippet.value)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery, tailscale.Device("visitor") as caller:
            options = {"env": visitor, "capture_stdout": True, "capture_stderr": True, "check": False}
            process = await nursery.start(partial(trio.run_process, pasted, **options, start_new_session=True))
            try:
                answer = await first_answer(caller, set(re.findall(r'Device\("([\w-]+)"', snippet.source)), port)
            finally:
                os.killpg(process.pid, signal.SIGINT)  # to the programs that it began too, as Ctrl-C does
    assert answer.startswith(b"HTTP/1.1 200" if port in snippets.WEB_PORTS else b"hello visitor")


async def first_answer(caller: tailscale.Device, names: set[str], port: int) -> bytes:
    """What the program says once it is there and listens."""
    while True:
        for name in names & {node.hostname for node in caller.peers.values() if node.online}:
            try:
                stream = await caller.tcp_connect(name, port)
            except OSError:
                continue  # not listening yet
            async with stream:
                if port in snippets.WEB_PORTS:
                    await stream.send_all(REQUEST)
                return await stream.receive_some()
        await trio.sleep(0.02)


@pytest.mark.slow
def test_output_that_the_policy_page_shows_is_what_its_program_prints(world: World) -> None:
    page = (ROOT / "docs" / "policy.md").read_text()
    (shown,) = re.findall(r"\nprints\n\n```\n(.*?)```", page, re.DOTALL)
    (program,) = [s for s in WHOLE if s.file == "docs/policy.md"]
    done = subprocess.run([sys.executable, "-c", program.source], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == (shown, "")
