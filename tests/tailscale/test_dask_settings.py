"""What `distributed.comm.ts` says, and what each process makes of it. No dask cluster runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

dask = pytest.importorskip("dask")
pytest.importorskip("distributed")

import tailscale.dask  # noqa: E402
from tailscale.dask import settings  # noqa: E402
from tailscale.dask.comm import Backend  # noqa: E402


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    monkeypatch.setenv("TS_HOSTNAME", "farm")
    with dask.config.set({}):
        yield Backend()


def told(**keys: Any) -> Any:
    return dask.config.set({f"{settings.PREFIX}.{key.replace('_', '-')}": value for key, value in keys.items()})


def test_device_is_named_by_the_configuration_then_by_the_environment(backend: Backend) -> None:
    assert settings.device_options() == ("farm", {"tags": ()})
    with told(hostname="boss", control_url="https://c.example", tags=["tag:dask"], state="/var/lib/boss"):
        assert settings.device_options() == (
            "boss",
            {"tags": ("tag:dask",), "control_url": "https://c.example", "state": "/var/lib/boss"},
        )


def test_worker_that_dask_starts_has_a_name_of_its_own_and_no_state(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiprocessing.parent_process", lambda: object())
    with told(state="/var/lib/boss"):
        assert settings.device_options() == (f"farm-worker-{os.getpid()}", {"tags": ()})


def test_auth_key_in_the_configuration_is_refused_without_being_shown(backend: Backend) -> None:
    with told(auth_key="tskey-auth-secret"), pytest.raises(settings.UnusableSetting) as caught:
        settings.device_options()
    assert "TS_AUTHKEY" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_auth_key_comes_from_a_file(backend: Backend) -> None:
    with told(auth_key_file="/run/secrets/key"):
        assert settings.device_options()[1]["auth_key"] == "file:/run/secrets/key"


def test_contact_is_by_address_or_by_name_and_nothing_else(backend: Backend) -> None:
    assert not settings.contact_by_name()
    with told(contact="name"):
        assert settings.contact_by_name()
    with told(contact="smoke signals"), pytest.raises(settings.UnusableSetting, match='"ip" or "name"'):
        settings.contact_by_name()


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("100.64.0.7:8786", "100.64.0.7"),
        ("[fd7a:115c:a1e0::7]:8786", "fd7a:115c:a1e0::7"),
        ("", "127.0.0.1"),  # what a worker is told to listen at: its own HTTP server binds there
        (":0", "127.0.0.1"),
        ("100.64.0.7:0", "127.0.0.1"),
        ("scheduler:8786", "127.0.0.1"),  # no Device yet: a nanny asks
    ],
)
def test_host_of_an_address(backend: Backend, location: str, host: str) -> None:
    assert backend.get_address_host(location) == host


def test_addresses_keep_their_names(backend: Backend) -> None:
    assert backend.resolve_address("scheduler:8786") == "scheduler:8786"
    assert backend.get_address_host_port("scheduler:8786") == ("scheduler", 8786)
    assert backend.get_local_address_for("scheduler:8786") == ""
    with pytest.raises(ValueError, match="missing port"):
        backend.get_address_host_port("scheduler")


def test_without_distributed_the_extra_is_named() -> None:
    script = "import sys; sys.modules['distributed'] = None; import tailscale.dask; tailscale.dask.Backend"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'pytailscale[dask]'" in done.stderr.splitlines()[-1]
    with pytest.raises(AttributeError):
        _ = tailscale.dask.nonsense
