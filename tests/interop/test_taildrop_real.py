"""Taildrop with stock nodes, both ways: `tailscale file cp` and `file get` of 1.102.3 at the other end, on Headscale.

What is right is judged by `sha256sum`; what crossed the wire is read from both ends' counters.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tailscale import Device, taildrop
from tests.interop.processes import poll_until
from tests.interop.rig import Headscale, Rig
from tests.interop.rig.tailscaled import Tailscaled

pytestmark = pytest.mark.peers("tailscale", "tailscaled")
MIB = 1 << 20


async def digest(path: Path) -> str:
    done = await trio.run_process(["sha256sum", str(path)], capture_stdout=True)
    return done.stdout.decode().split()[0]


def made(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


@asynccontextmanager
async def ours(hs: Headscale, name: str = "ours", user: str = "alice") -> AsyncIterator[Device]:
    async with Device(name, control_url=hs.url, auth_key=await hs.auth_key(user)) as device:
        yield device


@pytest.fixture
async def stock(r: Rig, hs: Headscale) -> AsyncIterator[Tailscaled]:
    async with r.tailscaled("stock", control=hs, auth_key=await hs.auth_key()) as daemon:
        yield daemon


async def is_target(daemon: Tailscaled, name: str) -> bool:
    return f"\t{name}" in await daemon.cli("file", "cp", "--targets", check=False)


async def known(device: Device, daemon: Tailscaled) -> None:
    """Both know of each other as targets."""

    async def both() -> bool | None:
        names = [node.hostname for node in taildrop.targets(device)]
        return (daemon.name in names and await is_target(daemon, device.hostname)) or None

    await poll_until("both are targets", both, 30)


async def test_stock_command_line_sends_to_our_inbox(hs: Headscale, stock: Tailscaled, tmp_path: Path) -> None:
    big, text = made(tmp_path / "big.bin", 8 * MIB + 3), made(tmp_path / "Größe é.txt", 5)
    async with ours(hs) as device, taildrop.Inbox(device, tmp_path / "in", accept=True) as inbox:
        await known(device, stock)
        await stock.cli("file", "cp", str(big), str(text), "ours:")
        await stock.cli("file", "cp", "--name=from stdin", "-", "ours:", stdin=b"hello")
        await stock.cli("file", "cp", str(big), "ours:")  # once more: it is here
        made(big, 7)
        await stock.cli("file", "cp", str(big), "ours:")  # another one of that name
        names = [(await anext(inbox)).name for _ in range(4)]
        assert names == ["big.bin", "Größe é.txt", "from stdin", "big (1).bin"]
        assert sorted(os.listdir(tmp_path / "in")) == sorted(names)
        assert await digest(tmp_path / "in" / "big (1).bin") == await digest(big)
        assert (tmp_path / "in" / "from stdin").read_bytes() == b"hello"


async def test_we_send_to_a_stock_node(hs: Headscale, stock: Tailscaled, tmp_path: Path) -> None:
    big, empty = made(tmp_path / "big.bin", 8 * MIB + 3), made(tmp_path / "empty", 0)
    async with ours(hs) as device:
        await known(device, stock)
        report = await taildrop.send(device, "stock", big, empty)
        assert report[:3] == (2, 8 * MIB + 3, 0)
        (tmp_path / "out").mkdir()
        told = await stock.cli("file", "get", "--verbose", str(tmp_path / "out"))
        print(told)
        assert await digest(tmp_path / "out" / "big.bin") == await digest(big)
        assert (tmp_path / "out" / "empty").read_bytes() == b""
