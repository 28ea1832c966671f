"""What the asyncio and the threaded face of a mesh share: where it lives, and everything that needs no waiting.

The mesh itself lives in the loop thread of its Device's face. Each face waits in its own way for the same work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import trio

from tailscale.mesh.mesh import Mesh as TrioMesh
from tailscale.mesh.peers import MeshPeer as TrioMeshPeer
from tailscale.mesh.stores import Change
from tailscale.mesh.subscriptions import Message
from tailscale.mesh.transfers import Inbox
from tailscale.threads.face import Face, as_work

if TYPE_CHECKING:
    from datetime import datetime

    from tailscale.mesh.broadcasting import BroadcastReport
    from tailscale.mesh.stores import Slice
    from tailscale.mesh.stores import Store as TrioStore
    from tailscale.mesh.transfers import Offer
    from tailscale.mesh.transfers import Transfer as TrioTransfer
    from tailscale.nodes import Node
    from tailscale.threads.face import DeviceFace
    from tailscale.threads.loop_thread import LoopThread

T = TypeVar("T")
P = TypeVar("P", bound="PeerFace")
T_co = TypeVar("T_co", covariant=True)
P_co = TypeVar("P_co", bound="PeerFace", covariant=True)


class Heard(Protocol[P_co, T_co]):
    """A `Message` as a face shows it: its sender is a peer of that face."""

    @property
    def sender(self) -> P_co: ...

    @property
    def namespace(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def data(self) -> T_co: ...

    @property
    def sent_at(self) -> datetime | None: ...


class Changed(Protocol[P_co, T]):
    """A `Change` of a store as a face shows it."""

    @property
    def peer(self) -> P_co: ...

    @property
    def slice(self) -> Slice[T] | None: ...


class MeshFace(Face[TrioMesh]):
    """Stands outside the loop for a mesh inside it."""

    def __init__(self, device: DeviceFace, app: str, **options: Any) -> None:
        self._thread: LoopThread = device._thread
        self._app = app
        self._options = options
        self._mesh: TrioMesh | None = None
        self._leaving: trio.Event | None = None
        self._ended: trio.Event | None = None

    def _inside(self) -> TrioMesh:
        if self._mesh is None:
            raise RuntimeError("this Mesh has not been entered: use it inside `with`")
        return self._mesh

    async def _enter(self) -> None:
        """Inside the loop: live in a task of the loop's, until `_leave`."""
        if self._mesh is not None:
            raise RuntimeError("a Mesh can be entered once: make a new one")
        mesh = self._mesh = TrioMesh(self._thread.device, self._app, **self._options)
        self._leaving, self._ended, entered = trio.Event(), trio.Event(), trio.Event()
        problem: list[BaseException] = []

        async def live(leaving: trio.Event, ended: trio.Event) -> None:
            try:
                async with mesh:
                    entered.set()
                    await leaving.wait()
            except Exception as error:
                problem.append(error)
            finally:
                entered.set()
                ended.set()

        self._thread.spawn(live, self._leaving, self._ended)
        await entered.wait()
        if problem:
            raise problem[0]

    def _ask_elsewhere(self, judge: Callable[[Callable[[Offer], Any], Offer], Awaitable[Any]]) -> None:
        """What the program's own `accept` says is asked where its other code runs."""
        inbox = self._options.get("receive")
        if inbox is not None and callable(accept := inbox.accept):
            self._options["receive"] = judged_by(inbox, lambda offer: judge(accept, offer))

    async def _leave(self) -> None:
        if self._leaving is not None and self._ended is not None:
            self._leaving.set()
            await self._ended.wait()

    @property
    def app(self) -> str:
        """The app's name."""
        return self._app

    @property
    def id(self) -> str:
        """Of this device in this mesh."""
        return self._inside().id

    @property
    def name(self) -> str:
        """What others see this device as."""
        return self._inside().name


class PeerFace(Face[TrioMeshPeer]):
    """One member of the mesh, from outside the loop: what `tailscale.mesh.MeshPeer` says of it."""

    def __init__(self, peer: TrioMeshPeer, thread: LoopThread) -> None:
        self._peer = peer
        self._thread = thread

    def _inside(self) -> TrioMeshPeer:
        return self._peer

    @property
    def id(self) -> str:
        """The mesh id it gave in its hello."""
        return self._peer.id

    @property
    def name(self) -> str:
        """What the device calls itself."""
        return self._peer.name

    @property
    def node(self) -> Node:
        """The node it runs on."""
        return self._peer.node

    @property
    def generation(self) -> int:
        """Counts the times this device joined."""
        return self._peer.generation

    @property
    def online(self) -> bool:
        """Whether it can be expected to answer."""
        return self._peer.online

    @property
    def connected(self) -> bool:
        """Whether a session stands."""
        return self._peer.connected

    @property
    def features(self) -> frozenset[str]:
        """What both ends speak."""
        return self._peer.features

    def __eq__(self, other: object) -> bool:
        return self._peer == other._peer if isinstance(other, PeerFace) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._peer)

    def __repr__(self) -> str:
        return repr(self._peer)

    def _repr_html_(self) -> str:
        return self._peer._repr_html_()


class StreamFace(Generic[T]):
    """What comes out of the loop one by one."""

    def __init__(self, thread: LoopThread, make: Callable[[], Any], show: Callable[[Any], T]) -> None:
        self._thread = thread
        self._made = thread.submit(as_work(make))
        self._show = show


class StoreFace(Face["TrioStore[T]"], Generic[T]):
    """A value of each device of the mesh, under one name."""

    def __init__(self, store: TrioStore[T], thread: LoopThread) -> None:
        self._store = store
        self._thread = thread

    def _inside(self) -> TrioStore[T]:
        return self._store

    @property
    def mine(self) -> T:
        """Our own value."""
        return self._store.mine

    def _slice_of(self, peer: PeerFace) -> Callable[[], Awaitable[Slice[T] | None]]:
        """The work of looking at a peer's slice."""
        return as_work(lambda: self._store.of(peer._inside()))

    def _all(self) -> Callable[[], Awaitable[list[tuple[TrioMeshPeer, Slice[T]]]]]:
        """The work of looking at everybody's."""
        return as_work(lambda: list(self._store.items()))


def bare(to: Any) -> str | TrioMeshPeer:
    """A peer as the mesh inside knows it, or its name."""
    return to._inside() if isinstance(to, PeerFace) else to


def shown(message: Any, wrap: Callable[[TrioMeshPeer], P]) -> Any:
    """A message whose sender stands outside the loop; anything else as it is."""
    sender: Any = wrap(message.sender) if isinstance(message, Message) else None
    return replace(message, sender=sender) if sender is not None else message


def shown_event(event: Any, wrap: Callable[[TrioMeshPeer], P]) -> Any:
    """An event whose peer stands outside the loop."""
    peer = getattr(event, "peer", None)
    if not isinstance(peer, TrioMeshPeer):
        return event
    told: Any = wrap(peer)
    return Change(told, event.slice) if isinstance(event, Change) else replace(event, peer=told)


def shown_report(report: BroadcastReport, wrap: Callable[[TrioMeshPeer], P]) -> BroadcastReport:
    """What became of a broadcast, with peers outside the loop."""
    delivered: Any = tuple(wrap(peer) for peer in report.delivered)
    failed: Any = {wrap(peer): problem for peer, problem in report.failed.items()}
    return report._replace(delivered=delivered, failed=failed)


def begun(mesh: Callable[[], TrioMesh], verb: str, to: Any, *what: Any, **options: Any) -> Callable[[], TrioTransfer]:
    """What makes a transfer inside the loop: `push` or `pull`."""

    def make() -> TrioTransfer:
        transfer: TrioTransfer = getattr(mesh(), verb)(bare(to), *what, **options)
        return transfer

    return make


def judged_by(inbox: Inbox, judge: Callable[[Offer], Any]) -> Inbox:
    """The same inbox, asked elsewhere than in the loop."""
    return Inbox(inbox.folder, accept=judge, largest=inbox.largest, exists=inbox.exists)
