"""The daemon as a process: up, down, again, killed, told by signals, watched by systemd."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from daemon.daemon_scripts import PATIENCE, World
from daemon.json_schema import check
from daemon.test_commands_hosted import command, environment, wait_until

from tailscale.cli.schema import read_schema
from tailscale.cli.unit import unit_text
from tailscale.daemon.client import Client
from tailscale.daemon.places import places
from tailscale.daemon.requests import DaemonAbsent

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count(1)


@pytest.fixture
def words(net: World, tmp_path: Path) -> Iterator[list[str]]:
    """Options of a state of the test's own; whatever daemon is left of it is ended."""
    state = tmp_path / "state"
    name = f"kept-{next(NUMBERS)}"
    yield ["--state", str(state), "--control-url", net.url, "--auth-key", net.auth_key, "--hostname", name]
    run("down", "--state", str(state))


def run(*argv: str, code: int | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*argv),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(),
        check=False,
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


@contextmanager
def foreground(*argv: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command("up", "--foreground", *argv), stderr=subprocess.PIPE, text=True, env=environment() | more
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until_ready(state: str) -> Client:
    client = Client(places(state).socket)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if client.get("status")["daemon"]["is_ready"]:
                return client
        except DaemonAbsent:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pid_of(client: Client) -> int:
    pid: int = client.get("status")["daemon"]["pid"]
    return pid


@pytest.mark.slow
def test_up_is_joined_when_it_returns_and_down_leaves_nothing(words: list[str]) -> None:
    state, where = words[:2], places(words[1])
    told = run("up", *words, "--json", code=0).stdout
    check(json.loads(told), read_schema("up"))
    pid = json.loads(told)["daemon"]["pid"]
    assert Path(where.pid).read_text() == f"{pid}\n"
    assert words[-1] in run("status", *state, code=0).stdout
    assert run("up", *state, code=0).stdout.startswith(f"up as {words[-1]}.")  # it is, and stays the same
    assert pid_of(Client(where.socket)) == pid
    assert run("down", *state, code=0).stdout == f"the daemon (process {pid}) has ended\n"
    assert not os.path.exists(where.socket)
    assert Path(where.pid).read_text() == ""
    assert run("down", *state, code=0).stdout == "no daemon runs: nothing to do\n"


@pytest.mark.slow
def test_up_says_why_it_cannot(net: World, tmp_path: Path) -> None:
    state = ["--state", str(tmp_path / "state")]
    done = run("up", *state, "--control-url", net.url, "--auth-key", "tskey-auth-wrong", code=3)
    assert "refused the auth key" in done.stderr
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/config.toml").write_text("[device]\nhostnme = 'x'\n")
    done = run("up", "--state", str(tmp_path / "bad"), "--control-url", net.url, code=1)
    assert "config.toml:2: [device] has no hostnme; did you mean hostname?" in done.stderr
    (tmp_path / "taken").mkdir()
    Path(places(tmp_path / "taken").socket).write_text("precious")
    done = run("up", "--state", str(tmp_path / "taken"), "--control-url", net.url, "--auth-key", net.auth_key)
    assert (done.returncode, "is there and is no socket" in done.stderr) == (1, True)


@pytest.mark.slow
def test_restart_in_place_keeps_the_process_and_the_device(words: list[str]) -> None:
    run("up", *words, code=0)
    client = Client(places(words[1]).socket)
    before = client.get("status")
    run("up", *words[:2], "--restart", code=0)
    after = client.get("status")
    assert after["daemon"]["pid"] == before["daemon"]["pid"]
    assert after["daemon"]["since"] > before["daemon"]["since"]
    assert after["device"]["self"]["id"] == before["device"]["self"]["id"]


@pytest.mark.slow
def test_up_after_kill_9_is_the_same_device(words: list[str]) -> None:
    """`test_killed.py` kills at every call; here it is the processes themselves, at the two ends of a start."""
    run("up", *words, code=0)
    client = Client(places(words[1]).socket)
    before = client.get("status")
    os.kill(before["daemon"]["pid"], signal.SIGKILL)
    with foreground(*words[:2]) as process:
        assert pid_of(until_ready(words[1])) == process.pid
        process.kill()
        process.communicate()
    after = json.loads(run("up", *words[:2], "--json", code=0).stdout)
    assert after["device"]["self"]["id"] == before["device"]["self"]["id"]
    assert after["device"]["self"]["addresses"] == before["device"]["self"]["addresses"]


def carried(client: Client) -> list[Any]:
    """What the settings ask for; the inbox for files is always there."""
    return [part for part in client.get("config")["parts"] if part["kind"] != "taildrop"]


@pytest.mark.slow
def test_sigterm_says_goodbye_and_sighup_reads_the_settings_again(words: list[str]) -> None:
    settings = Path(places(words[1]).settings)
    settings.parent.mkdir()
    settings.write_text('[[expose]]\nport = 8080\nto = "127.0.0.1:9"\n')
    with foreground(*words) as process:
        client = until_ready(words[1])
        parts = carried(client)
        assert [(part["kind"], part["state"], part["where"]) for part in parts] == [
            ("expose", "running", f"{words[-1]}.tailnet.test:8080")
        ]
        settings.write_text('[device]\nshields_up = true\n[[forward]]\nlisten = "127.0.0.1:0"\nto = "db:7"\n')
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE
        while [(part["kind"], part["state"]) for part in carried(client)] != [("forward", "running")]:
            assert time.monotonic() < deadline
        host, _, port = carried(client)[0]["where"].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as db:
            db.sendall(b"hello")
            assert db.recv(5) == b"hello"
        assert client.get("/localapi/v0/prefs")["ShieldsUp"] is True
        settings.write_text("[devic]\n")
        process.send_signal(signal.SIGHUP)
        lines = client.stream("log?level=warning")
        assert any("did you mean device?" in line["message"] for line in lines)  # and it goes on as it was
        lines.close()  # type: ignore[attr-defined]
        assert client.get("/localapi/v0/prefs")["ShieldsUp"] is True
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


@pytest.mark.slow
def test_systemd_is_told(words: list[str], tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(PATIENCE)
        with foreground(*words, NOTIFY_SOCKET=path, WATCHDOG_USEC="50000") as process:
            told = b""
            while b"READY=1" not in told:
                told = systemd.recv(4096)
            assert f"MAINPID={process.pid}".encode() in told
            assert b"STATUS=joined" in told
            while b"WATCHDOG=1" not in told:
                told = systemd.recv(4096)
            process.terminate()
            while b"STOPPING=1" not in told:
                told = systemd.recv(4096)
            process.communicate()


def test_unit_in_examples_is_what_is_installed() -> None:
    example = (ROOT / "examples/pytailscale.service").read_text()
    assert example == unit_text([], is_root=True).replace(f"{sys.executable} -m tailscale.cli", "/usr/bin/pytailscale")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("is_root", [True, False])
def test_unit_is_right_in_systemds_own_eyes(tmp_path: Path, is_root: bool) -> None:
    path = tmp_path / "pytailscale.service"
    path.write_text(unit_text(["--state", "/var/lib/it's 5% $HOME", "--hostname", "desk"], is_root=is_root))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if path.name in line]) == (0, [])


def test_unit_is_installed_where_systemd_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    from tailscale.cli import main

    assert main(["up", "--install-unit", "--state", str(tmp_path / "it's 5%")]) == 0
    text = (tmp_path / "systemd/user/pytailscale.service").read_text()
    assert f'--state "{tmp_path}/it\'s 5%%"' in text
    assert "WantedBy=default.target" in text


@pytest.mark.slow
def test_what_was_set_outlives_the_daemon(words: list[str]) -> None:
    run("up", *words, code=0)
    client = Client(places(words[1]).socket)
    client.ask(
        "PATCH", "/localapi/v0/prefs", {"ShieldsUp": True, "ShieldsUpSet": True, "CorpDNS": False, "CorpDNSSet": True}
    )
    run("down", *words[:2], code=0)
    run("up", *words[:2], code=0)
    prefs = client.get("/localapi/v0/prefs")
    assert (prefs["ShieldsUp"], prefs["CorpDNS"], prefs["Hostname"]) == (True, False, words[-1])


@pytest.mark.slow
def test_up_offers_routes_and_takes_them_back_while_it_runs(words: list[str]) -> None:
    run("up", *words, "--advertise-routes", "192.168.7.0/24, 10.0.0.0/8", "--advertise-exit-node", code=0)
    client = Client(places(words[1]).socket)
    before = client.get("status")
    routes = ["192.168.7.0/24", "10.0.0.0/8", "0.0.0.0/0", "::/0"]
    assert before["device"]["advertised_routes"] == routes
    said = run("status", *words[:2], code=0).stdout
    assert "forwards for others: 192.168.7.0/24 (not approved)" in said
    run("up", *words[:2], "--advertise-routes", "", "--no-advertise-exit-node", code=0)
    after = client.get("status")
    assert after["device"]["advertised_routes"] == []
    assert after["device"]["self"]["id"] == before["device"]["self"]["id"]
    wrong = run("up", *words[:2], "--advertise-routes", "192.168.7.5/24")
    assert (wrong.returncode, "host bits" in wrong.stderr) == (2, True)


@pytest.mark.slow
def test_up_turns_the_ssh_server_on_and_off(words: list[str]) -> None:
    run("up", *words, "--ssh", code=0)
    client = Client(places(words[1]).socket)
    assert client.get("/localapi/v0/prefs")["RunSSH"] is True
    run("up", *words[:2], "--no-ssh", code=0)
    assert client.get("/localapi/v0/prefs")["RunSSH"] is False
    run("up", *words[:2], "--ssh", code=0)
    run("down", *words[:2], code=0)
    run("up", *words[:2], code=0)  # it is kept
    assert client.get("/localapi/v0/prefs")["RunSSH"] is True
    wait_until(lambda: ("ssh", "running") in kinds(client))


def kinds(client: Client) -> list[tuple[str, str]]:
    return [(part["kind"], part["state"]) for part in client.get("config")["parts"]]
