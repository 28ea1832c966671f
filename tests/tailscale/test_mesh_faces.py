"""The mesh for asyncio and for plain threads: the same verbs, over two devices on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Iterator

import pytest
from thread_scripts import ThreadedTailnet, our_threads, tailnet_thread

from tailscale import aio, sync
from tailscale.mesh import Mesh, MeshPeer, NotInMesh, PeerJoined, RemoteError, aio_face, sync_face


@pytest.fixture(scope="module")
def net() -> Iterator[ThreadedTailnet]:
    with tailnet_thread() as net:
        yield net


@pytest.mark.parametrize("face", [aio_face, sync_face])
def test_faces_have_every_verb(face: object) -> None:
    for ours, theirs in ((face.Mesh, Mesh), (face.MeshPeer, MeshPeer)):  # type: ignore[attr-defined]
        for name in vars(theirs):
            if not name.startswith("_") and name not in INSIDE:
                assert inspect.getdoc(getattr(ours, name, None)), f"{ours} {name}"


INSIDE = {"start", "sessions", "files", "carry_files", "line_of", "line_to", "admit", "push", "pull"}


def test_asyncio(net: ThreadedTailnet) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), aio.Device("a", **net.options) as a, aio.Device("b", **net.options) as b:
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


def test_threads(net: ThreadedTailnet) -> None:
    with sync.Device("c", **net.options) as c, sync.Device("d", **net.options) as d:
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
