"""Taildrop for asyncio and for plain threads: the same names, over two devices on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailscale import aio, sync, taildrop
from tailscale.testing.threaded import TailnetThread


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


def test_threads_send_and_receive(net: TailnetThread, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 300_000)
    asked: list[taildrop.Offer] = []

    def accept(offer: taildrop.Offer) -> bool:
        asked.append(offer)
        assert threading.current_thread() is not threading.main_thread()
        return offer.name != "no"

    options = {"control_url": net.control_url}
    with (
        sync.Device("s1", auth_key=net.auth_key(), **options) as one,  # type: ignore[arg-type]
        sync.Device("s2", auth_key=net.auth_key(), **options) as two,  # type: ignore[arg-type]
        sync.taildrop.Inbox(two, tmp_path / "in", accept) as inbox,
    ):
        assert "s2" in [node.hostname for node in sync.taildrop.targets(one)]
        with sync.taildrop.send(one, "s2", tmp_path / "a") as transfer:
            assert [progress.done for progress in transfer][-1] == 300_000
        file = next(inbox)
        assert (file.name, file.path.read_bytes(), file.sender.hostname) == ("a", b"a" * 300_000, "s1")
        with pytest.raises(taildrop.TransferRefused):
            sync.taildrop.send(one, "s2", tmp_path / "a", name="no").wait()
        assert [offer.name for offer in asked] == ["a", "no"]
        assert inbox.statistics().files == 1


async def _asyncio(net: TailnetThread, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()

    async def accept(offer: taildrop.Offer) -> bool:
        assert asyncio.get_running_loop() is loop
        return offer.size == 5

    (tmp_path / "b").write_bytes(b"hello")
    async with (
        aio.Device("a1", control_url=net.control_url, auth_key=net.auth_key()) as one,
        aio.Device("a2", control_url=net.control_url, auth_key=net.auth_key()) as two,
    ):
        async with aio.taildrop.Inbox(two, tmp_path / "in", accept) as inbox:
            assert "a2" in [node.hostname for node in await aio.taildrop.targets(one)]
            report = await aio.taildrop.send(one, "a2", tmp_path / "b")
            assert report.files == 1
            async for file in inbox:
                assert file.path.read_bytes() == b"hello"
                break
        with pytest.raises(taildrop.TransferRefused):
            await aio.taildrop.send(one, "a2", tmp_path / "b")
        with pytest.raises(RuntimeError, match="entered"):
            aio.taildrop.Inbox(two, tmp_path).statistics()


def test_asyncio_sends_and_receives(net: TailnetThread, tmp_path: Path) -> None:
    asyncio.run(_asyncio(net, tmp_path))
