"""The mesh for plain threads: the verbs of `tailscale.mesh.Mesh`, blocking.

```python no-run: two devices
with tailscale.sync.Device("laptop") as device, tailscale.sync.Mesh(device, "notes") as notes:
    notes.send("bob", "chat", {"text": "hello"})
```
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import trio

from tailscale.errors import DeviceClosed
from tailscale.files.faces import entering, leaving, next_of
from tailscale.files.sync_transfer import Transfer
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

    def send(
        self, namespace: str, data: object, *, kind: str = "message", wait: bool = True, timeout: float | None = None
    ) -> None:
        """As `Mesh.send`."""
        job = self._thread.submit(lambda: self._peer.send(namespace, data, kind=kind, wait=wait, timeout=timeout))
        job.wait()

    def request(self, namespace: str, data: object, *, type: type[T] = Any, timeout: float = 30.0) -> T:  # type: ignore[assignment]
        """As `Mesh.request`."""
        job = self._thread.submit(lambda: self._peer.request(namespace, data, type=type, timeout=timeout))
        return job.wait()

    def push(self, *paths: str | os.PathLike[str], into: str = "", resume: bool = True) -> Transfer:
        """As `Mesh.push`."""
        return Transfer(lambda: self._peer.push(*paths, into=into, resume=resume), self._thread)

    def pull(self, path: str, into: str | os.PathLike[str], *, resume: bool = True) -> Transfer:
        """As `Mesh.pull`."""
        return Transfer(lambda: self._peer.pull(path, into, resume=resume), self._thread)


class Mesh(MeshFace):
    """The devices of one app. Takes what `tailscale.mesh.Mesh` takes, over a Device of this kind.

    Handlers, and what an `Inbox` asks, run in threads.
    """

    def __enter__(self) -> Self:
        async def judge(accept: Callable[[Offer], Any], offer: Offer) -> bool:
            shown_offer = replace(offer, sender=self._known(offer.sender))
            return bool(await trio.to_thread.run_sync(accept, shown_offer, abandon_on_cancel=True))

        self._ask_elsewhere(judge)
        self._thread.submit(self._enter).wait()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(DeviceClosed):
            self._thread.submit(self._leave).wait()

    def _known(self, peer: TrioMeshPeer) -> MeshPeer:
        return MeshPeer(peer, self._thread)

    def peers(self) -> dict[str, MeshPeer]:
        """The members right now, by full name."""
        job = self._thread.submit(as_work(lambda: dict(self._inside().peers)))
        return {name: self._known(peer) for name, peer in (job.wait()).items()}

    def peer(self, who: str | Node, *, timeout: float | None = None) -> MeshPeer:
        """A member, once it is one. Raises `NotInMesh` after `timeout` seconds."""
        return self._known(self._thread.submit(lambda: self._inside().peer(who, timeout=timeout)).wait())

    def send(
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
        self._thread.submit(lambda: self._inside().send(bare(to), namespace, data, **options)).wait()

    def broadcast(self, namespace: str, data: object, *, timeout: float = 5.0) -> BroadcastReport:
        """`send` to every member that is online, at once. The report names `MeshPeer`s of this kind."""
        job = self._thread.submit(lambda: self._inside().broadcast(namespace, data, timeout=timeout))
        return shown_report(job.wait(), self._known)

    def request(
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
        return job.wait()

    def serve(
        self,
        namespace: str,
        handler: Callable[[Heard[MeshPeer, T]], object],
        *,
        type: type[T] = Any,  # type: ignore[assignment]
        limit: int = 64,
    ) -> None:
        """Answer requests until the mesh is left, `limit` at once. What the handler returns is the answer."""

        async def answer(question: Message[Any]) -> object:
            return await trio.to_thread.run_sync(handler, shown(question, self._known), abandon_on_cancel=True)

        job = self._thread.submit(lambda: self._inside().serve(namespace, answer, type=type, limit=limit))
        with contextlib.suppress(DeviceClosed):
            job.wait()

    def statistics(self) -> MeshStatistics:
        """Members, messages, files and drops so far."""
        return self._thread.submit(as_work(lambda: self._inside().statistics())).wait()

    def subscribe(
        self,
        namespace: str,
        type: type[T] = Any,  # type: ignore[assignment]
        *,
        limit: int = 256,
        overflow: Literal["wait", "drop"] = "wait",
    ) -> Stream[Heard[MeshPeer, T] | Lagged]:
        """The messages of a namespace from every member: `with`, then `for`."""
        inbox = self._inside().subscribe(namespace, type, limit=limit, overflow=overflow)
        return Stream(self._thread, lambda: inbox, lambda message: shown(message, self._known))

    def store(self, name: str, type: type[T] = dict) -> Store[T]:  # type: ignore[assignment]
        """A value of each device under one name: `with`."""
        return Store(self._inside().store(name, type), self._thread)

    def events(self) -> Stream[Any]:
        """What happens from now on: `for event in mesh.events()`."""
        return Stream(self._thread, self._inside().events, lambda event: shown_event(event, self._known))

    def push(self, to: str | MeshPeer, *paths: str | os.PathLike[str], into: str = "", resume: bool = True) -> Transfer:
        """Send files and folders to a member's `Inbox`: `wait` for it, or `with` it to see how far it is."""
        return Transfer(begun(self._inside, "push", to, *paths, into=into, resume=resume), self._thread)

    def pull(self, source: str | MeshPeer, path: str, into: str | os.PathLike[str], *, resume: bool = True) -> Transfer:
        """Fetch a file or folder that a member shares."""
        return Transfer(begun(self._inside, "pull", source, path, into, resume=resume), self._thread)


class Stream(StreamFace[T]):
    """What comes out of the loop one by one."""

    def __enter__(self) -> Self:
        stream = self._made.wait()
        self._thread.submit(entering(stream)).wait()
        return self

    def __exit__(self, *_: object) -> None:
        stream = self._made.wait()
        with contextlib.suppress(DeviceClosed):
            self._thread.submit(leaving(stream)).wait()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        stream = self._made.wait()
        try:
            return self._show(self._thread.submit(lambda: next_of(stream)).wait())
        except DeviceClosed:
            raise StopIteration from None


class Store(StoreFace[T]):
    """A value of each device of the mesh, under one name."""

    def __enter__(self) -> Self:
        self._thread.submit(entering(self._store)).wait()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(DeviceClosed):
            self._thread.submit(leaving(self._store)).wait()

    def set(self, value: T) -> None:
        """Replace our value."""
        self._thread.submit(as_work(lambda: self._store.set(value))).wait()

    def clear(self) -> None:
        """Take our value back, everywhere."""
        self._thread.submit(self._store.clear).wait()

    def of(self, peer: MeshPeer) -> Slice[T] | None:
        """A peer's slice, if it has told one."""
        return self._thread.submit(self._slice_of(peer)).wait()

    def items(self) -> list[tuple[MeshPeer, Slice[T]]]:
        """Every peer that has told one, with its slice."""
        found = self._thread.submit(self._all()).wait()
        return [(MeshPeer(peer, self._thread), slice) for peer, slice in found]

    def changes(self) -> Stream[Changed[MeshPeer, T]]:
        """What changes from now on."""
        wrap = partial(MeshPeer, thread=self._thread)
        return Stream(self._thread, self._store.changes, lambda change: shown_event(change, wrap))
