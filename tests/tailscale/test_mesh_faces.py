"""The mesh for asyncio and for plain threads: the same verbs, over two devices on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from thread_scripts import our_threads

from tailscale import aio, sync
from tailscale.mesh import (
    Inbox,
    Mesh,
    MeshPeer,
    NotInMesh,
    Offer,
    PeerJoined,
    RemoteError,
    TransferRefused,
    aio_face,
    sync_face,
)
from tailscale.testing.threaded import TailnetThread


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.mark.parametrize("face", [aio_face, sync_face])
def test_faces_have_every_verb(face: object) -> None:
    for ours, theirs in ((face.Mesh, Mesh), (face.MeshPeer, MeshPeer)):  # type: ignore[attr-defined]
        for name in vars(theirs):
            if not name.startswith("_") and name not in INSIDE:
                assert inspect.getdoc(getattr(ours, name, None)), f"{ours} {name}"


INSIDE = {"start", "is_full", "files", "carry_files", "line_of", "line_to", "admit", "dismiss"}


def test_asyncio(net: TailnetThread) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), aio.Device("a", **net.options()) as a, aio.Device("b", **net.options()) as b:
            async with aio.Mesh(a, "notes") as left, aio.Mesh(b, "notes", name="bob") as right:
                async with right.subscribe("chat") as inbox:
                    bob = await left.peer("b", timeout=20)
                    assert (bob.id, bob.name, bob.online, bob.connected) == (right.id, "bob", True, True)
                    await bob.send("chat", {"text": "hello"}, timeout=20)
                    await left.send(bob, "chat", b"bytes", timeout=20)
                    messages = [await anext(inbox) for _ in range(2)]
                    assert [message.data for message in messages] == [{"text": "hello"}, b"bytes"]
                    sender = messages[0].sender
                    assert sender.id == left.id

                    async def double(question: object) -> object:
                        await asyncio.sleep(0)
                        return question.data * 2  # type: ignore[attr-defined]

                    serving = asyncio.create_task(right.serve("double", double))
                    assert await left.request("b", "double", 21, type=int) == 42
                    assert await bob.request("double", "x") == "xx"
                    with pytest.raises(RemoteError):
                        await left.request("b", "double", {})
                    serving.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await serving
                    report = await left.broadcast("chat", 1)
                    assert report.delivered == (bob,)
                async with left.store("presence") as ours, right.store("presence") as theirs:
                    changes = theirs.changes()
                    await ours.set({"status": "here"})
                    change = await anext(changes)
                    assert change.slice.value == {"status": "here"}
                    assert [(peer.id, slice.value) for peer, slice in await theirs.items()] == [
                        (left.id, {"status": "here"})
                    ]
                events = left.events()
                with pytest.raises(NotInMesh):
                    await left.peer("nobody", timeout=0.1)
                assert next(iter(await left.peers())).startswith("b.")
            async for event in events:  # ends with the mesh
                assert not isinstance(event, PeerJoined)

    before = our_threads()
    asyncio.run(main())
    assert our_threads() == before


def test_threads(net: TailnetThread) -> None:
    with sync.Device("c", **net.options()) as c, sync.Device("d", **net.options()) as d:
        with sync.Mesh(c, "wiki") as left, sync.Mesh(d, "wiki") as right:
            with right.subscribe("chat") as inbox:
                peer = left.peer("d", timeout=20)
                peer.send("chat", 1, timeout=20)
                assert next(inbox).data == 1
                server = threading.Thread(target=right.serve, args=("double", lambda question: question.data * 2))
                server.start()
                assert left.request(peer, "double", 21, type=int, timeout=20) == 42
                assert left.broadcast("chat", 2).delivered == (peer,)
            with left.store("s") as ours, right.store("s") as theirs:
                changes = theirs.changes()
                ours.set({"x": 1})
                assert next(changes).peer.id == left.id
                assert ours.mine == {"x": 1}
                assert theirs.of(right.peer("c")).value == {"x": 1}  # type: ignore[union-attr]
        server.join(10)
        assert not server.is_alive()


def test_files_by_asyncio(net: TailnetThread, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "leaf").write_bytes(b"leaf")
    asked: list[tuple[str, object]] = []

    async def accept(offer: Offer) -> bool:
        asked.append((offer.sender.name, asyncio.get_running_loop()))
        return "unwanted" not in offer.paths

    async def main() -> None:
        async with asyncio.timeout(30), aio.Device("e", **net.options()) as e, aio.Device("f", **net.options()) as f:
            inbox = Inbox(tmp_path / "in", accept=accept)
            async with aio.Mesh(e, "files", share={"docs": tmp_path / "tree"}) as left:
                async with aio.Mesh(f, "files", receive=inbox) as right:
                    peer = await left.peer("f", timeout=20)
                    report = await peer.push(tmp_path / "tree", into="one")
                    assert (report.files, report.bytes_sent) == (1, 4)
                    async with left.push(peer, tmp_path / "tree", into="two") as transfer:
                        seen = [progress async for progress in transfer]
                    assert seen[-1].fraction == 1.0
                    assert transfer.result.files == 1
                    assert asked == [("e", asyncio.get_running_loop())] * 2
                    await right.pull("e", "docs", tmp_path / "out")
                    assert (tmp_path / "out" / "docs" / "leaf").read_bytes() == b"leaf"
                    (tmp_path / "unwanted").write_bytes(b"")
                    with pytest.raises(TransferRefused):
                        await left.push("f", tmp_path / "unwanted")
                    with pytest.raises(ZeroDivisionError):
                        async with left.push("f", tmp_path / "tree", into="three"):
                            raise ZeroDivisionError

    asyncio.run(main())


def test_files_by_threads(net: TailnetThread, tmp_path: Path) -> None:
    (tmp_path / "leaf").write_bytes(b"leaf")
    here = threading.get_ident()
    asked: list[bool] = []

    def accept(offer: Offer) -> bool:
        asked.append(threading.get_ident() == here)
        return offer.sender.node.hostname == "g"

    with sync.Device("g", **net.options()) as g, sync.Device("h", **net.options()) as h:
        with sync.Mesh(g, "files") as left, sync.Mesh(h, "files", receive=Inbox(tmp_path / "in", accept=accept)):
            with left.peer("h", timeout=20).push(tmp_path / "leaf") as transfer:
                assert [progress.fraction for progress in transfer][-1] == 1.0
            assert transfer.result.files == 1
            assert left.push("h", tmp_path / "leaf", into="again").wait().bytes_sent == 4
            with pytest.raises(TransferRefused):
                left.pull("h", "docs", tmp_path).wait()
            assert asked == [False, False]
