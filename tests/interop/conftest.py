"""Fixtures of the interop suite; without built peers everything here is skipped, said once and loudly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

import tailscale
from tests.interop import build
from tests.interop.rig import Derper, Headscale, Rig, TsnetPeer, rig

LACKING: pytest.StashKey[set[str]] = pytest.StashKey()
FAILED: pytest.StashKey[bool] = pytest.StashKey()
ESSENTIAL = ("headscale-0.29.2", "derper", "tsnetpeer")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "peers(*names): the binaries a test needs besides the essential ones")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker("interop")
        if item.path.name.startswith("test_scenarios") and not hasattr(tailscale, "Device"):
            item.add_marker(pytest.mark.skip(reason="there is no tailscale.Device yet"))
        names = list(ESSENTIAL)
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
async def r(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """A rig of this test's own; its logs are kept when the test fails."""
    async with rig("t") as made:
        yield made
        if request.node.stash.get(FAILED, False):
            made.keep_logs()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


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
