"""`file cp` and `file get` through a daemon, alone, and as upstream's LocalAPI asks for them."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from daemon.daemon_scripts import World
from daemon.json_schema import check
from daemon.test_commands_hosted import command, environment, run

from tailscale import taildrop
from tailscale.cli import main
from tailscale.cli.schema import read_schema
from tailscale.daemon.client import Client
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.requests import DaemonError
from tailscale.errors import NoRoute

API = "/localapi/v0/"


@pytest.fixture
def state(daemon: Daemon) -> list[str]:
    return ["--state", str(Path(daemon.places.state).parent)]


@pytest.fixture
def received(net: World, tmp_path: Path) -> Iterator[Path]:
    """What the peer `db` is sent."""
    scope = trio.CancelScope()

    async def live(task_status: trio.TaskStatus[None]) -> None:
        with scope:
            async with taildrop.Inbox(net.db, tmp_path / "theirs", True):
                task_status.started()
                await trio.sleep_forever()

    net.thread.start(live)
    yield tmp_path / "theirs"
    net.thread.do(scope.cancel)


def sent(net: World, *paths: Path, to: str = "keeper") -> None:
    async def send() -> None:
        await taildrop.send(net.db, to, *paths)

    net.within(send)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def told(capfd: pytest.CaptureFixture[str]) -> list[Any]:
    lines = capfd.readouterr().out
    values = [json.loads(lines)] if lines.startswith("[") else [json.loads(line) for line in lines.splitlines()]
    for value in values:
        check(value, read_schema("file"))
    return values


def test_file_cp_sends_files_and_standard_input(
    received: Path, state: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").write_bytes(b"a" * 100_000)
    assert main(["file", "cp", *state, "--targets", "--json"]) == 0
    assert [node["hostname"] for node in told(capfd)[0]] == ["db"]
    assert main(["file", "cp", *state, "a.jpg", "db:", "--json"]) == 0
    assert told(capfd)[0]["bytes_sent"] == 100_000
    assert main(["file", "cp", *state, "--name", "b.jpg", "a.jpg", "db:"]) == 0
    assert run("file", "cp", *state, "--name", "said", "-", "db:", stdin=b"hello").returncode == 0
    assert files(received) == {"a.jpg": b"a" * 100_000, "b.jpg": b"a" * 100_000, "said": b"hello"}
    capfd.readouterr()
    for words, code in (
        (["a.jpg"], 2),
        (["a.jpg", "db"], 2),
        (["-", "db:"], 2),
        (["a.jpg", "b", "db:", "--name", "x"], 2),
        (["a.jpg", "nobody:"], 5),
        (["none", "db:"], 8),
    ):
        assert main(["file", "cp", *state, *words]) == code, words
        assert capfd.readouterr().err


def test_file_get_fetches_what_waits(
    net: World, state: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "a.tar.gz").write_bytes(b"one")
    sent(net, tmp_path / "a.tar.gz")
    assert main(["file", "get", *state, str(out), "--json"]) == 0
    assert told(capfd)[0]["path"] == str(out / "a.tar.gz")
    assert main(["file", "get", *state, str(out)]) == 0  # nothing waits
    (tmp_path / "a.tar.gz").write_bytes(b"two")
    sent(net, tmp_path / "a.tar.gz")
    assert main(["file", "get", *state, str(out), "--json"]) == 1
    assert "is there already" in told(capfd)[0]["problem"]
    assert main(["file", "get", *state, str(out), "--conflict", "rename"]) == 0
    sent(net, tmp_path / "a.tar.gz")
    assert main(["file", "get", *state, str(out), "--conflict", "overwrite"]) == 0
    assert files(out) == {"a.tar.gz": b"two", "a (1).tar.gz": b"two"}
    assert main(["file", "get", *state, str(tmp_path / "none")]) == 2


def test_file_get_waits_and_goes_on(net: World, state: list[str], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    for words, count in ((["--wait"], 1), (["--loop"], 2)):
        out = tmp_path / words[0]
        out.mkdir()
        begun = command("file", "get", *state, str(out), *words, "--conflict", "rename")
        with subprocess.Popen(begun, stdout=subprocess.PIPE, text=True, env=environment()) as getting:
            assert getting.stdout is not None
            for _ in range(count):
                sent(net, tmp_path / "x")
                assert getting.stdout.readline()
            if words == ["--loop"]:
                getting.terminate()
        assert len(files(out)) == count
        assert getting.returncode == (0 if words == ["--wait"] else 143)


def test_a_waiting_file_is_shown_by_status(
    net: World, daemon: Daemon, state: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    sent(net, tmp_path / "x")
    assert main(["status", *state]) == 0
    assert "1 file waits" in capfd.readouterr().out
    daemon.taildrop.spool.remove("x")


# LocalAPI


def raw(daemon: Daemon, path: str) -> bytes:
    """The body of an answer that is not JSON."""
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(daemon.places.socket)
        connection = http.client.HTTPConnection("local-tailscaled.sock")
        connection.sock = door
        connection.request("GET", path)
        return connection.getresponse().read()


def test_localapi_lists_gives_and_deletes_files(net: World, daemon: Daemon, client: Client, tmp_path: Path) -> None:
    assert client.get(f"{API}files/?waitsec=0") is None
    bus, events = client.stream(f"{API}watch-ipn-bus?mask=0"), client.stream("/pytailscale/v1/events")
    assert "FilesWaiting" not in next(bus)
    assert next(events)["event"] == "Hello"
    (tmp_path / "ä b").write_bytes(body := os.urandom(700_000))
    sent(net, tmp_path / "ä b")
    assert next(told for told in bus if "FilesWaiting" in told)["FilesWaiting"] == {}
    arrived = next(told for told in events if told["event"] == "FileArrived")
    assert (arrived["name"], arrived["size"], arrived["sender"], arrived["waiting"]) == ("ä b", 700_000, "db", 1)
    assert client.get(f"{API}files/?waitsec=9") == [{"Name": "ä b", "Size": 700_000}]
    assert raw(daemon, f"{API}files/%C3%A4%20b") == body
    client.ask("DELETE", f"{API}files/%C3%A4%20b")
    assert client.get(f"{API}files/") is None
    for name in ("none", "..%2Fstate.json", "%2Fetc%2Fpasswd", ".x.partial"):
        with pytest.raises(DaemonError) as caught:
            client.ask("GET", f"{API}files/{name}")
        assert caught.value.status == 404


def test_localapi_names_targets_and_sends_to_them(net: World, client: Client, received: Path, tmp_path: Path) -> None:
    (target,) = client.get(f"{API}file-targets")
    assert target["Node"]["ComputedName"] == "db"
    assert target["PeerAPIURL"].startswith(f"http://{net.db.ipv4}:")
    assert next(iter(client.get(f"{API}status")["Peer"].values()))["TaildropTarget"] == 1
    stable_id = target["Node"]["StableID"]
    client.ask("PUT", f"{API}file-put/{stable_id}/x%25y", {"a": 1})
    assert files(received) == {"x%y": b'{"a": 1}'}
    with pytest.raises(DaemonError, match="separator"):
        client.ask("PUT", f"{API}file-put/{stable_id}/a%2Fb", {"a": 1})


@pytest.mark.slow
def test_alone_a_command_takes_files_while_it_waits(net: World, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"alone")
    out = tmp_path / "out"
    out.mkdir()
    words = ["file", "get", "--wait", str(out), "--state", str(tmp_path / "state"), "--hostname", "solo"]
    words += ["--control-url", net.url, "--auth-key", net.auth_key]
    with subprocess.Popen(command(*words), stdout=subprocess.PIPE, text=True, env=environment()) as getting:

        async def once_there() -> None:
            with trio.fail_after(30):
                while not any(node.hostname == "solo" for node in taildrop.targets(net.db)):  # noqa: ASYNC110
                    await trio.sleep(0.05)
                while True:
                    try:
                        await taildrop.send(net.db, "solo", tmp_path / "x")
                        return
                    except (taildrop.TransferRefused, NoRoute):  # it has joined, and opens its inbox
                        await trio.sleep(0.05)

        try:
            net.within(once_there)
        except BaseException:
            getting.kill()
            raise
        assert getting.stdout is not None
        assert getting.stdout.readline()
    assert (files(out), getting.returncode) == ({"x": b"alone"}, 0)
