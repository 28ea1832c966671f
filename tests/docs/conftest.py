"""One world for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_world import World, running_world

from tailscale.kernel import interface

UNSET = ("TS_AUTH_KEY", "TS_HOSTNAME", "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with running_world() as made:
        yield made


@pytest.fixture
def visitor(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A program's environment in that world: its folder, its home, its variables."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    for name, value in (world.environment | {"HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return dict(os.environ)


@pytest.fixture(autouse=True)
def nothing_is_given_to_this_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages show TUN devices, and whoever runs their snippets may be root."""
    monkeypatch.setattr(interface, "DEVICE", Path("/dev/net/nowhere"))
