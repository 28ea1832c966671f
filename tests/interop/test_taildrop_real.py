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
from tailscale.peerapi.actor import PORT
from tests.interop.ourdaemon import daemon
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


async def test_another_user_is_refused_both_ways(r: Rig, hs: Headscale, tmp_path: Path) -> None:
    file = made(tmp_path / "x", 100)
    bob = await hs.auth_key("bob")
    async with (
        ours(hs) as device,
        taildrop.Inbox(device, tmp_path / "in", accept=True) as inbox,
        r.tailscaled("bobs", control=hs, auth_key=bob) as daemon,
    ):
        await poll_until("bob's device", lambda: _sees(device, "bobs"), 30)
        assert taildrop.targets(device) == ()
        with pytest.raises(taildrop.TransferRefused, match="somebody else"):
            await taildrop.send(device, "bobs", file)
        told = await daemon.connect(device.ipv4 or "", PORT)  # its command line would not even try
        async with told:
            await told.send_all(b"PUT /v0/put/x HTTP/1.1\r\nHost: peer\r\nContent-Length: 1\r\n\r\nx")
            assert (await told.receive_some()).startswith(b"HTTP/1.1 403 ")
        assert inbox.statistics().drops == {"taildrop.not_allowed": 1}
        assert os.listdir(tmp_path / "in") == []


async def _sees(device: Device, name: str) -> bool | None:
    return (name in device.peers) or None


async def test_a_killed_stock_sender_goes_on_where_it_was(hs: Headscale, stock: Tailscaled, tmp_path: Path) -> None:
    """Half of the file is sent by hand through the stock node, which then dies; its command line sends the rest."""
    big = made(tmp_path / "big.bin", 4 * MIB)
    async with ours(hs) as device, taildrop.Inbox(device, tmp_path / "in", accept=True) as inbox:
        await known(device, stock)
        head = b"PUT /v0/put/big.bin HTTP/1.1\r\nHost: peer\r\nContent-Length: %d\r\n\r\n" % (4 * MIB)
        async with await stock.connect(device.ipv4 or "", PORT) as half:
            await half.send_all(head + big.read_bytes()[: 3 * MIB])
            await poll_until("half of it", lambda: _has(tmp_path / "in", 2 * MIB), 30)
        await poll_until("its end", lambda: _is_idle(inbox), 30)
        before = inbox.statistics().bytes["in"]
        await stock.cli("file", "cp", str(big), "ours:")
        crossed = inbox.statistics().bytes["in"] - before
        assert MIB <= crossed <= MIB + 2 * 65536 + 65536
        assert await digest((await anext(inbox)).path) == await digest(big)


async def _has(folder: Path, size: int) -> bool | None:
    return sum(path.stat().st_size for path in folder.glob(".*.partial")) >= size or None


async def _is_idle(inbox: taildrop.Inbox) -> bool | None:
    return inbox.statistics().open == {"in": 0} or None


async def cut(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, 3 * MIB, MIB):
        yield data[start : start + MIB]
    raise OSError("the cable was cut")


async def test_our_broken_transfer_goes_on_at_a_stock_node(hs: Headscale, stock: Tailscaled, tmp_path: Path) -> None:
    big = made(tmp_path / "big.bin", 8 * MIB)
    async with ours(hs) as device:
        await known(device, stock)
        with pytest.raises(taildrop.TransferFailed, match="the cable was cut"):
            await taildrop.send(device, "stock", cut(big.read_bytes()), name=big.name, size=8 * MIB)
        report = await taildrop.send(device, "stock", big)
        assert report.files == 1
        assert report.bytes_skipped > MIB
        assert report.bytes_sent + report.bytes_skipped == 8 * MIB
        (tmp_path / "out").mkdir()
        await stock.cli("file", "get", str(tmp_path / "out"))
        assert await digest(tmp_path / "out" / "big.bin") == await digest(big)


async def test_stock_command_line_uses_our_daemon(r: Rig, hs: Headscale, stock: Tailscaled, tmp_path: Path) -> None:
    """`tailscale --socket` of our daemon: targets, sending, and fetching in all its ways."""
    big, out = made(tmp_path / "big.bin", 2 * MIB), tmp_path / "out"
    out.mkdir()
    async with daemon(r, hs, "ours") as ours_cli:
        await poll_until("a target", lambda: is_target(stock, "ours"), 30)
        assert "\tstock" in await ours_cli("file", "cp", "--targets")
        assert '"TaildropTarget": 1' in await ours_cli("status", "--json")
        await ours_cli("file", "cp", str(big), "stock:")
        await ours_cli("file", "cp", "--name=said", "-", "stock:", stdin=b"hello")
        await stock.cli("file", "get", str(out))
        assert await digest(out / "big.bin") == await digest(big)
        assert (out / "said").read_bytes() == b"hello"
        for conflict, names in (("skip", []), ("rename", ["big (1).bin"]), ("overwrite", [])):
            await stock.cli("file", "cp", str(big), "ours:")
            code, told = await ours_cli.run("file", "get", f"--conflict={conflict}", str(out))
            assert (code == 0) == (conflict != "skip"), told
            assert sorted(os.listdir(out)) == sorted({"big.bin", "said", "big (1).bin"} & {*os.listdir(out), *names})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours_cli, "file", "get", "--wait", "--conflict=rename", str(tmp_path))
            await trio.sleep(0.5)  # either order is right: it waits, or finds it there
            await stock.cli("file", "cp", "--name=late", "-", "ours:", stdin=b"late")
        assert (tmp_path / "late").read_bytes() == b"late"
