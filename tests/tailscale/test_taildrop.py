"""Taildrop between two of our devices, and what peers can make of its server."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio
from mesh_scripts import break_streams
from tailnet_scripts import until
from test_peerapi import ask, read_answer
from trio.testing import MockClock

from tailscale import Device, taildrop
from tailscale.peerapi.actor import PORT
from tailscale.taildrop import claims, partial, sending
from tailscale.taildrop.names import key_of, partial_name
from tailscale.testing import Tailnet

MIB = 1 << 20
BLOCK = 1 << 16


async def put(client: Device, server: Device, name: str, body: bytes, *headers: str) -> int:
    """The status of a PUT."""
    async with await client.tcp_connect(server.ipv4, PORT) as stream:
        head = [f"PUT /v0/put/{name} HTTP/1.1", "Host: peer", f"Content-Length: {len(body)}", *headers, "", ""]
        await stream.send_all("\r\n".join(head).encode() + body)
        return (await read_answer(stream, "PUT"))[0]


async def cut(client: Device, server: Device, name: str, body: bytes, size: int, folder: Path) -> None:
    """A sender that is gone after `body`, of `size` bytes."""
    async with await client.tcp_connect(server.ipv4, PORT) as stream:
        head = f"PUT /v0/put/{name} HTTP/1.1\r\nHost: peer\r\nContent-Length: {size}\r\n\r\n"
        await stream.send_all(head.encode() + body)
        await stream.send_eof()
        while await stream.receive_some():
            pass
    await until(lambda: _partial_size(folder) == len(body))


def _partial_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(".*.partial"))


@asynccontextmanager
async def inbox_of(
    tailnet: Tailnet, folder: Path, **options: Any
) -> AsyncIterator[tuple[Device, Device, taildrop.Inbox]]:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with taildrop.Inbox(b, folder, **{"accept": True} | options) as inbox:
        yield a, b, inbox


async def test_a_file_arrives_whole(tailnet: Tailnet, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB + 5)
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    async with inbox_of(tailnet, tmp_path / "in") as (a, b, inbox):
        assert [node.hostname for node in taildrop.targets(a)] == ["b"]
        async with taildrop.send(a, "b", tmp_path / "a.bin", tmp_path / "empty") as transfer:
            seen = [progress async for progress in transfer]
        assert transfer.result[:3] == (2, len(data), 0)
        assert seen[-1].fraction == 1.0
        files = [await anext(inbox), await anext(inbox)]
        levels = b.status().counters.levels
        assert (levels["taildrop.files"], levels["taildrop.bytes.in"]) == (2, len(data))
        assert a.status().counters.levels["taildrop.bytes.out"] == len(data)
    assert [(file.name, file.size) for file in files] == [("a.bin", len(data)), ("empty", 0)]
    assert files[0].sender.hostname == "a"
    assert files[0].path.read_bytes() == data
    assert files[0].path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path / "in")) == ["a.bin", "empty"]
    with pytest.raises(StopAsyncIteration):
        await anext(inbox)


async def test_bytes_without_a_path_are_sent_under_a_name(tailnet: Tailnet, tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"hel"
        yield b"lo"

    async with inbox_of(tailnet, tmp_path / "in") as (a, _, inbox):
        report = await taildrop.send(a, "b", pieces(), name="said")
        assert report[:3] == (1, 5, 0)
        assert (await anext(inbox)).path.read_bytes() == b"hello"
        with pytest.raises(ValueError, match="name="):
            taildrop.send(a, "b", pieces())


# Who may


GRANT_SEND = {"src": ["bob@example.com"], "dst": ["*"], "app": {"https://tailscale.com/cap/file-send": [{}]}}


@pytest.mark.parametrize(
    ("theirs", "ours", "grants", "status", "is_target"),
    [
        ({"user": "ann@example.com"}, {"user": "ann@example.com"}, [], 200, True),
        ({"user": "bob@example.com"}, {"user": "ann@example.com"}, [], 403, False),
        ({"tags": ["tag:x"]}, {"user": "ann@example.com"}, [], 403, False),
        ({"user": "ann@example.com"}, {"tags": ["tag:x"]}, [], 403, False),
        ({"tags": ["tag:x"]}, {"tags": ["tag:x"]}, [], 403, True),
        ({"user": "bob@example.com"}, {"user": "ann@example.com"}, [GRANT_SEND], 200, False),
    ],
)
async def test_who_may_send_is_what_control_says(
    tailnet: Tailnet,
    tmp_path: Path,
    theirs: dict[str, Any],
    ours: dict[str, Any],
    grants: list[Any],
    status: int,
    is_target: bool,
) -> None:
    everything = {"src": ["*"], "dst": ["*"], "ip": ["*"]}
    tailnet.policy({"tagOwners": {"tag:x": ["*"]}, "grants": [everything, *grants]})
    a = await tailnet.device("a", auth_key=tailnet.auth_key(**theirs))
    b = await tailnet.device("b", auth_key=tailnet.auth_key(**ours))
    async with taildrop.Inbox(b, tmp_path / "in", accept=True):
        assert (await put(a, b, "x", b"x"), bool(taildrop.targets(a))) == (status, is_target)


async def test_without_consent_nothing_arrives(tailnet: Tailnet, tmp_path: Path) -> None:
    seen: list[taildrop.Offer] = []

    async def judge(offer: taildrop.Offer) -> bool:
        seen.append(offer)
        return offer.name == "good"

    a, b = await tailnet.device("a"), await tailnet.device("b")
    for name in ("good", "bad"):
        (tmp_path / name).write_bytes(b"12345")
    with pytest.raises(taildrop.TransferRefused, match="no program there does"):
        await taildrop.send(a, "b", tmp_path / "good")
    async with taildrop.Inbox(b, tmp_path / "in"):
        with pytest.raises(taildrop.TransferRefused, match="no program takes files"):
            await taildrop.send(a, "b", tmp_path / "good")
    async with taildrop.Inbox(b, tmp_path / "in", accept=judge):
        await taildrop.send(a, "b", tmp_path / "good")
        with pytest.raises(taildrop.TransferRefused, match="declined"):
            await taildrop.send(a, "b", tmp_path / "bad")
    assert [(offer.sender.hostname, offer.name, offer.size) for offer in seen] == [("a", "good", 5), ("a", "bad", 5)]
    assert os.listdir(tmp_path / "in") == ["good"]


# Names


REFUSED = [
    "..", "%2e%2e", "a/b", "a%2Fb", "%2Fetc%2Fpasswd", "a%5Cb", "a%00b", "a%0Ab", "%ff%fe", "%zz", "x.partial",
    "x.PARTIAL", "x.deleted", "%20lead", "trail%20", "dot.", "a%3Ab", "a%7Cb", "a%2Ab", "a%22b", "%E2%80%AEx",
    "%E2%80%8B", "CON", "nul.txt", "lpt1", "a" * 256, "%C3%A9" * 128, "", ".a.part",
]  # fmt: skip


async def test_names_that_are_refused(tailnet: Tailnet, tmp_path: Path) -> None:
    async with inbox_of(tailnet, tmp_path / "in") as (a, b, _):
        assert {await put(a, b, name, b"x") for name in REFUSED} == {400}
    assert os.listdir(tmp_path / "in") == []


async def test_names_that_are_taken(tailnet: Tailnet, tmp_path: Path) -> None:
    names = [".hidden", "%41", "~x", "a?b", "e\u0301", "😀", "x" * 255, "y" * 251 + ".txt"]
    async with inbox_of(tailnet, tmp_path / "in") as (a, b, inbox):
        for name in names:
            assert await put(a, b, quote(name, safe=""), b"1") == 200
        assert [(await anext(inbox)).name for _ in names] == [*names[:4], "é", *names[5:]]


async def test_a_name_that_is_taken_is_kept(tailnet: Tailnet, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    async with inbox_of(tailnet, folder) as (a, b, inbox):
        for body in (b"1", b"2", b"1", b"33"):
            assert await put(a, b, "a.tar.gz", body) == 200
        assert [(await anext(inbox)).name for _ in range(3)] == ["a.tar.gz", "a (1).tar.gz", "a (2).tar.gz"]
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == {
        "a.tar.gz": b"1", "a (1).tar.gz": b"2", "a (2).tar.gz": b"33",
    }  # fmt: skip
    for exists, status, left in (("refuse", 409, b"1"), ("replace", 200, b"4")):
        async with taildrop.Inbox(b, folder, True, exists=exists):  # type: ignore[arg-type]
            assert await put(a, b, "a.tar.gz", b"4") == status
        assert (folder / "a.tar.gz").read_bytes() == left


async def test_links_are_not_followed(tailnet: Tailnet, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    folder = tmp_path / "in"
    async with inbox_of(tailnet, folder) as (a, b, _):
        (folder / "a").symlink_to(outside)
        (folder / partial_name("b", key_of(a.node.stable_id))).symlink_to(outside)
        os.link(outside, folder / partial_name("c", key_of(a.node.stable_id)))
        for name in "abc":
            assert await put(a, b, name, b"theirs") == 200
    assert outside.read_bytes() == b"mine"
    assert (folder / "a").is_symlink()
    assert (folder / "a (1)").read_bytes() == (folder / "b").read_bytes() == (folder / "c").read_bytes() == b"theirs"


# Going on where it broke off


async def test_a_broken_transfer_is_resumed_by_hashes(tailnet: Tailnet, tmp_path: Path) -> None:
    data, folder = os.urandom(300_000), tmp_path / "in"
    (tmp_path / "part.bin").write_bytes(data)
    async with inbox_of(tailnet, folder) as (a, b, inbox):
        await cut(a, b, "part.bin", data[:200_000], len(data), folder)
        status, _, told = await ask(a, b, "GET /v0/put/part.bin")
        sizes = [json.loads(line)["size"] for line in told.splitlines()]
        first = json.loads(told.splitlines()[0])
        assert (status, sizes) == (200, [BLOCK, BLOCK, BLOCK, 3392])
        assert first == {"checksum": hashlib.sha256(data[:BLOCK]).hexdigest(), "algo": "sha256", "size": BLOCK}
        assert len(json.loads((await ask(a, b, "GET /v0/put/"))[2])) == 1
        report = await taildrop.send(a, "b", tmp_path / "part.bin")
        assert report[:3] == (1, 100_000, 200_000)
        assert (await anext(inbox)).path.read_bytes() == data
        assert (await ask(a, b, "GET /v0/put/part.bin"))[2] == ""
        assert (await ask(a, b, "GET /v0/put/"))[2] == "null\n"
    assert os.listdir(folder) == ["part.bin"]


async def test_a_changed_file_is_resumed_from_where_it_differs(tailnet: Tailnet, tmp_path: Path) -> None:
    data, folder = os.urandom(300_000), tmp_path / "in"
    changed = data[:100_000] + b"other" + data[100_005:]
    (tmp_path / "x").write_bytes(changed)
    async with inbox_of(tailnet, folder) as (a, b, inbox):
        await cut(a, b, "x", data[:200_000], len(data), folder)
        assert (await taildrop.send(a, "b", tmp_path / "x"))[:3] == (1, 300_000 - BLOCK, BLOCK)
        assert (await anext(inbox)).path.read_bytes() == changed


async def test_a_shorter_file_does_not_inherit_the_tail_of_a_broken_one(tailnet: Tailnet, tmp_path: Path) -> None:
    async with inbox_of(tailnet, tmp_path / "in") as (a, b, inbox):
        await cut(a, b, "x", b"o" * 200_000, 300_000, tmp_path / "in")
        assert await put(a, b, "x", b"short") == 200
        assert (await anext(inbox)).path.read_bytes() == b"short"


async def test_a_connection_that_breaks_in_the_middle_is_made_again(
    tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "AGAIN", (0.0, 0.0))
    data = os.urandom(8 * MIB)
    (tmp_path / "x").write_bytes(data)
    write, cuts = partial.Partial.write, []

    def write_and_cut(part: partial.Partial, pieces: Sequence[bytes]) -> None:
        write(part, pieces)
        if part.size > 3 * MIB and not cuts:
            cuts.append(part.size)
            raise trio.BrokenResourceError("cut")

    monkeypatch.setattr(partial.Partial, "write", write_and_cut)
    async with inbox_of(tailnet, tmp_path / "in") as (a, _, inbox):
        report = await taildrop.send(a, "b", tmp_path / "x")
        assert len(cuts) == 1
        assert len(data) <= report.bytes_sent < 2 * len(data) - MIB
        assert (await anext(inbox)).path.read_bytes() == data


async def test_connections_that_are_reset_in_the_middle_are_made_again(
    tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "AGAIN", (0.0, *[0.02] * 100))  # the other side has yet to see that the first is over
    data = os.urandom(8 * MIB)
    (tmp_path / "x").write_bytes(data)
    async with inbox_of(tailnet, tmp_path / "in") as (a, b, inbox):
        async with taildrop.send(a, "b", tmp_path / "x") as transfer:
            await until(lambda: _partial_size(tmp_path / "in") >= 2 * MIB)
            break_streams(a, b)
        assert transfer.result.bytes_sent < 2 * len(data) - MIB
        assert (await anext(inbox)).path.read_bytes() == data


async def test_offsets_beyond_4_gib(tailnet: Tailnet, tmp_path: Path) -> None:
    size, folder = (5 << 30) + 3, tmp_path / "in"
    async with inbox_of(tailnet, folder) as (a, b, inbox):
        sparse = folder / partial_name("x", key_of(a.node.stable_id))
        sparse.touch()
        os.truncate(sparse, size)
        assert await put(a, b, "x", b"end", f"Range: bytes={size}-") == 200
        file = await anext(inbox)
        assert file.size == size + 3
        with file.path.open("rb") as whole:
            whole.seek(size - 1)
            assert whole.read() == b"\0end"


async def test_a_body_longer_than_it_said_is_cut_there(tailnet: Tailnet, tmp_path: Path) -> None:
    async with inbox_of(tailnet, tmp_path / "in") as (a, b, inbox):
        async with await a.tcp_connect(b.ipv4, PORT) as stream:
            await stream.send_all(b"PUT /v0/put/x HTTP/1.1\r\nHost: peer\r\nContent-Length: 4\r\n\r\nthis and more")
            assert (await read_answer(stream, "PUT"))[0] == 200
        assert (await anext(inbox)).path.read_bytes() == b"this"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Range: bytes=0-"], 200),
        (["Range: bytes=0-5"], 400),
        (["Range: bytes=-5"], 400),
        (["Range: bytes=1-,2-"], 400),
        (["Range: lines=1-"], 400),
        (["Range: bytes=99999999999999999999-"], 400),
        (["Range: bytes=6-"], 416),
        (["Content-Range: bytes 0-4/5"], 400),
    ],
)
async def test_ranges_that_lie(tailnet: Tailnet, tmp_path: Path, headers: Sequence[str], status: int) -> None:
    async with inbox_of(tailnet, tmp_path / "in") as (a, b, _):
        assert await put(a, b, "x", b"12345", *headers) == status


# Bounds


async def test_a_file_larger_than_allowed_is_refused(tailnet: Tailnet, tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * MIB

    (tmp_path / "x").write_bytes(b"x" * 1001)
    async with inbox_of(tailnet, tmp_path / "in", largest=1000) as (a, b, _):
        with pytest.raises(taildrop.TransferFailed, match="at most 1000 bytes"):
            await taildrop.send(a, "b", tmp_path / "x")
        with pytest.raises(taildrop.TransferFailed, match="413"):
            await taildrop.send(a, "b", endless(), name="endless")
    async with taildrop.Inbox(b, tmp_path / "in", True):
        async with await a.tcp_connect(b.ipv4, PORT) as stream:
            await stream.send_all(b"PUT /v0/put/x HTTP/1.1\r\nHost: peer\r\nContent-Length: %d\r\n\r\n" % (1 << 50))
            assert (await read_answer(stream, "PUT"))[0] == 507
    assert all(path.stat().st_size <= 1000 for path in (tmp_path / "in").iterdir())


async def test_the_quota_counts_what_waits(tailnet: Tailnet, tmp_path: Path) -> None:
    async with inbox_of(tailnet, tmp_path / "in", quota=100) as (a, b, _):
        assert await put(a, b, "x", b"x" * 60) == 200
        assert await put(a, b, "y", b"y" * 60) == 507
        assert await put(a, b, "z", b"z" * 40) == 200
        assert await put(a, b, "w", b"w") == 507


async def test_a_disk_that_fills_up_is_told_and_keeps_what_came(
    tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def pwrite(descriptor: int, data: Any, at: int) -> int:
        if at >= MIB:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data, at)

    (tmp_path / "x").write_bytes(data := os.urandom(4 * MIB))
    async with inbox_of(tailnet, tmp_path / "in") as (a, _, inbox):
        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(taildrop.TransferFailed, match="disk is full"):
            await taildrop.send(a, "b", tmp_path / "x")
        monkeypatch.undo()
        report = await taildrop.send(a, "b", tmp_path / "x")
        assert report.bytes_skipped >= MIB
        assert (await anext(inbox)).path.read_bytes() == data


async def stalled(client: Device, server: Device, name: str) -> trio.abc.Stream:
    """A sender that has begun, and goes no further."""
    stream = await client.tcp_connect(server.ipv4, PORT)
    await stream.send_all(f"PUT /v0/put/{name} HTTP/1.1\r\nHost: peer\r\nContent-Length: 9\r\n\r\nx".encode())
    return stream


async def test_one_sender_has_so_many_places(tailnet: Tailnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with inbox_of(tailnet, tmp_path / "in") as (a, b, inbox):
        streams = [await stalled(a, b, str(number)) for number in range(claims.PER_SENDER)]
        await until(lambda: inbox.statistics().open == {"in": claims.PER_SENDER})
        assert await put(a, b, "more", b"x") == 503
        assert await put(a, b, "0", b"x") == 409
        assert (await ask(a, b, "GET /v0/put/0"))[::2] == (200, "")  # it moved just now, and stays
        monkeypatch.setattr(claims, "SILENT", 0.0)
        assert (await ask(a, b, "GET /v0/put/0"))[0] == 200  # its sender begins anew: the silent one is given up
        assert await put(a, b, "0", b"123456789") == 200
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_who_stalls_has_a_place_for_a_minute(autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path) -> None:
    async with inbox_of(tailnet, tmp_path / "in") as (a, b, inbox):
        stream = await stalled(a, b, "x")
        await until(lambda: inbox.statistics().open == {"in": 1})
        await trio.sleep(120)
        await until(lambda: inbox.statistics().open == {"in": 0}, 1e6)
        assert inbox.statistics().drops == {"taildrop.broken_off": 1}
        await trio.aclose_forcefully(stream)


async def test_two_senders_of_one_name_get_two_files(tailnet: Tailnet, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(name.encode() * MIB)
    async with inbox_of(tailnet, tmp_path / "in") as (a, _, inbox):
        c = await tailnet.device("c")
        async with trio.open_nursery() as nursery:
            for device, name in ((a, "one"), (c, "two")):
                nursery.start_soon(lambda d, n: _sent(d, tmp_path / n / "x"), device, name)
        files = [await anext(inbox), await anext(inbox)]
        assert {file.name for file in files} == {"x", "x (1)"}
        assert {file.path.read_bytes()[:3] for file in files} == {b"one", b"two"}


async def _sent(device: Device, path: Path) -> None:
    await taildrop.send(device, "b", path)


async def test_what_nobody_comes_back_for_is_removed(tailnet: Tailnet, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    async with inbox_of(tailnet, folder) as (a, b, _):
        await cut(a, b, "old", b"x" * 10, 100, folder)
        (old,) = folder.glob(".*")
        os.utime(old, (0, 0))
    async with taildrop.Inbox(b, folder, True):
        await until(lambda: not list(folder.glob(".*")))


def test_room_is_made_of_what_is_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        part = partial.Partial(tmp_path, f"f{number}", "k" * 16)
        part.write([b"x"])
        if number:
            part.close()
    monkeypatch.setattr(partial.Folder, "free_bytes", lambda folder: 20 * MIB - MIB * len(folder.names()))
    assert partial.sweep(tmp_path, 0.0, 3 * MIB) == 3 * MIB
    assert os.listdir(tmp_path) == [partial_name("f0", "k" * 16)]
