"""One tailnet and one daemon for all the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon.daemon_scripts import World, client_of, world

from tailscale.daemon.client import Client
from tailscale.daemon.daemon import Daemon


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture(scope="module")
def daemon(net: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with net.daemon(tmp_path_factory.mktemp("daemon")) as made:
        yield made


@pytest.fixture
def client(daemon: Daemon) -> Client:
    return client_of(daemon)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TS_AUTHKEY", "TS_AUTH_KEY", "TS_CONTROL_URL", "TS_HOSTNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nobody"))
