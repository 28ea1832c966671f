"""Captures through the daemon: a stream for curl, a file that whoever typed the command writes. And `explain`."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import dpkt
import pytest
from daemon.daemon_scripts import PATIENCE, World, client_of
from daemon.test_commands_hosted import command, environment, run, wait_until
from daemon.test_door import talk

from tailscale.cli import main
from tailscale.daemon import captures, frames
from tailscale.daemon.client import Client
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.file_here import FileHere
from tailscale.daemon.requests import DaemonError

ASK = b"GET /pytailscale/v1/capture?%b HTTP/1.0\r\nHost: localhost\r\n\r\n"
PING = "ping?host=db&kind=tsmp"


@pytest.fixture
def state(daemon: Daemon) -> list[str]:
    return ["--state", daemon.places.state]


def packets(data: bytes) -> list[bytes]:
    return [packet for _, packet in dpkt.pcapng.Reader(io.BytesIO(data))]


def caught(daemon: Daemon) -> int:
    """Captures under way."""
    (room,) = (room for room in daemon.rooms if isinstance(room, captures.Captures))
    return room.statistics().running


def test_stream_ends_at_its_limit_and_is_a_whole_file(daemon: Daemon) -> None:
    client, answers = client_of(daemon), []
    thread = threading.Thread(target=lambda: answers.append(talk(daemon.places.socket, ASK % b"peer=db&count=2")))
    thread.start()
    wait_until(lambda: caught(daemon) == 1)
    while thread.is_alive():
        client.get(PING)
    head, _, body = answers[0].partition(b"\r\n\r\n")
    assert b"content-type: application/x-pcapng" in head.lower()
    assert len(packets(body)) == 2
    assert caught(daemon) == 0


def test_stream_of_a_reader_that_leaves_ends_the_capture(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(PATIENCE)
        reader.connect(daemon.places.socket)
        reader.sendall(ASK % b"")
        assert reader.recv(4096)
        wait_until(lambda: caught(daemon) == 1)
    wait_until(lambda: caught(daemon) == 0)


@pytest.mark.slow
def test_reader_that_stops_loses_packets_and_is_told_how_many(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "WAITING_LIMIT", 2000)
    monkeypatch.setattr("tailscale.capturing.QUEUE_LIMIT", 2000)
    client = client_of(daemon)
    before = client.get("status")["device"]["drops"].get("capture.queue_full", 0)

    def lost() -> int:
        drops: dict[str, int] = client.get("status")["device"]["drops"]
        return drops.get("capture.queue_full", 0) - before

    with socket.socket(socket.AF_UNIX) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        reader.settimeout(PATIENCE)
        reader.connect(daemon.places.socket)
        reader.sendall(ASK % b"seconds=600")
        while lost() < 50:
            client.get(f"{PING}&size=1000")
        assert client.get("status")["daemon"]["is_ready"]
    wait_until(lambda: caught(daemon) == 0)


@pytest.mark.parametrize(
    ("query", "code"),
    [("peer=nobody", 404), ("count=0", 400), ("count=x", 400), ("seconds=-1", 400), ("snaplen=0", 400)],
)
def test_capture_that_cannot_be_says_why_before_it_begins(client: Client, query: str, code: int) -> None:
    with pytest.raises(DaemonError) as caught:
        client.get(f"capture?{query}")
    assert caught.value.status == code


def test_captures_are_bounded(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "CAPTURES_LIMIT", 0)
    with pytest.raises(DaemonError, match="captures run already"):
        client_of(daemon).get("capture")


def test_explain_is_the_library_s_own(client: Client) -> None:
    found = client.get("explain?host=db&port=7")
    assert (found["code"], found["is_reachable"], found["protocol"]) == ("reachable", True, "tcp")
    assert client.get("explain?host=db&port=9")["error"] == "ConnectionRefused"
    assert client.get("explain?host=dbb&port=9")["error"] == "NameNotFound"
    assert client.get("explain?host=db")["port"] is None
    for wrong in ("host=db&port=x", "host=db&port=0", "host=db&port=7&timeout=0", "host=db&port=7&protocol=smoke"):
        with pytest.raises(DaemonError) as caught:
            client.get(f"explain?{wrong}")
        assert caught.value.status == 400, wrong


# The file of whoever typed the command


def begun(state: list[str], *words: str, cwd: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command("capture", *state, *words), stderr=subprocess.PIPE, text=True, env=environment(), cwd=cwd
    )
    assert process.stderr is not None
    assert "capturing" in process.stderr.readline()
    return process


def test_ctrl_c_leaves_a_whole_private_file(daemon: Daemon, state: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.pcapng").write_text("the last one")
    with begun(state, "c.pcapng", cwd=tmp_path) as capturing:
        client_of(daemon).get(PING)
        capturing.send_signal(signal.SIGINT)
        _, said = capturing.communicate(timeout=PATIENCE)
    data = (tmp_path / "c.pcapng").read_bytes()
    assert capturing.returncode == 130
    assert f"{len(packets(data))} packets" in said
    assert len(packets(data)) >= 2
    assert data[-4:] == (int.from_bytes(data[-4:], "little")).to_bytes(4, "little")
    assert stat.S_IMODE((tmp_path / "c.pcapng").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["c.pcapng"]


def test_file_is_the_clients_even_where_the_daemon_has_no_such_folder(
    daemon: Daemon, state: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon opens nothing: its user, disks and /tmp may be others."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the daemon wrote a file of a client's")

    monkeypatch.setattr("tailscale._private_files.Draft.__init__", refuse)
    with begun(state, "--count", "2", "c.pcapng", cwd=tmp_path) as capturing:
        client_of(daemon).get(PING)
        capturing.communicate(timeout=PATIENCE)
    assert capturing.returncode == 0
    assert len(packets((tmp_path / "c.pcapng").read_bytes())) == 2


def test_lost_daemon_leaves_no_half_file(net: World, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    with net.daemon(tmp_path / "s") as daemon:
        capturing = begun(["--state", daemon.places.state], "c.pcapng", cwd=own)
    with capturing:
        capturing.communicate(timeout=PATIENCE)
    assert [name for name in os.listdir(own) if name != "c.pcapng"] == []


@pytest.mark.parametrize(("place", "said"), [("none/c.pcapng", "No such file"), (".", "is no regular file")])
def test_file_that_cannot_be_says_so_before_anything_is_captured(
    state: list[str], tmp_path: Path, place: str, said: str
) -> None:
    done = run("capture", *state, place, "--seconds", "0.1", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert said in done.stderr.decode()
    assert os.listdir(tmp_path) == []


def test_peer_that_is_none_leaves_the_last_file(
    state: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.pcapng").write_text("the last one")
    assert main(["capture", *state, str(tmp_path / "c.pcapng"), "--peer", "nobody"]) == 5
    assert (tmp_path / "c.pcapng").read_text() == "the last one"
    assert os.listdir(tmp_path) == ["c.pcapng"]


def test_daemon_may_write_no_file_that_was_not_typed(tmp_path: Path) -> None:
    file = FileHere(["capture", str(tmp_path / "typed")])
    answer = file.heed(frames.FILE, os.fsencode(tmp_path / "other")) or b""
    assert b"that was not named" in answer
    assert file.heed(frames.DATA, b"x") is None
    assert b"that was not named" in (file.heed(frames.WHOLE, b"") or b"")
    assert os.listdir(tmp_path) == []
    assert (file.heed(frames.FILE, os.fsencode(tmp_path / "typed")) or b"").endswith(b"{}")
    assert file.heed(frames.DATA, b"x") is None
    assert (file.heed(frames.WHOLE, b"") or b"").endswith(b"{}")
    assert (tmp_path / "typed").read_bytes() == b"x"


def test_full_disk_of_the_client_is_told_once_and_the_last_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "c").write_text("the last one")
    file = FileHere([str(tmp_path / "c")])
    file.heed(frames.FILE, os.fsencode(tmp_path / "c"))
    monkeypatch.setattr("tailscale._private_files.Draft.write", refuse)
    assert b"c is as it was before" in (file.heed(frames.DATA, b"x") or b"")
    assert file.heed(frames.DATA, b"x") is None
    assert b"No space left" in (file.heed(frames.WHOLE, b"") or b"")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"c": "the last one"}
