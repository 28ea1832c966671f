"""A disk with no room, under every file of a daemon: each says what failed, the daemon lives, what was there stays."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tailscale.daemon.client import Client
from tailscale.daemon.places import places
from tailscale.daemon.requests import DaemonAbsent, DaemonError
from tailscale.state_file import FileStore
from tailscale.testing.threaded import TailnetThread

pytestmark = [pytest.mark.peerless, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")]
ROOT = Path(__file__).parents[2]
NAMES, PATIENCE = itertools.count(1), 40.0
SHIELDS = {"ShieldsUp": True, "ShieldsUpSet": True}


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte and a hundred files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=100,mode=700", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """To the last byte."""
    ballast = folder / "ballast"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


def use_up_files(folder: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        for number in itertools.count():
            (folder / f"f{number}").touch()


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "tailscale.cli", *words]


def environment(net: TailnetThread) -> dict[str, str]:
    own = {"TS_AUTHKEY": net.auth_key(), "TS_CONTROL_URL": net.control_url, "PYTHONPATH": str(ROOT)}
    return os.environ | own | {"PYTHONDONTWRITEBYTECODE": "1"}


def run(net: TailnetThread, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), env=environment(net), capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@contextmanager
def daemon(net: TailnetThread, *words: str) -> Iterator[subprocess.Popen[str]]:
    words = ("up", "--foreground", "--hostname", f"full-{next(NAMES)}", *words)
    with subprocess.Popen(command(*words), env=environment(net), stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def enrolled(net: TailnetThread) -> list[str]:
    return net.do(lambda: [device.label for device in net.inner.control.server.directory])


def until(client: Client, **facts: Any) -> dict[str, Any]:
    """The daemon's status, once these are true of it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            found: dict[str, Any] = client.get("status")
            if all(found["daemon"][name] == value for name, value in facts.items()):
                return found
        except DaemonAbsent:
            pass
        assert time.monotonic() < deadline, facts
        time.sleep(0.02)


def test_a_first_start_waits_for_room_and_registers_no_key_that_it_cannot_keep(net: TailnetThread, disk: Path) -> None:
    ballast, before = fill(disk), enrolled(net)
    client = Client(places(disk).socket)
    with daemon(net, "--state", str(disk)) as process:
        found = until(client, state="failed")["daemon"]
        assert (found["problem_kind"], process.poll()) == ("StateCorrupt", None)
        assert "cannot write the state file" in found["problem"]
        assert os.strerror(errno.ENOSPC) in found["problem"]
        assert enrolled(net) == before
        ballast.unlink()
        client.post("up", {})
        until(client, is_ready=True)
        assert FileStore(disk).load() is not None


def test_a_daemon_starts_and_lives_on_a_disk_that_became_full(net: TailnetThread, disk: Path) -> None:
    client, store = Client(places(disk).socket), FileStore(disk)
    with daemon(net, "--state", str(disk)):
        until(client, is_ready=True)
    kept = store.load()
    fill(disk)
    with daemon(net, "--state", str(disk)):
        until(client, is_ready=True)
        with pytest.raises(DaemonError, match=r"in force, and lost when the daemon ends: .*No space left.*again"):
            client.ask("PATCH", "/localapi/v0/prefs", SHIELDS)
        assert client.get("/localapi/v0/prefs")["ShieldsUp"] is True
        assert store.load() == kept
        assert run(net, "ip", "--state", str(disk)).returncode == 0
    assert sorted(path.name for path in disk.iterdir() if path.suffix == ".new") == []


def test_what_was_kept_before_stays_whole(net: TailnetThread, disk: Path) -> None:
    client, entry = Client(places(disk).socket), disk / "state.json.daemon"
    with daemon(net, "--state", str(disk)):
        until(client, is_ready=True)
        client.ask("PATCH", "/localapi/v0/prefs", SHIELDS)
        before = entry.read_bytes()
        ballast = fill(disk)
        for _ in range(3):
            with pytest.raises(DaemonError):
                client.ask("PATCH", "/localapi/v0/prefs", SHIELDS | {"ShieldsUp": False})
        assert entry.read_bytes() == before
        ballast.unlink()
        client.ask("PATCH", "/localapi/v0/prefs", SHIELDS | {"ShieldsUp": False})
        assert json.loads(entry.read_bytes())["options"]["shields_up"] is False


def test_no_room_for_pid_or_socket_says_which_and_what_to_set(net: TailnetThread, disk: Path, tmp_path: Path) -> None:
    use_up_files(disk)
    with daemon(net, "--state", str(disk / "sub")) as process:
        assert process.stderr is not None
        assert "cannot be written: No space left on device. --state names another" in process.stderr.read()
    with daemon(net, "--state", str(tmp_path / "s"), "--socket", str(disk / "d.sock")) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert f"no socket can be made at {disk}/d.sock: No space left on device. --socket names another" in said
    assert process.returncode == 1


def test_a_capture_that_does_not_fit_leaves_the_last_one(net: TailnetThread, disk: Path, tmp_path: Path) -> None:
    client, target = Client(places(tmp_path / "s").socket), disk / "x.pcapng"
    target.write_bytes(b"the last one")
    with daemon(net, "--state", str(tmp_path / "s")):
        until(client, is_ready=True)
        fill(disk)
        done = run(net, "capture", "--state", str(tmp_path / "s"), str(target), "--seconds", "5")
        assert done.returncode == 1
        assert "could not be written whole: No space left on device" in done.stderr
        assert "is as it was before" in done.stderr
        assert until(client)["daemon"]["is_ready"]
    assert target.read_bytes() == b"the last one"
    assert sorted(path.name for path in disk.iterdir()) == ["ballast", "x.pcapng"]


def test_a_name_that_cannot_be_remembered_costs_a_warning(net: TailnetThread, disk: Path) -> None:
    with daemon(net, "--state", str(disk)):
        until(Client(places(disk).socket), is_ready=True)
    fill(disk)
    done = run(net, "ip", "--state", str(disk), "--hostname", "other")
    assert (done.returncode, "the name is not remembered" in done.stderr) == (0, True), done.stderr
