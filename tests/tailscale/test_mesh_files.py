"""Files between two meshes, over the virtual network and real disks: whole, resumed, refused, broken off.

Real time: threads read and write, and a mock clock would not wait for them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel
from mesh_scripts import meshes, until_met
from tailnet_scripts import until

from tailscale.mesh import (
    Inbox,
    Mesh,
    MeshLimits,
    MeshPeer,
    Offer,
    Progress,
    TransferDone,
    TransferFailed,
    TransferRefused,
)
from tailscale.mesh.files import Files
from tailscale.testing import Tailnet
from ts_mesh import offers
from ts_mesh.blocks import BLOCK, root_of
from ts_mesh.offers import ENTRIES_A_MESSAGE

MTIME = 1_000_000_000_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tree to be sent."""
    tree = tmp_path / "tree"
    (tree / "sub" / "deep").mkdir(parents=True)
    (tree / "hello.txt").write_bytes(b"hello")
    (tree / "empty").write_bytes(b"")
    (tree / "sub" / "run.sh").write_bytes(b"#!/bin/sh\n")
    (tree / "sub" / "run.sh").chmod(0o750)
    (tree / "sub" / "deep" / "big").write_bytes(os.urandom(2 * BLOCK + 77))
    (tree / "link").symlink_to("hello.txt")
    age(tree)
    return tree


def age(top: Path) -> None:
    for path in [*top.rglob("*"), top]:
        os.utime(path, ns=(MTIME, MTIME), follow_symlinks=False)


def big(path: Path, blocks: int = 6) -> Path:
    path.write_bytes(os.urandom(blocks * BLOCK + 5))
    age(path)
    return path


@asynccontextmanager
async def pair(net: Tailnet, **options: Any) -> AsyncIterator[tuple[Mesh, Mesh, MeshPeer]]:
    """Two meshes and, for the first, the second: which has these options."""
    async with Mesh(await net.device("a"), "notes") as a, Mesh(await net.device("b"), "notes", **options) as b:
        await until_met(a, 1)
        yield a, b, await a.peer("b", timeout=10)


def listing(top: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(top)): (
            path.stat().st_mode & 0o777,
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(top.rglob("*"))
        if not path.is_symlink()
    }


# --- whole ------------------------------------------------------------------------------------------


async def test_folder_arrives_with_modes_and_times(tailnet: Tailnet, folder: Path, tmp_path: Path) -> None:
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, b, peer):
        events = b.events()
        async with peer.push(folder) as transfer:
            seen = [progress async for progress in transfer]
        assert listing(tmp_path / "in" / "tree") == listing(folder)
        assert (tmp_path / "in" / "tree").stat().st_mtime_ns == MTIME
        size = 2 * BLOCK + 77 + 15
        assert transfer.result[:3] == (4, size, 0)
        assert [skipped.path for skipped in transfer.result.skipped] == ["tree/link"]
        assert seen[-1].fraction == 1.0
        assert seen[-1].done == seen[-1].total == size
        assert [each.done for each in seen] == sorted(each.done for each in seen)
        while not isinstance(done := await anext(events), TransferDone):
            pass
        assert (done.peer.node.hostname, done.name, done.error) == ("a", "tree", None)


async def test_who_watches_either_device_sees_the_transfer(
    tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read, write = big(tmp_path / "big", 2), os.pread, os.pwrite
    size = path.stat().st_size
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True), share={"big": path}) as (a, b, peer):
        seen: list[tuple[Any, Any]] = []

        def pread(descriptor: int, length: int, at: int) -> bytes:
            seen.append((a.device.transfers, b.device.transfers))
            return read(descriptor, length, at)

        def pwrite(descriptor: int, data: Any, at: int) -> int:
            seen.append((a.device.transfers, b.device.transfers))
            return write(descriptor, data, at)

        monkeypatch.setattr(os, "pread", pread)
        monkeypatch.setattr(os, "pwrite", pwrite)
        for transfer, is_outgoing in ((peer.push(path), True), (peer.pull("big", tmp_path / "out"), False)):
            await transfer
            # Where bytes have moved at both ends: one may begin later than the other, and end sooner.
            under_way = [(ours, theirs) for ours, theirs in seen if ours and theirs and ours[0].name and theirs[0].name]
            assert under_way
            for (ours,), (theirs,) in under_way:
                assert (ours.name, ours.peer, ours.is_outgoing, ours.total) == ("big", "b", is_outgoing, size)
                assert (theirs.name, theirs.peer, theirs.is_outgoing, theirs.total) == (
                    "big",
                    "a",
                    not is_outgoing,
                    size,
                )
                assert 0 <= theirs.done <= size
            await until(lambda: not a.device.transfers and not b.device.transfers)
            seen.clear()
        moved = b.statistics().files.bytes  # type: ignore[attr-defined]
        assert moved == {"out": size, "in": size}
        assert a.device.status().counters.levels["mesh.files.bytes.out"] == size


async def test_second_push_sends_nothing(tailnet: Tailnet, folder: Path, tmp_path: Path) -> None:
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        await peer.push(folder)
        again = await peer.push(folder)
        assert again[:3] == (4, 0, 2 * BLOCK + 77 + 15)


async def test_into_names_a_folder_of_the_inbox(tailnet: Tailnet, folder: Path, tmp_path: Path) -> None:
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (a, _, peer):
        await a.push("b", folder / "hello.txt", into="from/a")
        assert (tmp_path / "in" / "from" / "a" / "hello.txt").read_bytes() == b"hello"
        with pytest.raises(ValueError, match="upwards"):
            peer.push(folder, into="../out")


@pytest.mark.slow
async def test_pull_fetches_what_is_shared_and_only_that(tailnet: Tailnet, folder: Path, tmp_path: Path) -> None:
    async with pair(tailnet, share={"docs": folder}) as (a, _, peer):
        report = await peer.pull("docs/sub", tmp_path / "out")
        assert listing(tmp_path / "out" / "sub") == listing(folder / "sub")
        assert report[:2] == (2, 2 * BLOCK + 77 + 10)
        whole = await a.pull("b", "docs", tmp_path / "all")
        assert listing(tmp_path / "all" / "docs") == listing(folder)
        assert [skipped.path for skipped in whole.skipped] == ["docs/link"]
        again = await peer.pull("docs", tmp_path / "all")
        assert again[:3] == (4, 0, 2 * BLOCK + 77 + 15)
        for path, reason in (("docs/nothing", "not-found"), ("docs/link", "not-found"), ("secret", "not-allowed")):
            with pytest.raises(TransferRefused) as refused:
                await peer.pull(path, tmp_path / "no")
            assert refused.value.reason == reason
        with pytest.raises(ValueError, match="upwards"):
            peer.pull("docs/../..", tmp_path / "no")
        assert not (tmp_path / "no").exists()


async def test_pull_never_follows_a_link_out_of_what_is_shared(tailnet: Tailnet, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"key")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "way").symlink_to(tmp_path / "secret")
    async with pair(tailnet, share={"docs": tmp_path / "docs"}) as (_, _, peer):
        with pytest.raises(TransferRefused):
            await peer.pull("docs/way/key", tmp_path / "out")


@pytest.mark.slow
async def test_many_small_files_over_four_connections(tailnet: Tailnet, tmp_path: Path) -> None:
    tree = tmp_path / "many"
    tree.mkdir()
    for number in range(150):
        (tree / f"{number}").write_bytes(b"%d" % number * 100)
    age(tree)
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True), share={"in": tmp_path / "in"}) as (
        _,
        _,
        peer,
    ):
        assert (await peer.push(tree)).files == 150
        assert (await peer.pull("in/many", tmp_path / "out")).files == 150
        assert listing(tmp_path / "out" / "many") == listing(tree)


# --- resumed ----------------------------------------------------------------------------------------


async def broken_off(peer: MeshPeer, path: Path, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push that ends when the other side has so many blocks."""
    write = os.pwrite

    def pwrite(descriptor: int, data: Any, at: int) -> int:
        if at >= blocks * BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(TransferFailed, match="the disk there is full"):
        await peer.push(path)
    monkeypatch.setattr(os, "pwrite", write)


@pytest.mark.slow
async def test_push_goes_on_and_hashes_nothing_again(
    tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big(tmp_path / "big", 8)
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (a, b, peer):
        await broken_off(peer, path, 4, monkeypatch)
        report = await peer.push(path)
        assert (report.bytes_sent, report.bytes_skipped) == (4 * BLOCK + 5, 4 * BLOCK)
        assert (tmp_path / "in" / "big").read_bytes() == path.read_bytes()
        hashed_here, hashed_there = (files_of(mesh).statistics().bytes_hashed for mesh in (a, b))
        assert hashed_here <= 8 * BLOCK + 5 + BLOCK
        assert hashed_there <= 8 * BLOCK + 5 + BLOCK


def files_of(mesh: Mesh) -> Files:
    files = mesh.files
    assert isinstance(files, Files)
    return files


@pytest.mark.slow
async def test_push_without_resume_sends_all(tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = big(tmp_path / "big", 3)
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        await broken_off(peer, path, 2, monkeypatch)
        report = await peer.push(path, resume=False)
        assert report[:3] == (1, 3 * BLOCK + 5, 0)


@pytest.mark.slow
async def test_sender_that_forgot_its_hashes_compares_beside_sending(
    tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big(tmp_path / "big", 8)
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        await broken_off(peer, path, 4, monkeypatch)
        age_of = path.stat()
        path.rename(tmp_path / "moved")  # the same bytes in another file: nothing is known of it
        path.write_bytes((tmp_path / "moved").read_bytes())
        os.utime(path, ns=(age_of.st_mtime_ns, age_of.st_mtime_ns))
        report = await peer.push(path)
        assert report.bytes_skipped >= 2 * BLOCK
        assert (tmp_path / "in" / "big").read_bytes() == path.read_bytes()


@pytest.mark.slow
async def test_pull_goes_on_where_it_broke_off(tailnet: Tailnet, tmp_path: Path) -> None:
    path = big(tmp_path / "big", 8)
    async with pair(tailnet, share={"big": path}) as (_, _, peer):
        with pytest.raises(TransferFailed, match="broken off here"):
            async with peer.pull("big", tmp_path / "out") as transfer:
                async for progress in transfer:
                    if progress.done >= 2 * BLOCK:
                        transfer.cancel()
        report = await peer.pull("big", tmp_path / "out")
        assert report.bytes_skipped >= BLOCK
        # Where all of it had come and only its root had not, the last block is asked for once more.
        assert 8 * BLOCK + 5 <= report.bytes_sent + report.bytes_skipped <= 8 * BLOCK + 10
        assert (tmp_path / "out" / "big").read_bytes() == path.read_bytes()


@pytest.mark.slow
async def test_receiver_that_vanished_fails_the_push_and_keeps_what_came(tailnet: Tailnet, tmp_path: Path) -> None:
    path = big(tmp_path / "big", 8)
    inbox = Inbox(tmp_path / "in", accept=True)
    a = Mesh(await tailnet.device("a"), "notes")
    b_device = await tailnet.device("b")
    async with a:
        with pytest.raises(TransferFailed, match="goes on from there"):
            async with Mesh(b_device, "notes", receive=inbox):
                peer = await a.peer("b", timeout=10)
                transfer = peer.push(path)
                await transfer.__aenter__()
                async for progress in transfer:
                    if progress.done >= 2 * BLOCK:
                        break
            await transfer.__aexit__(None, None, None)
        async with Mesh(b_device, "notes", receive=inbox):
            peer = await a.peer("b", timeout=10)
            assert (await peer.push(path)).bytes_skipped >= BLOCK
        assert (tmp_path / "in" / "big").read_bytes() == path.read_bytes()


# --- refused ----------------------------------------------------------------------------------------


def refuse_all(offer: Offer) -> bool:
    return False


def mistaken(offer: Offer) -> bool:
    raise ZeroDivisionError


async def only_a(offer: Offer) -> bool:
    await trio.lowlevel.checkpoint()
    return offer.sender.node.hostname == "a" and offer.paths == ("hello.txt",) and offer.total == 5


@pytest.mark.parametrize(
    ("inbox", "reason"),
    [
        (None, "not-allowed"),
        ({}, "declined"),
        ({"accept": refuse_all}, "declined"),
        ({"accept": mistaken}, "declined"),
        ({"accept": True, "largest": 4}, "too-large"),
        ({"accept": only_a, "largest": 5}, ""),
    ],
)
async def test_inbox_decides(
    tailnet: Tailnet, folder: Path, tmp_path: Path, inbox: dict[str, Any] | None, reason: str
) -> None:
    receive = Inbox(tmp_path / "in", **inbox) if inbox is not None else None
    async with pair(tailnet, receive=receive) as (_, b, peer):
        if not reason:
            assert (await peer.push(folder / "hello.txt")).files == 1
            return
        with pytest.raises(TransferRefused, match="b refused the transfer") as refused:
            await peer.push(folder / "hello.txt")
        assert refused.value.reason == reason
        assert files_of(b).statistics().refused == {reason: 1}
        assert not (tmp_path / "in").exists()


async def test_existing_file_is_a_reason_to_refuse(tailnet: Tailnet, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "hello.txt").write_bytes(b"mine")
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        with pytest.raises(TransferRefused) as refused:
            await peer.push(folder / "hello.txt")
        assert refused.value.reason == "exists"
        assert (tmp_path / "in" / "hello.txt").read_bytes() == b"mine"


async def test_fifth_offer_of_one_peer_is_told_to_come_later(tailnet: Tailnet, folder: Path, tmp_path: Path) -> None:
    may_decide = trio.Event()

    async def slowly(offer: Offer) -> bool:
        await may_decide.wait()
        return True

    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=slowly, exists="rename")) as (_, b, peer):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(finish, peer, folder / "hello.txt", f"{number}")
            await until(lambda: files_of(b).statistics().offered == 4)
            with pytest.raises(TransferRefused) as refused:
                await peer.push(folder / "hello.txt")
            assert refused.value.reason == "busy"
            may_decide.set()


async def finish(peer: MeshPeer, path: Path, into: str) -> None:
    await peer.push(path, into=into)


async def test_as_many_transfers_as_are_allowed(tailnet: Tailnet, folder: Path, tmp_path: Path) -> None:
    limits = MeshLimits(transfers=1)
    async with meshes(tailnet, "a", "c") as (a, c):
        async with Mesh(
            await tailnet.device("b"), "notes", receive=Inbox(tmp_path / "in", accept=True), limits=limits
        ) as b:
            await until_met(a, 2)
            files_of(b).give_ticket(await b.peer("c", timeout=10), "t", [], None)
            with pytest.raises(TransferRefused) as refused:
                await (await a.peer("b", timeout=10)).push(folder / "hello.txt")
            assert refused.value.reason == "busy"
            assert (await (await c.peer("b", timeout=10)).push(folder / "hello.txt")).files == 1  # its own gives way


# --- broken -----------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_disk_full_at_some_block_fails_with_the_name(
    tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big(tmp_path / "big", 4)
    write = os.pwrite
    room = 3 * BLOCK

    def pwrite(descriptor: int, data: Any, at: int) -> int:
        if at >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        with pytest.raises(TransferFailed, match=r"big \(the disk there is full\)") as failed:
            await peer.push(path)
        assert failed.value.failed == {"big": "the disk there is full"}
        assert not (tmp_path / "in" / "big").exists()
        room = 1 << 40
        report = await peer.push(path)
        assert report.bytes_skipped == 3 * BLOCK


async def test_offer_larger_than_the_disk_is_refused(
    tailnet: Tailnet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        with pytest.raises(TransferRefused) as refused:
            await peer.push(folder)
        assert refused.value.reason == "no-space"


async def test_target_that_cannot_be_written_is_refused(tailnet: Tailnet, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"a file where the folder should be")
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        with pytest.raises(TransferRefused) as refused:
            await peer.push(folder / "hello.txt")
        assert refused.value.reason == "not-allowed"


async def test_read_only_target_fails_with_the_name(
    tailnet: Tailnet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        link = os.link

        def refuse(*arguments: Any, **options: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(os, "link", refuse)
        with pytest.raises(TransferFailed, match=r"hello.txt \(it may not be written there\)"):
            await peer.push(folder / "hello.txt")
        monkeypatch.setattr(os, "link", link)
        assert (await peer.push(folder / "hello.txt")).files == 1


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["truncate", "grow", "replace"])
async def test_file_that_changes_while_it_is_sent_fails_alone(
    tailnet: Tailnet, tmp_path: Path, deed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    path = big(tree / "big", 3)
    (tree / "small").write_bytes(b"small")
    age(tree)
    read = os.pread
    content = path.read_bytes()

    def pread(descriptor: int, length: int, at: int) -> bytes:
        if at >= BLOCK and length > 1000:
            monkeypatch.setattr(os, "pread", read)
            if deed == "replace":
                (tmp_path / "new").write_bytes(content)
                os.replace(tmp_path / "new", path)
            else:
                os.truncate(path, BLOCK if deed == "truncate" else len(content) + 1)
        return read(descriptor, length, at)

    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        monkeypatch.setattr(os, "pread", pread)
        with pytest.raises(TransferFailed, match=r"tree/big \(it changed while it was sent\)") as failed:
            await peer.push(tree)
        assert list(failed.value.failed) == ["tree/big"]
        assert (tmp_path / "in" / "tree" / "small").read_bytes() == b"small"
        assert not (tmp_path / "in" / "tree" / "big").exists()
        await peer.push(tree)
        assert (tmp_path / "in" / "tree" / "big").read_bytes() == path.read_bytes()


async def test_pull_of_a_file_that_changes_fails_with_its_name(
    tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big(tmp_path / "big", 3)
    read = os.pread

    def pread(descriptor: int, length: int, at: int) -> bytes:
        if at >= BLOCK:
            monkeypatch.setattr(os, "pread", read)
            os.truncate(path, BLOCK)
        return read(descriptor, length, at)

    async with pair(tailnet, share={"big": path}) as (_, _, peer):
        monkeypatch.setattr(os, "pread", pread)
        with pytest.raises(TransferFailed, match=r"big \(it changed while it was sent\)"):
            await peer.pull("big", tmp_path / "out")
        assert not (tmp_path / "out" / "big").exists()


async def test_source_that_is_not_there_is_told_before_anything_is_asked(tailnet: Tailnet, tmp_path: Path) -> None:
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        with pytest.raises(TransferFailed, match=r"cannot read .*nothing: No such file"):
            await peer.push(tmp_path / "nothing")


@pytest.mark.slow
async def test_block_that_a_journal_claims_wrongly_is_sent_again(
    tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big(tmp_path / "big", 4)
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        await broken_off(peer, path, 3, monkeypatch)
        journal = tmp_path / "in" / ".big.part.journal"
        await until(lambda: b"seal" in journal.read_bytes())
        with (tmp_path / "in" / ".big.part").open("r+b") as part:
            part.seek(10)
            part.write(b"edited")
        await peer.push(path)
        assert (tmp_path / "in" / "big").read_bytes() == path.read_bytes()


async def test_transfer_outlives_no_mesh_and_ends_none(
    tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "endless"
    path.touch()
    os.truncate(path, 1 << 40)  # sparse
    device = await tailnet.device("a")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 50}))
    async with Mesh(await tailnet.device("b"), "notes", receive=Inbox(tmp_path / "in", accept=True)):
        async with Mesh(device, "notes") as a:
            transfer = (await a.peer("b", timeout=10)).push(path)
            await transfer.__aenter__()
            await anext(transfer)
        with pytest.raises(TransferFailed, match="ended with its mesh"):
            await transfer.__aexit__(None, None, None)


# --- HTTP by hand -----------------------------------------------------------------------------------


class Caller:
    """A peer that speaks `_f` and HTTP by itself."""

    def __init__(self, mesh: Mesh, peer: MeshPeer) -> None:
        self.mesh, self.peer = mesh, peer
        self.heard: list[tuple[str, Any]] = []

    def hear(self, peer: MeshPeer, word: str, payload: Any) -> None:
        self.heard.append((word, payload))

    async def say(self, word: str, **payload: Any) -> tuple[str, Any]:
        count = len(self.heard)
        await self.mesh.line_of(self.peer).say(self.peer, word, payload, timeout=5)
        await until(lambda: len(self.heard) > count)
        return self.heard[-1]

    async def request(self, line: str, *headers: str, body: bytes = b"") -> tuple[int, dict[str, Any], bytes]:
        """Status, the answer's JSON, and all bytes of the answer."""
        async with await self.mesh.line_of(self.peer).connect_port(timeout=5) as stream:
            head = "\r\n".join((f"{line} HTTP/1.1", "Host: b", "Connection: close", *headers, "", ""))
            await stream.send_all(head.encode() + body)
            got = b"".join([data async for data in stream])
        head_text, _, rest = got.partition(b"\r\n\r\n")
        try:
            answer = json.loads(rest)
        except ValueError:
            answer = {}
        return int(head_text.split()[1]), answer, got


@asynccontextmanager
async def caller(net: Tailnet, **options: Any) -> AsyncIterator[tuple[Caller, Mesh]]:
    a = Mesh(await net.device("a"), "notes")
    asking: Any = Caller.__new__(Caller)
    a.carry_files(asking)
    asking.__init__(a, None)
    async with a, Mesh(await net.device("b"), "notes", **options) as b:
        await until_met(a, 1)
        asking.peer = await a.peer("b", timeout=10)
        yield asking, b


async def test_put_by_hand_is_believed_when_its_root_agrees(tailnet: Tailnet, tmp_path: Path) -> None:
    root = root_of([hashlib.sha256(b"hello").digest()]).hex()
    async with caller(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (asking, _):
        word, told = await asking.say(
            "offer", token="t", entries=[{"path": "x", "size": 5, "mtime_ns": MTIME}], total=5
        )
        assert (word, told["token"], told.get("have", {})) == ("accept", "t", {})
        target = f"PUT /f/{told['ticket']}/0"
        status, answer, _ = await asking.request(target, "Content-Length: 4", body=b"hell")
        assert (status, answer["why"]) == (400, "length")
        status, answer, _ = await asking.request(target, "Content-Length: 5", f"Mesh-Root: {'0' * 64}", body=b"hello")
        assert (status, answer["why"]) == (409, "root")
        assert not (tmp_path / "in" / "x").exists()
        chunks = f"5\r\nhello\r\n0\r\nMesh-Root: {root}\r\n\r\n".encode()
        status, answer, _ = await asking.request(target, "Transfer-Encoding: chunked", body=chunks)
        assert (status, answer) == (200, {"root": root, "name": "x"})
        assert (tmp_path / "in" / "x").read_bytes() == b"hello"
        assert (await asking.request(target, "Content-Length: 5", "Expect: 100-continue", body=b"hello"))[0] in (
            100,
            200,
        )


@pytest.mark.parametrize(
    "said",
    [
        "bytes 0-10/5",
        "bytes 3-1/5",
        "bytes -1-4/5",
        "bytes 1-4/5",
        "bytes 0-2/5",
        "bytes 0-4/6",
        "bytes 0-1,2-4/5",
        "x",
    ],
)
async def test_content_range_that_does_not_fit_changes_nothing(tailnet: Tailnet, tmp_path: Path, said: str) -> None:
    async with caller(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (asking, _):
        _, told = await asking.say("offer", token="t", entries=[{"path": "x", "size": 5}], total=5)
        target = f"PUT /f/{told['ticket']}/0"
        status, answer, _ = await asking.request(target, "Content-Length: 5", f"Content-Range: {said}", body=b"hello")
        assert (status, answer["why"]) == (400, "range")
        assert os.listdir(tmp_path / "in") == []


async def test_overlapping_parts_make_the_last_one_count(tailnet: Tailnet, tmp_path: Path) -> None:
    content = os.urandom(BLOCK + 10)
    root = root_of([hashlib.sha256(content[:BLOCK]).digest(), hashlib.sha256(content[BLOCK:]).digest()]).hex()
    size = len(content)
    async with caller(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (asking, _):
        _, told = await asking.say("offer", token="t", entries=[{"path": "x", "size": size}], total=size)
        target = f"PUT /f/{told['ticket']}/0"
        whole = f"Content-Range: bytes 0-{size - 1}/{size}"
        status, _, _ = await asking.request(target, f"Content-Length: {size}", whole, body=bytes(size))
        assert status == 202
        first = f"Content-Range: bytes 0-{BLOCK - 1}/{size}"
        status, _, _ = await asking.request(target, f"Content-Length: {BLOCK}", first, body=content[:BLOCK])
        assert status == 202
        empty = f"Content-Range: bytes */{size}"
        last = f"Content-Range: bytes {BLOCK}-{size - 1}/{size}"
        status, answer, _ = await asking.request(
            target, "Content-Length: 10", last, f"Mesh-Root: {root}", body=content[BLOCK:]
        )
        assert (status, answer["root"]) == (200, root)
        status, answer, _ = await asking.request(target, "Content-Length: 0", empty, f"Mesh-Root: {root}")
        assert status == 200  # as after an answer that was lost
        assert (tmp_path / "in" / "x").read_bytes() == content


async def test_ticket_of_another_or_guessed_is_unknown(tailnet: Tailnet, tmp_path: Path) -> None:
    async with caller(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (asking, b):
        _, told = await asking.say("offer", token="t", entries=[{"path": "x", "size": 5}], total=5)
        async with Mesh(await tailnet.device("c"), "notes") as c:
            thief = Caller(c, await c.peer("b", timeout=10))
            status, _, _ = await thief.request(f"PUT /f/{told['ticket']}/0", "Content-Length: 5", body=b"stole")
            assert status == 404
            assert b.drops["mesh.unknown_ticket"] == 1
        for ticket, number in (("0" * 32, "0"), (told["ticket"], "1"), (told["ticket"], "-1"), (told["ticket"], "x")):
            status, _, _ = await asking.request(f"PUT /f/{ticket}/{number}", "Content-Length: 5", body=b"hello")
            assert status == 404
        assert (await asking.request(f"GET /f/{told['ticket']}/0"))[0] == 405
        await asking.mesh.line_of(asking.peer).say(asking.peer, "end", {"token": "t"}, timeout=5)
        status, _, _ = await asking.request(f"PUT /f/{told['ticket']}/0", "Content-Length: 5", body=b"hello")
        assert status == 404
        assert os.listdir(tmp_path / "in") == []


async def test_several_small_files_in_one_put_are_each_believed_or_not(tailnet: Tailnet, tmp_path: Path) -> None:
    contents = [b"one", b"", b"three", b"four!"]
    roots = [root_of([hashlib.sha256(text).digest()] if text else []).hex() for text in contents]
    roots[3] = roots[0]
    entries = [{"path": f"{n}", "size": len(text), "mtime_ns": MTIME} for n, text in enumerate(contents)]
    (tmp_path / "in").mkdir()
    async with caller(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (asking, _):
        folder = {"path": "tree", "dir": True}
        _, told = await asking.say("offer", token="t", entries=[*entries, folder], total=13)
        assert told["many"]
        (tmp_path / "in" / "2").write_bytes(b"planted meanwhile")
        target, body = f"PUT /f/{told['ticket']}/0,1,2,3", b"".join(contents)
        status, answer, _ = await asking.request(
            target, "Content-Length: 13", f"Mesh-Roots: {','.join(roots)}", body=body
        )
        assert status == 200
        assert [(each["status"], each["why"]) for each in answer["files"]] == [
            (200, ""),
            (200, ""),
            (409, "exists"),
            (409, "root"),
        ]
        assert (tmp_path / "in" / "0").read_bytes() == b"one"
        assert (tmp_path / "in" / "2").read_bytes() == b"planted meanwhile"
        assert not (tmp_path / "in" / "3").exists()
        for headers in ((), (f"Mesh-Roots: {roots[0]}",), ("Mesh-Roots: x,y,z,v",)):
            status, answer, _ = await asking.request(target, "Content-Length: 13", *headers, body=body)
            assert (status, answer["why"]) == (400, "range")
        status, answer, _ = await asking.request(
            target, "Content-Length: 12", f"Mesh-Roots: {','.join(roots)}", body=body[:12]
        )
        assert (status, answer["why"]) == (400, "length")
        status, _, _ = await asking.request(f"PUT /f/{told['ticket']}/0,9", "Content-Length: 0")
        assert status == 404
        status, answer, _ = await asking.request(
            f"PUT /f/{told['ticket']}/0,4", "Content-Length: 3", f"Mesh-Roots: {roots[0]},{roots[1]}", body=b"one"
        )
        assert (status, answer["why"]) == (400, "range")


async def test_push_to_who_takes_one_file_a_put(
    tailnet: Tailnet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the protocol began: a peer that does not say `many` gets each file by itself."""
    said = offers.accepts_of

    def plainly(*arguments: Any) -> list[offers.Accept]:
        return [msgspec.structs.replace(accept, many=False) for accept in said(*arguments)]

    monkeypatch.setattr("tailscale.mesh.files.accepts_of", plainly)
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        assert (await peer.push(folder)).files == 4
        assert listing(tmp_path / "in" / "tree") == listing(folder)


async def test_get_by_hand_has_ranges_and_an_etag(tailnet: Tailnet, folder: Path) -> None:
    root = root_of([hashlib.sha256(b"hello").digest()]).hex()
    async with caller(tailnet, share={"x": folder / "hello.txt"}) as (asking, _):
        word, told = await asking.say("want", token="t", path="x")
        assert word == "found"
        assert told["entries"] == [{"path": "x", "size": 5, "mtime_ns": MTIME, "mode": 0o644}]
        target = f"/f/{told['ticket']}/0"
        status, _, got = await asking.request(f"GET {target}")
        assert (status, got.endswith(b"\r\n\r\nhello")) == (200, True)
        status, _, got = await asking.request(f"GET {target}", "Range: bytes=1-3")
        assert (status, got.endswith(b"\r\n\r\nell"), b"content-range: bytes 1-3/5" in got.lower()) == (206, True, True)
        assert (await asking.request(f"GET {target}", "Range: bytes=5-"))[0] == 416
        status, _, got = await asking.request(f"GET {target}", "TE: trailers")
        assert f"Mesh-Root: {root}".encode() in got
        status, _, got = await asking.request(f"GET {target}", f'If-None-Match: "{root}"')
        assert (status, f'"{root}"'.encode() in got) == (304, True)
        status, _, got = await asking.request(f"HEAD {target}")
        assert (status, f'"{root}"'.encode() in got, b"hello" in got) == (200, True, False)


@pytest.mark.slow
async def test_a_million_entries_are_refused_and_not_kept(tailnet: Tailnet, tmp_path: Path) -> None:
    async with caller(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (asking, b):
        files = files_of(b)
        member = await b.peer("a", timeout=10)
        for number in range(1_000_000 // ENTRIES_A_MESSAGE):
            entries = [{"path": f"{number}"}] * ENTRIES_A_MESSAGE
            files.hear(member, "offer", {"token": "t", "entries": entries, "total": 0, "more": True})
            if not files.statistics().offered:
                break
        await until(lambda: asking.heard)
        assert asking.heard == [("reject", {"token": "t", "why": "too-large"})]
        assert number == 64


async def test_words_that_make_no_sense_are_counted_and_change_nothing(tailnet: Tailnet, tmp_path: Path) -> None:
    async with caller(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (asking, b):
        line = asking.mesh.line_of(asking.peer)
        for word, payload in (("offer", {"token": "t", "entries": [{"path": "../x"}]}), ("dance", {}), ("offer", None)):
            await line.say(asking.peer, word, payload, timeout=5)
        await line.say(asking.peer, "accept", {"token": "t", "ticket": "0" * 32}, timeout=5)
        assert b.drops["mesh.malformed_word"] == 3
        assert b.drops["mesh.unasked_answer"] == 1
        twins = [{"path": "e\u0301"}, {"path": "\u00e9"}]
        assert await asking.say("offer", token="u", entries=twins) == ("reject", {"token": "u", "why": "unsupported"})
        assert await asking.say("still", token="v") == ("reject", {"token": "v", "why": "gone"})
        assert not (tmp_path / "in").exists()


async def test_found_under_another_name_is_not_taken(tailnet: Tailnet, tmp_path: Path) -> None:
    """Who shares may not choose names in our folder."""

    class Liar:
        def hear(self, peer: MeshPeer, word: str, payload: Any) -> None:
            if word == "want":
                found = {"token": payload["token"], "ticket": "0" * 32, "entries": [{"path": ".bashrc"}]}
                b.start(b.line_of(peer).say, peer, "found", found)

    b = Mesh(await tailnet.device("b"), "notes")
    b.carry_files(Liar())  # type: ignore[arg-type]
    async with Mesh(await tailnet.device("a"), "notes") as a, b:
        peer = await a.peer("b", timeout=10)
        with pytest.raises(TransferFailed, match="another name than was asked for"):
            await peer.pull("docs", tmp_path / "out")


async def test_peer_that_never_answers_is_asked_whether_it_still_exists(
    tailnet: Tailnet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailscale.mesh.asking.REMIND_EVERY", 0.02)
    asked: list[str] = []

    class Silent:
        def hear(self, peer: MeshPeer, word: str, payload: Any) -> None:
            asked.append(word)
            if asked.count("still") == 3:
                b.start(b.line_of(peer).say, peer, "reject", {"token": payload["token"], "why": "gone"})

    b = Mesh(await tailnet.device("b"), "notes")
    b.carry_files(Silent())  # type: ignore[arg-type]
    async with Mesh(await tailnet.device("a"), "notes") as a, b:
        with pytest.raises(Exception, match="started anew"):
            await (await a.peer("b", timeout=10)).push(folder / "hello.txt")


def test_progress_of_nothing_is_complete() -> None:
    assert Progress("", 0, 0, 0.0).fraction == 1.0


async def test_transfer_says_how_it_is_used(tailnet: Tailnet, folder: Path, tmp_path: Path) -> None:
    async with pair(tailnet, receive=Inbox(tmp_path / "in", accept=True)) as (_, _, peer):
        transfer = peer.push(folder / "hello.txt")
        with pytest.raises(RuntimeError, match="inside `async with`"):
            await anext(transfer)
        with pytest.raises(RuntimeError, match="not over"):
            _ = transfer.result
        await transfer
        with pytest.raises(RuntimeError, match="entered once"):
            await transfer
    with pytest.raises(ValueError, match="refuse, replace or rename"):
        Inbox("x", exists="maybe")  # type: ignore[arg-type]
