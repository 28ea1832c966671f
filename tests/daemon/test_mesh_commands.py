"""The verbs of a mesh through a daemon, which keeps one mesh for all of them; and what they print as JSON."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from daemon.daemon_scripts import ECHO_PORT, World
from daemon.json_schema import check
from daemon.test_commands_hosted import command, environment

from tailscale import TailscaleError
from tailscale.cli import main
from tailscale.cli.schema import read_schema
from tailscale.daemon.daemon import Daemon
from tailscale.mesh import Inbox, Mesh

APP = "pytailscale"  # what the verbs take where none is named


@pytest.fixture
def heard(net: World, tmp_path: Path) -> Iterator[list[Any]]:
    """What a mesh on the peer `db` is sent. It greets whoever listens, and takes files."""
    heard: list[Any] = []
    scope = trio.CancelScope()

    async def live(task_status: trio.TaskStatus[None]) -> None:
        inbox = Inbox(tmp_path / "theirs", accept=True)
        with scope:
            async with Mesh(net.db, APP, receive=inbox) as mesh, trio.open_nursery() as nursery:
                nursery.start_soon(greet, mesh)
                async with mesh.subscribe("text") as messages:
                    task_status.started()
                    async for message in messages:
                        heard.append(message.data)  # noqa: PERF401 - it never ends

    async def greet(mesh: Mesh) -> None:
        while True:
            for peer in [peer for peer in mesh.peers.values() if peer.connected]:
                with trio.move_on_after(1), suppress(TailscaleError, OSError):
                    await peer.send("greetings", {"hello": 1})
            await trio.sleep(0.05)

    net.thread.start(live)
    yield heard
    net.thread.do(scope.cancel)


def test_verbs_share_the_daemons_mesh_and_print_what_their_schemas_say(
    heard: list[Any], daemon: Daemon, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ["--state", str(Path(daemon.places.state).parent), "--json"]
    (tmp_path / "ours.txt").write_text("a file")
    monkeypatch.chdir(tmp_path)
    for verb, *words in (
        ("wait", "db"),
        ("ls",),
        ("ls", "-a", "-l"),
        ("send", "db", "hello there"),
        ("send", "--all", "everybody"),
        ("recv", "greetings", "-n", "1", "--from", "db"),
        ("tcp", f"db:{ECHO_PORT}", "--check"),
        ("cp", "ours.txt", "db:"),
        ("cp", "ours.txt", "db:again", "--no-resume"),
    ):
        assert main([verb, *state, *words]) == 0, (verb, capfd.readouterr().err)
        lines = capfd.readouterr().out
        told = [json.loads(lines)] if verb in ("ls", "send", "wait", "tcp") else map(json.loads, lines.splitlines())
        for each in told:
            check(each, read_schema(verb))
    assert heard == ["hello there", "everybody"]
    assert (tmp_path / "theirs" / "ours.txt").read_text() == "a file"
    with subprocess.Popen(command("watch", *state), stdout=subprocess.PIPE, text=True, env=environment()) as watching:
        assert watching.stdout is not None
        event = json.loads(watching.stdout.readline())
        watching.send_signal(signal.SIGINT)
    check(event, read_schema("watch"))
    assert (event["event"], event["peer"]["name"], watching.returncode) == ("PeerJoined", "db", 130)
