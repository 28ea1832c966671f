"""What a type checker knows of meshes: read by test_mesh_types.py, never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_type

from tailscale import aio, sync
from tailscale.mesh import Lagged, Mesh, MeshPeer, Message, Slice
from tailscale.mesh.aio_face import MeshPeer as AioPeer
from tailscale.mesh.sync_face import MeshPeer as SyncPeer

if TYPE_CHECKING:
    from tailscale.mesh.faces import Heard


@dataclass
class Chat:
    text: str = ""


async def under_trio(notes: Mesh) -> None:
    async with notes.subscribe("chat", Chat, overflow="drop") as inbox:
        async for message in inbox:
            assert_type(message, Message[Chat] | Lagged)
    async with notes.store("presence", Chat) as presence:
        presence.mine = Chat("here")
        for peer, found in presence.items():
            assert_type(peer, MeshPeer)
            assert_type(found, Slice[Chat])

    async def answer(question: Message[Chat]) -> str:
        return question.data.text

    await notes.serve("upper", answer, type=Chat)
    assert_type(await notes.request("bob", "upper", Chat("x"), type=str), str)


async def under_asyncio(notes: aio.Mesh) -> None:
    async with notes.subscribe("chat", Chat, overflow="wait") as inbox:
        async for message in inbox:
            if not isinstance(message, Lagged):
                assert_type(message.data, Chat)
                assert_type(message.sender, AioPeer)
    async with notes.store("presence", Chat) as presence:
        await presence.set(Chat("here"))
        assert_type(presence.mine, Chat)
        async for change in presence.changes():
            assert_type(change.peer, AioPeer)
            assert_type(change.slice, Slice[Chat] | None)
        assert_type(await presence.items(), list[tuple[AioPeer, Slice[Chat]]])

    async def answer(question: Heard[AioPeer, Chat]) -> str:
        return question.data.text

    await notes.serve("upper", answer, type=Chat)
    assert_type(await notes.request("bob", "upper", Chat("x"), type=str), str)


def in_threads(notes: sync.Mesh) -> None:
    with notes.subscribe("chat", Chat) as inbox:
        for message in inbox:
            if not isinstance(message, Lagged):
                assert_type(message.data, Chat)
                assert_type(message.sender, SyncPeer)
    with notes.store("presence", Chat) as presence:
        presence.set(Chat("here"))
        assert_type(presence.mine, Chat)
        assert_type(presence.items(), list[tuple[SyncPeer, Slice[Chat]]])

    def answer(question: Heard[SyncPeer, Chat]) -> str:
        return question.data.text

    notes.serve("upper", answer, type=Chat)
    assert_type(notes.request("bob", "upper", Chat("x"), type=str), str)


async def wrongly(notes: aio.Mesh, blocking: sync.Mesh) -> None:
    """Each of these is an error, and would be one of ours if it were none."""
    notes.subscribe("chat", Chat, overflow="dorp")  # type: ignore[arg-type]
    blocking.subscribe("chat", Chat, overflow="dorp")  # type: ignore[arg-type]
    async with notes.store("presence", Chat) as presence:
        await presence.set("here")  # type: ignore[arg-type]

    async def answer(question: Heard[AioPeer, int]) -> Any:
        return question.data

    await notes.serve("upper", answer, type=Chat)  # type: ignore[arg-type]
