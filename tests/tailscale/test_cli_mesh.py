"""The commands of a mesh, against one that lives in another thread."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from tailnet_scripts import echo_stream

from tailscale import TailscaleError
from tailscale.cli import main
from tailscale.mesh import Mesh
from tailscale.testing import Tailnet
from tailscale.testing.threaded import TailnetThread

TIMEOUT = 20


class Other:
    """A device with a mesh that remembers what it is sent, and sends when somebody says so."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.join: list[str] = []

    async def live(self, net: Tailnet, *, task_status: trio.TaskStatus[None]) -> None:
        device = await net.device("db")
        await net.device("stranger")
        async with Mesh(device, "notes") as mesh, trio.open_nursery() as nursery:
            key = net.auth_key(reusable=True)
            self.join = ["--ephemeral", "--control-url", net.control.url, "--auth-key", key, "--app", "notes"]
            nursery.start_soon(trio.serve_listeners, echo_stream, [await device.listen(7)])
            nursery.start_soon(self._greet, mesh)
            async with mesh.subscribe("text") as inbox:
                task_status.started()
                async for message in inbox:
                    self.heard.append(message.data)  # type: ignore[union-attr]

    async def _greet(self, mesh: Mesh) -> None:
        """Whoever listens to `greetings` is greeted, with what no terminal should get."""
        while True:
            for peer in list(mesh.peers.values()):
                if peer.connected:
                    with trio.move_on_after(1), contextlib.suppress(TailscaleError, OSError):
                        await peer.send("greetings", "hello\x1b[31m\nagain")
            await trio.sleep(0.1)


@pytest.fixture(scope="module")
def other() -> Iterator[Other]:
    with TailnetThread() as thread:
        other = Other()
        thread.start(other.live, thread.inner)
        yield other


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TS_AUTHKEY", "TS_AUTH_KEY", "TS_CONTROL_URL", "TS_HOSTNAME"):
        monkeypatch.delenv(name, raising=False)


def test_ls_shows_members_and_others_when_asked(other: Other, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", *other.join]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "db"]
    assert main(["ls", "-a", "-l", *other.join]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "ADDRESS", "MESH", "ID", "SESSION"]
    assert [line.split()[0] for line in lines[1:]] == ["db", "stranger"]
    assert main(["ls", "-a", "--json", *other.join]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["member"]) for each in found] == [("db", True), ("stranger", False)]


def test_send_delivers_text_as_text(
    other: Other, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other.heard.clear()
    assert main(["send", *other.join, "db", "42"]) == 0
    assert main(["send", *other.join, "--all", "hello", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [peer["name"] for peer in report["delivered"]] == ["db"]
    reading, writing = os.pipe()
    os.write(writing, "grüße\n".encode())
    os.close(writing)
    with open(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["send", *other.join, "db", "-"]) == 0
    assert other.heard == ["42", "hello", "grüße\n"]


@pytest.mark.slow
def test_send_says_why_not(other: Other, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send", *other.join, "--timeout", "1.5", "dbb", "x"]) == 5
    assert "did you mean 'db'" in capsys.readouterr().err
    assert main(["send", *other.join, "db", "x", "--ns", "nobody-reads-this"]) == 6
    assert "nobody on db listens" in capsys.readouterr().err
    assert main(["send", *other.join, "only-a-text"]) == 2
    assert main(["send", *other.join, "--all", "db", "text"]) == 2


def test_recv_prints_what_comes_harmlessly(other: Other, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recv", *other.join, "greetings", "--from", "db", "-n", "1"]) == 0
    assert capsys.readouterr().out == "db: hello?[31m\ndb: again\n"
    assert main(["recv", *other.join, "greetings", "--from", "db", "-n", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["data"], found["from"]["name"], found["namespace"]) == ("hello\x1b[31m\nagain", "db", "greetings")


@pytest.mark.slow
def test_wait_returns_when_the_peer_answers(other: Other, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wait", *other.join, "db"]) == 0
    assert capsys.readouterr().out.startswith("db after ")
    assert main(["wait", *other.join, "--timeout", "1.5", "nobody"]) == 5


def test_tcp_connects_or_only_looks(other: Other, capsys: pytest.CaptureFixture[str]) -> None:
    join = other.join[:-2]
    assert main(["tcp", *join, "db:7", "--check"]) == 0
    assert capsys.readouterr().out.startswith("db port 7 answers after ")
    assert main(["tcp", *join, "db:7", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["port"] == 7
    assert main(["tcp", *join, "db:9", "--check"]) == 6


@pytest.mark.slow
def test_watch_prints_until_it_is_interrupted(other: Other) -> None:
    command = [sys.executable, "-m", "tailscale.cli", "watch", *other.join, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert isinstance(process.stdout, io.TextIOBase)
        event = json.loads(process.stdout.readline())
        assert (event["event"], event["peer"]["name"]) == ("PeerJoined", "db")
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 130
