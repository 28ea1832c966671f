"""Files between a mesh of ours and a stock tailscaled that knows nothing of it: `websockets` asks, `curl` carries.

Whether the bytes are right is judged by `sha256sum`, and by `rsync --checksum`, which also compares modes and times.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tailscale import Device
from tailscale.mesh import Inbox, Mesh, TransferDone
from tests.interop.embedded import EmbeddedControl, embedded_control
from tests.interop.rig import Derper, Rig
from tests.interop.rig.tailscaled import Tailscaled
from ts_mesh.blocks import BLOCK

websockets = pytest.importorskip(
    "websockets.sync.client", reason="the clients group of pyproject.toml is not installed"
)
pytest.importorskip("python_socks")
pytestmark = [
    pytest.mark.interop,
    pytest.mark.peers("tailscaled", "tailscale"),
    pytest.mark.skipif(shutil.which("curl") is None or shutil.which("rsync") is None, reason="needs curl and rsync"),
]
ROOT = Path(__file__).parents[2]
APP = "notes"


@pytest.fixture
async def control(relay: Derper) -> AsyncIterator[EmbeddedControl]:
    async with embedded_control(relay.region) as made:
        yield made


class Stock:
    """A stock node and its two tools."""

    def __init__(self, daemon: Tailscaled, peer: str) -> None:
        self._proxy = f"socks5h://127.0.0.1:{daemon.socks_port}"
        self._daemon, self._peer = daemon, peer
        self.env = {**os.environ, "ALL_PROXY": self._proxy, "socks_proxy": self._proxy, "no_proxy": ""}

    async def own_id(self) -> str:
        return str((await self._daemon.status())["Self"]["ID"])

    async def curl(self, *arguments: str) -> bytes:
        done = await trio.run_process(
            ["curl", "-sS", "--max-time", "60", *arguments], env=self.env, capture_stdout=True, check=True
        )
        return done.stdout

    def url(self, ticket: str, number: int) -> str:
        return f"http://{self._peer}:9417/f/{ticket}/{number}"

    async def say(self, *words: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Each word over a session of its own; the answers."""
        own_id = await self.own_id()
        return await trio.to_thread.run_sync(self._say, own_id, words)

    def _say(self, own_id: str, words: tuple[tuple[str, dict[str, Any]], ...]) -> list[dict[str, Any]]:
        identity = {"app_id": APP, "device_id": secrets.token_hex(13).upper(), "device_name": "stock", "os": "linux"}
        answers = []
        with websockets.connect(f"ws://{self._peer}:9417/ws", proxy=self._proxy, open_timeout=20) as session:
            session.send(json.dumps({"kind": "hello", "version": 2, "identity": {**identity, "tailscale_id": own_id}}))
            assert json.loads(session.recv(20))["kind"] == "hello"
            for word, payload in words:
                session.send(json.dumps({"namespace": "_f", "msg_type": word, "payload": payload}))
                answer = json.loads(session.recv(20))
                answers.append({"word": answer["msg_type"], **answer["payload"]})
        return answers


async def differences(source: Path, copy: Path) -> str:
    """What rsync would have to change to make the copy equal."""
    command = ["rsync", "-ain", "--checksum", "--delete", f"{source}/", f"{copy}/"]
    return (await trio.run_process(command, capture_stdout=True)).stdout.decode()


async def digest(path: Path) -> str:
    return (await trio.run_process(["sha256sum", str(path)], capture_stdout=True)).stdout.decode().split()[0]


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "big").write_bytes(os.urandom(2 * BLOCK + 12345))
    (tree / "sub" / "small").write_bytes(b"small")
    (tree / "sub" / "empty").write_bytes(b"")
    (tree / "sub" / "small").chmod(0o750)
    for path in (*tree.rglob("*"), tree):
        os.utime(path, ns=(1_000_000_000_000_000_000, 1_000_000_000_123_456_789))
    return tree


async def test_stock_node_pushes_by_the_recipe_of_the_guide(r: Rig, control: EmbeddedControl, tmp_path: Path) -> None:
    recipe = re.search(r"```py\n(import json.*?)```", (ROOT / "docs" / "mesh-files.md").read_text(), re.DOTALL)
    assert recipe is not None
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(os.urandom(BLOCK + 99_999))
    key = control.server.create_auth_key(reusable=True)
    inbox = Inbox(tmp_path / "in", accept=lambda offer: offer.sender.node.hostname == "stock")
    async with r.tailscaled("stock") as daemon, Device("ours", control_url=control.url, auth_key=key) as device:
        await daemon.up(control.url, key)
        async with Mesh(device, APP, receive=inbox):
            stock = Stock(daemon, str(device.ipv4))
            arguments = [sys.executable, "-c", recipe[1], str(device.ipv4), str(photo), APP, await stock.own_id()]
            done = await trio.run_process(arguments, env=stock.env, capture_stdout=True)
            told = json.loads(done.stdout)
            assert await digest(tmp_path / "in" / "photo.jpg") == await digest(photo)
            shell = f"split -b {BLOCK} --filter='sha256sum | cut -c1-64' {photo} | xxd -r -p | sha256sum"
            if shutil.which("xxd"):
                by_hand = await trio.run_process(["sh", "-c", shell], capture_stdout=True)
                assert by_hand.stdout.split()[0].decode() == told["root"]
            assert told["name"] == "photo.jpg"


async def test_stock_node_pushes_a_folder_in_parts(
    r: Rig, control: EmbeddedControl, folder: Path, tmp_path: Path
) -> None:
    key = control.server.create_auth_key(reusable=True)
    async with r.tailscaled("stock") as daemon, Device("ours", control_url=control.url, auth_key=key) as device:
        await daemon.up(control.url, key)
        async with Mesh(device, APP, receive=Inbox(tmp_path / "in", accept=True)):
            stock = Stock(daemon, str(device.ipv4))
            paths = [folder, *sorted(folder.rglob("*"))]
            entries = [
                {
                    "path": str(path.relative_to(folder.parent)),
                    "size": path.stat().st_size if path.is_file() else 0,
                    "mtime_ns": path.stat().st_mtime_ns,
                    "mode": path.stat().st_mode & 0o777,
                    "dir": path.is_dir(),
                }
                for path in paths
            ]
            (told,) = await stock.say(("offer", {"token": "t", "entries": entries, "total": 0}))
            assert told["word"] == "accept"
            for number, path in enumerate(paths):
                url = stock.url(told["ticket"], number)
                if (
                    path.name == "big"
                ):  # its blocks in two requests, the later one first, whole by the root that is told
                    size, content = path.stat().st_size, path.read_bytes()
                    for name, start, end in (("tail", BLOCK, size), ("head", 0, BLOCK)):
                        (tmp_path / name).write_bytes(content[start:end])
                        part = f"Content-Range: bytes {start}-{end - 1}/{size}"
                        assert await stock.curl("-T", str(tmp_path / name), "-H", part, url) == b"{}\n"
                    refused = await stock.curl("-X", "PUT", "-H", f"Content-Range: bytes */{size}", url)
                    assert "root" in json.loads(refused)
                elif path.is_file():
                    assert b"root" in await stock.curl("-f", "-T", str(path), url)
            for number in reversed([n for n, path in enumerate(paths) if path.is_dir()]):
                await stock.curl("-f", "-X", "PUT", stock.url(told["ticket"], number))
            assert await differences(folder, tmp_path / "in" / "tree") == ""


async def test_stock_node_pulls_a_folder_with_ranges(
    r: Rig, control: EmbeddedControl, folder: Path, tmp_path: Path
) -> None:
    key = control.server.create_auth_key(reusable=True)
    async with r.tailscaled("stock") as daemon, Device("ours", control_url=control.url, auth_key=key) as device:
        await daemon.up(control.url, key)
        async with Mesh(device, APP, share={"docs": folder}):
            stock = Stock(daemon, str(device.ipv4))
            refused, found = await stock.say(
                ("want", {"token": "x", "path": "secret"}), ("want", {"token": "y", "path": "docs"})
            )
            assert (refused["word"], refused["why"]) == ("reject", "not-allowed")
            out = tmp_path / "out"
            for number, entry in enumerate(found["entries"]):
                target = out / entry["path"]
                if entry.get("dir"):
                    target.mkdir(parents=True)
                    continue
                url = stock.url(found["ticket"], number)
                await stock.curl("-f", "-o", str(target), url)
                target.touch()
                target.chmod(entry["mode"])
                os.utime(target, ns=(entry["mtime_ns"], entry["mtime_ns"]))
                if entry["path"].endswith("big"):
                    tail = await stock.curl("-f", "-r", "1000000-", url)
                    assert tail == (folder / "big").read_bytes()[1_000_000:]
                    head = (await stock.curl("-f", "-I", url)).lower()
                    assert b"etag" in head
            assert "f" not in {line[1] for line in (await differences(folder, out / "docs")).splitlines()}


async def test_folder_between_two_of_ours_is_what_rsync_would_have_made(
    r: Rig, control: EmbeddedControl, folder: Path, tmp_path: Path
) -> None:
    key = control.server.create_auth_key(reusable=True)
    async with (
        Device("one", control_url=control.url, auth_key=key) as one,
        Device("two", control_url=control.url, auth_key=key) as two,
        Mesh(one, APP) as a,
        Mesh(two, APP, receive=Inbox(tmp_path / "in", accept=True), share={"docs": folder}) as b,
    ):
        events = b.events()
        peer = await a.peer("two", timeout=20)
        report = await peer.push(folder)
        assert report.files == 3
        assert await differences(folder, tmp_path / "in" / "tree") == ""
        await peer.pull("docs", tmp_path / "out")
        assert await differences(folder, tmp_path / "out" / "docs") == ""
        async for event in events:
            if isinstance(event, TransferDone):
                assert event.error is None
                break
