"""The daemon's SSH server: a preference of the stock command line, a section of the settings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
from daemon.daemon_scripts import World, client_of
from daemon.test_commands_hosted import wait_until

from tailscale.daemon.client import Client
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.localapi import ROOT as API
from tailscale.daemon.requests import DaemonError
from tailscale.daemon.settings import read_settings
from tailscale.device import Device


def parts_of(client: Client) -> dict[str, str]:
    return {part["kind"]: part["state"] for part in client.get("/pytailscale/v1/config")["parts"]}


def test_ssh_server_is_a_preference(net: World, tmp_path: Path) -> None:
    on, off = ({"RunSSH": wanted, "RunSSHSet": True} for wanted in (True, False))
    with net.daemon(tmp_path) as daemon:
        client = client_of(daemon)
        assert client.ask("PATCH", f"{API}prefs", on)["RunSSH"] is True
        wait_until(lambda: parts_of(client).get("ssh") == "running")
        net.within(refused, net.db, daemon, False)
        assert client.get(f"{API}prefs")["RunSSH"] is True
        assert client.ask("PATCH", f"{API}prefs", off)["RunSSH"] is False
        assert "ssh" not in parts_of(client)
        net.within(refused, net.db, daemon, True)


async def refused(by: Device, daemon: Daemon, is_refused: bool) -> None:
    """Whether nobody listens at port 22."""
    address = daemon.keeper.device.node.ipv4
    assert address is not None
    with trio.fail_after(10):
        while is_refused != await _is_refused(by, address):  # noqa: ASYNC110 - what peers see
            await trio.sleep(0.01)


async def _is_refused(by: Device, address: str) -> bool:
    try:
        stream = await by.tcp_connect(address, 22)
    except ConnectionRefusedError:
        return True
    await stream.aclose()
    return False


def test_ssh_server_of_the_settings_is_not_turned_off_here(net: World, tmp_path: Path) -> None:
    settings = read_settings("[ssh]\nport = 2222\n", "c.toml")
    with net.daemon(tmp_path, read=lambda: settings) as daemon:
        client = client_of(daemon)
        assert client.get(f"{API}prefs")["RunSSH"] is True
        with pytest.raises(DaemonError, match=r"config.toml has \[ssh\]"):
            client.ask("PATCH", f"{API}prefs", {"RunSSH": False, "RunSSHSet": True})
        wait_until(lambda: parts_of(client).get("ssh") == "running")


def test_ssh_server_wants_its_library(net: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with net.daemon(tmp_path) as daemon, pytest.raises(DaemonError, match=r"pip install .*pytailscale\[ssh\]"):
        client_of(daemon).ask("PATCH", f"{API}prefs", {"RunSSH": True, "RunSSHSet": True})
