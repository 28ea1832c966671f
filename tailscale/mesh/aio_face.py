"""The mesh for asyncio: the verbs of `tailscale.mesh.Mesh`, awaited in this event loop.

```python no-run: two devices
async with tailscale.aio.Device("laptop") as device, tailscale.aio.Mesh(device, "notes") as notes:
    await notes.send("bob", "chat", {"text": "hello"})
```
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from tailscale.errors import DeviceClosed
from tailscale.files.aio_transfer import Transfer
from tailscale.files.faces import entering, leaving, next_of
from tailscale.mesh.faces import (
    MeshFace,
    PeerFace,
    StoreFace,
    StreamFace,
    bare,
    begun,
    shown,
    shown_event,
    shown_report,
)
from tailscale.threads.awaiting import finished, in_loop
from tailscale.threads.face import as_work

if TYPE_CHECKING:
    import os

    from tailscale.events import Lagged
    from tailscale.mesh.broadcasting import BroadcastReport
    from tailscale.mesh.counting import MeshStatistics
    from tailscale.mesh.faces import Changed, Heard
    from tailscale.mesh.peers import MeshPeer as TrioMeshPeer
    from tailscale.mesh.stores import Slice
    from tailscale.mesh.subscriptions import Message
    from tailscale.mesh.transfers import Offer
    from tailscale.nodes import Node

T = TypeVar("T")


class MeshPeer(PeerFace):
    """One member of the mesh."""

    async def send(
        self, namespace: str, data: object, *, kind: str = "message", wait: bool = True, timeout: float | None = None
    ) -> None:
        """As `Mesh.send`."""
        job = self._thread.submit(lambda: self._peer.send(namespace, data, kind=kind, wait=wait, timeout=timeout))
        await finished(job)

    async def request(self, namespace: str, data: object, *, type: type[T] = Any, timeout: float = 30.0) -> T:  # type: ignore[assignment]
        """As `Mesh.request`."""
        job = self._thread.submit(lambda: self._peer.request(namespace, data, type=type, timeout=timeout))
        return await finished(job)

    def push(self, *paths: str | os.PathLike[str], into: str = "", resume: bool = True) -> Transfer:
        """As `Mesh.push`."""
        return Transfer(lambda: self._peer.push(*paths, into=into, resume=resume), self._thread)

    def pull(self, path: str, into: str | os.PathLike[str], *, resume: bool = True) -> Transfer:
        """As `Mesh.pull`."""
        return Transfer(lambda: self._peer.pull(path, into, resume=resume), self._thread)


class Mesh(MeshFace):
    """The devices of one app. Takes what `tailscale.mesh.Mesh` takes, over a Device of this kind.

    Handlers, and what an `Inbox` asks, run in this event loop.
    """

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()

        async def judge(accept: Callable[[Offer], Any], offer: Offer) -> bool:
            return bool(await in_loop(loop, accept)(replace(offer, sender=self._known(offer.sender))))

        self._ask_elsewhere(judge)
        await finished(self._thread.submit(self._enter))
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(DeviceClosed):
            await finished(self._thread.submit(self._leave))

    def _known(self, peer: TrioMeshPeer) -> MeshPeer:
        return MeshPeer(peer, self._thread)

    async def peers(self) -> dict[str, MeshPeer]:
        """The members right now, by full name."""
        job = self._thread.submit(as_work(lambda: dict(self._inside().peers)))
        return {name: self._known(peer) for name, peer in (await finished(job)).items()}

    async def peer(self, who: str | Node, *, timeout: float | None = None) -> MeshPeer:
        """A member, once it is one. Raises `NotInMesh` after `timeout` seconds."""
        return self._known(await finished(self._thread.submit(lambda: self._inside().peer(who, timeout=timeout))))

    async def send(
        self,
        to: str | MeshPeer,
        namespace: str,
        data: object,
        *,
        kind: str = "message",
        wait: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Send anything that is JSON, or bytes. Returns when a subscription of the peer's process holds it."""
        options: dict[str, Any] = {"kind": kind, "wait": wait, "timeout": timeout}
        await finished(self._thread.submit(lambda: self._inside().send(bare(to), namespace, data, **options)))

    async def broadcast(self, namespace: str, data: object, *, timeout: float = 5.0) -> BroadcastReport:
        """`send` to every member that is online, at once. The report names `MeshPeer`s of this kind."""
        job = self._thread.submit(lambda: self._inside().broadcast(namespace, data, timeout=timeout))
        return shown_report(await finished(job), self._known)

    async def request(
        self,
        to: str | MeshPeer,
        namespace: str,
        data: object,
        *,
        type: type[T] = Any,  # type: ignore[assignment]
        timeout: float = 30.0,
    ) -> T:
        """Ask, and return the answer of whoever serves this namespace there, as `type`."""
        job = self._thread.submit(lambda: self._inside().request(bare(to), namespace, data, type=type, timeout=timeout))
        return await finished(job)

    async def serve(
        self,
        namespace: str,
        handler: Callable[[Heard[MeshPeer, T]], Awaitable[object]],
        *,
        type: type[T] = Any,  # type: ignore[assignment]
        limit: int = 64,
    ) -> None:
        """Answer requests in a namespace until cancelled, `limit` at once. What the handler returns is the answer."""
        call = in_loop(asyncio.get_running_loop(), handler)

        async def answer(question: Message[Any]) -> object:
            return await call(shown(question, self._known))

        job = self._thread.submit(lambda: self._inside().serve(namespace, answer, type=type, limit=limit))
        await finished(job)

    async def statistics(self) -> MeshStatistics:
        """Members, messages, files and drops so far."""
        return await finished(self._thread.submit(as_work(lambda: self._inside().statistics())))

    def subscribe(
        self,
        namespace: str,
        type: type[T] = Any,  # type: ignore[assignment]
        *,
        limit: int = 256,
        overflow: Literal["wait", "drop"] = "wait",
    ) -> Stream[Heard[MeshPeer, T] | Lagged]:
        """The messages of a namespace from every member: `async with`, then `async for`."""
        inbox = self._inside().subscribe(namespace, type, limit=limit, overflow=overflow)
        return Stream(self._thread, lambda: inbox, lambda message: shown(message, self._known))

    def store(self, name: str, type: type[T] = dict) -> Store[T]:  # type: ignore[assignment]
        """A value of each device under one name: `async with`."""
        return Store(self._inside().store(name, type), self._thread)

    def events(self) -> Stream[Any]:
        """What happens from now on: `async for event in mesh.events()`."""
        return Stream(self._thread, self._inside().events, lambda event: shown_event(event, self._known))

    def push(self, to: str | MeshPeer, *paths: str | os.PathLike[str], into: str = "", resume: bool = True) -> Transfer:
        """Send files and folders to a member's `Inbox`: `await` it, or `async with` it to see how far it is."""
        return Transfer(begun(self._inside, "push", to, *paths, into=into, resume=resume), self._thread)

    def pull(self, source: str | MeshPeer, path: str, into: str | os.PathLike[str], *, resume: bool = True) -> Transfer:
        """Fetch a file or folder that a member shares."""
        return Transfer(begun(self._inside, "pull", source, path, into, resume=resume), self._thread)


class Stream(StreamFace[T]):
    """What comes out of the loop one by one."""

    async def __aenter__(self) -> Self:
        stream = await finished(self._made)
        await finished(self._thread.submit(entering(stream)))
        return self

    async def __aexit__(self, *_: object) -> None:
        stream = await finished(self._made)
        with contextlib.suppress(DeviceClosed):
            await finished(self._thread.submit(leaving(stream)))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        stream = await finished(self._made)
        try:
            return self._show(await finished(self._thread.submit(lambda: next_of(stream))))
        except DeviceClosed:
            raise StopAsyncIteration from None


class Store(StoreFace[T]):
    """A value of each device of the mesh, under one name."""

    async def __aenter__(self) -> Self:
        await finished(self._thread.submit(entering(self._store)))
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(DeviceClosed):
            await finished(self._thread.submit(leaving(self._store)))

    async def set(self, value: T) -> None:
        """Replace our value."""
        await finished(self._thread.submit(as_work(lambda: self._store.set(value))))

    async def clear(self) -> None:
        """Take our value back, everywhere."""
        await finished(self._thread.submit(self._store.clear))

    async def of(self, peer: MeshPeer) -> Slice[T] | None:
        """A peer's slice, if it has told one."""
        return await finished(self._thread.submit(self._slice_of(peer)))

    async def items(self) -> list[tuple[MeshPeer, Slice[T]]]:
        """Every peer that has told one, with its slice."""
        found = await finished(self._thread.submit(self._all()))
        return [(MeshPeer(peer, self._thread), slice) for peer, slice in found]

    def changes(self) -> Stream[Changed[MeshPeer, T]]:
        """What changes from now on."""
        wrap = partial(MeshPeer, thread=self._thread)
        return Stream(self._thread, self._store.changes, lambda change: shown_event(change, wrap))
