"""`pytailscale cp` through `main(argv)`, against a mesh on loopback that lives in another thread."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tailscale.cli import main
from tailscale.cli.copying import Pull, Push, planned, remote
from tailscale.mesh import Inbox, Mesh
from tailscale.testing import Tailnet
from tailscale.testing.threaded import TailnetThread


@dataclass
class Rig:
    """A tailnet with one member of the mesh, `bob`."""

    folder: Path
    url: str = ""
    auth_key: str = ""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("bob"))
    (rig.folder / "docs").mkdir()
    (rig.folder / "docs" / "paper.txt").write_bytes(b"paper")

    async def live(net: Tailnet, *, task_status: trio.TaskStatus[None]) -> None:
        inbox = Inbox(rig.folder / "in", accept=lambda offer: "unwanted" not in offer.paths)
        bob = await net.device("bob")
        async with Mesh(bob, "pytailscale", receive=inbox, share={"docs": rig.folder / "docs"}):
            task_status.started()
            await trio.sleep_forever()

    with TailnetThread() as thread:
        thread.start(live, thread.inner)
        rig.url, rig.auth_key = thread.control_url, thread.auth_key(reusable=True)
        yield rig


@pytest.fixture
def join(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a device of the test's own, in a directory of its own."""
    for name in ("TS_AUTHKEY", "TS_AUTH_KEY", "TS_CONTROL_URL", "TS_HOSTNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return ["--state", str(tmp_path / "state"), "--control-url", rig.url, "--auth-key", rig.auth_key, "--timeout", "10"]


@pytest.mark.slow
def test_cp_sends_fetches_and_says_what_became_of_it(
    rig: Rig, join: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "leaf").write_bytes(b"leaf")
    (tmp_path / "tree" / "link").symlink_to("leaf")
    (tmp_path / "note.txt").write_bytes(b"note")
    assert main(["cp", *join, "tree", "note.txt", "bob:from/me"]) == 0
    said = capsys.readouterr()
    assert said.out == "2 files, 8 B sent\n"
    assert "left out from/me/tree/link: it is a symbolic link" in said.err
    assert (rig.folder / "in" / "from" / "me" / "tree" / "leaf").read_bytes() == b"leaf"
    assert main(["cp", *join, "--json", "tree", "note.txt", "bob:from/me"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {name: report[name] for name in ("files", "bytes_sent", "bytes_skipped")} == {
        "files": 2,
        "bytes_sent": 0,
        "bytes_skipped": 8,
    }
    assert report["skipped"] == [{"path": "from/me/tree/link", "why": "it is a symbolic link"}]
    assert main(["cp", *join, "--no-resume", "note.txt", "bob:from/me"]) == 0
    assert capsys.readouterr().out == "1 file, 4 B sent\n"
    assert main(["cp", *join, "bob:docs/paper.txt", "bob:docs", "fetched"]) == 0
    assert (tmp_path / "fetched" / "paper.txt").read_bytes() == b"paper"
    assert (tmp_path / "fetched" / "docs" / "paper.txt").read_bytes() == b"paper"
    assert (tmp_path / "state.mesh").is_dir() or list(tmp_path.rglob("hashes.sqlite"))


def test_cp_that_is_refused_or_fails_ends_with_eight(
    join: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unwanted").write_bytes(b"x")
    assert main(["cp", *join, "unwanted", "bob:"]) == 8
    assert "bob refused the transfer: declined" in capsys.readouterr().err
    assert main(["cp", *join, "--json", "bob:secret", "."]) == 8
    failure = json.loads(capsys.readouterr().out)
    assert (failure["exit"], failure["error"]["kind"]) == (8, "TransferRefused")
    assert main(["cp", *join, "nothing", "bob:"]) == 8
    assert f"cannot read {tmp_path / 'nothing'}" in capsys.readouterr().err


@pytest.mark.slow
def test_cp_finds_only_members_of_its_app(join: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_bytes(b"x")
    join[-1] = "1"
    assert main(["cp", *join, "--app", "other", "x", "bob:"]) == 5
    assert "no device 'bob' in the mesh 'other'" in capsys.readouterr().err


def test_cp_needs_exactly_one_side_to_be_a_peer(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cp", *join, "a", "b"]) == 2
    assert "write PEER:PATH on one side" in capsys.readouterr().err
    assert main(["cp", *join, "bob:a", "bob:b"]) == 2
    assert "one side only" in capsys.readouterr().err


def test_paths_are_absolute_before_anything_is_asked() -> None:
    assert planned(["a", "../b/", "/c"], "bob:into/", "/home/me") == [
        Push("bob", ("/home/me/a", "/home/b", "/c"), "into")
    ]
    assert planned(["bob:docs/x", "eve:y"], "here", "/home/me") == [
        Pull("bob", "docs/x", "/home/me/here"),
        Pull("eve", "y", "/home/me/here"),
    ]


def test_path_with_a_slash_before_its_colon_is_local() -> None:
    assert remote("./a:b") is None
    assert remote("/x/a:b") is None
    assert remote(":b") is None
    assert remote("plain") is None
    assert remote("bob:") == ("bob", "")
    assert remote("bob.tailnet.test:/docs/") == ("bob.tailnet.test", "docs")


def test_state_of_the_cache_is_private(join: list[str], tmp_path: Path) -> None:
    (tmp_path / "two").write_bytes(os.urandom(5 << 20))
    assert main(["cp", *join, "two", "bob:cache"]) == 0
    (found,) = tmp_path.rglob("hashes.sqlite")
    assert found.parent.stat().st_mode & 0o077 == 0
