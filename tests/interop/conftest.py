"""Fixtures of the interop suite; without built peers everything here is skipped, said once and loudly."""

from __future__ import annotations

import io
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.terminal import TerminalReporter

from tests.interop import build
from tests.interop.processes import KEEP
from tests.interop.rig import Derper, Headscale, Rig, TsnetPeer
from tests.tailscale.secret_spy import Spy

LACKING: pytest.StashKey[set[str]] = pytest.StashKey()
LOGS: pytest.StashKey[Path] = pytest.StashKey()
ESSENTIAL = ("headscale-0.29.2", "derper", "tsnetpeer")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "peers(*names): the binaries a test needs besides the essential ones")
    config.addinivalue_line("markers", "peerless: needs none of them")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker("interop")
        names = [] if item.get_closest_marker("peerless") else list(ESSENTIAL)
        for marker in item.iter_markers("peers"):
            names += marker.args
        lacking = build.missing(tuple(names))
        if lacking:
            why = f"peers not built: {', '.join(lacking)} (python tests/interop/build.py)"
            item.add_marker(pytest.mark.skip(reason=why))
            config.stash.setdefault(LACKING, set()).update(lacking)


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    lacking = config.stash.get(LACKING, set())
    if lacking:
        terminalreporter.write_line(
            f"INTEROP SKIPPED: peers not built: {', '.join(sorted(lacking))}; "
            "run `python tests/interop/build.py` where there is Go",
            yellow=True,
        )


@pytest.fixture
def r(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A rig of this test's own; its logs are kept when the test fails.

    Not an async fixture: those end before it is known whether the test has failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="pyts-t-"))
    request.node.stash[LOGS] = folder
    yield Rig(folder)
    if not (folder / KEEP).exists() and not os.environ.get("PYTAILSCALE_KEEP_LOGS"):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    folder = item.stash.get(LOGS, None)
    if report.failed and folder is not None and folder.exists():
        (folder / KEEP).touch()
        report.sections.append(("logs of all servers", f"kept: {folder}"))
    return report


@pytest.fixture(autouse=True)
def no_secret_shows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every scenario runs at DEBUG, and what is logged holds no private key and no auth key."""
    spy, log = Spy(), io.StringIO()
    spy.watch(monkeypatch)
    issue = Headscale.auth_key

    async def remember(*arguments: Any, **options: Any) -> str:
        key = await issue(*arguments, **options)
        spy.words |= {key, key[-40:]}  # what stands before is its name
        return key

    monkeypatch.setattr(Headscale, "auth_key", remember)
    root, handler = logging.getLogger(), logging.StreamHandler(log)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield
    root.setLevel(level)
    root.removeHandler(handler)
    spy.check(log.getvalue())


@pytest.fixture
async def relay(r: Rig) -> AsyncIterator[Derper]:
    async with r.derper() as made:
        yield made


@pytest.fixture
async def hs(r: Rig, relay: Derper) -> AsyncIterator[Headscale]:
    async with r.headscale(regions=[relay.region]) as made:
        yield made


@pytest.fixture
async def db(r: Rig, hs: Headscale) -> AsyncIterator[TsnetPeer]:
    """A tsnet node named db with all our services."""
    async with r.tsnet(hs, await hs.auth_key(), "db") as made:
        yield made
