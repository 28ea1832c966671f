"""The mesh of one app: who is a member, and the verbs of whoever uses it.

Owns the members' lines and every task of them; each verb is a line or two over those. Members are found in the netmap,
where they announce themselves: nobody is asked who is not one.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import trio

from tailscale.errors import DeviceClosed, TailscaleError
from tailscale.events import EventStream, Lagged, PathChanged, PeerChanged, PeerDown, PeerUp
from tailscale.mesh.errors import AmbiguousPeer, NotInMesh, PeerGone
from tailscale.mesh.events import PeerJoined, PeerLeft, PeerRenamed, Readers, TransferDone
from tailscale.mesh.lines import Line
from tailscale.mesh.peers import Members, MeshPeer
from tailscale.mesh.ports import PORTS, Port
from tailscale.mesh.shared import Shared
from tailscale.mesh.subscriptions import Router, Subscription
from ts_mesh.envelope import is_namespace
from ts_mesh.hello import APP, Identity
from ts_mesh.limits import MeshLimits

if TYPE_CHECKING:
    from types import TracebackType

    from tailscale.device import Device
    from tailscale.mesh.file_seam import FileService
    from tailscale.mesh.files import Files
    from tailscale.mesh.transfers import Inbox, Transfer
    from tailscale.nodes import Node

T = TypeVar("T")
log = logging.getLogger("tailscale.mesh")
DEFAULT_PORT = 9417
HASHES = "hashes.sqlite"  # in the directory of the state
INTRODUCTION = 5.0  # for the first session with a peer that somebody looks up
GENERATIONS_KEPT = 4096
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Mesh:
    """The devices of one app, alive inside `async with`.

    ```python no-run: two devices
    async with tailscale.Device("laptop") as device, Mesh(device, "notes") as notes:
        bob = await notes.peer("bob", timeout=5)
        await bob.send("chat", {"text": "hello"})
    ```

    - `app`: the app's name, 1 to 32 of a-z, 0-9, dot, underscore and dash; only devices of one app meet.
    - `port`: where members listen; several meshes of one device share it.
    - `name`: what others see this device as; its host name unless given.
    - `state`: a directory that keeps the mesh id and what files were hashed; None: both are new every time.
    - `receive`: an `Inbox` for files that members push; None: nothing arrives.
    - `share`: folders or files that members may pull, by the names they ask for; None: nothing.
    - `limits`: sizes, counts and patience.
    """

    def __init__(
        self,
        device: Device,
        app: str,
        *,
        port: int = DEFAULT_PORT,
        name: str | None = None,
        state: str | os.PathLike[str] | None = None,
        receive: Inbox | None = None,
        share: Mapping[str, Path] | None = None,
        limits: MeshLimits | None = None,
    ) -> None:
        if not APP.fullmatch(app):
            raise ValueError(f"{app!a} is no name for an app: 1 to 32 of a-z, 0-9, dot, underscore and dash")
        self.device = device
        self.app = app
        self.limits = limits or MeshLimits()
        self.drops: Counter[str] = Counter()
        self.id = new_mesh_id()
        self._wanted_port = port
        self._name = name
        self._readers = Readers(self.drops)
        self._router = Router(self.drops)
        self._lines: dict[str, Line] = {}
        self._generations: dict[str, int] = {}
        self._changed = trio.Event()
        self._held = ExitStack()
        self._manager: Any = None
        self._nursery: trio.Nursery | None = None
        self._shared: Shared | None = None
        self._port: Port | None = None
        self._files: FileService | None = None
        self._receive, self._share, self._state = (
            receive,
            share,
            Path(state).expanduser() if state is not None else None,
        )
        self._is_closed = False

    # Lifecycle

    async def __aenter__(self) -> Self:
        if self._is_closed or self._nursery is not None:
            raise RuntimeError("a Mesh can be entered once: make a new one")
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        try:
            await self._open()
        except BaseException as error:
            await self._close(error)
            raise
        return self

    async def _open(self) -> None:
        device = self.device
        events = device.events()
        if self._files is None:
            files = self._make_files()
            self._held.callback(files.close)
            self._files = files
        self._shared = Shared(
            device=device,
            app=self.app,
            port=self._wanted_port,
            identity=self._identity,
            epoch=secrets.token_hex(8),
            limits=self.limits,
            router=self._router,
            readers=self._readers,
            drops=self.drops,
            start=self.start,
            files=self._files,
        )
        self._router.lines = self._lines.values()
        self._port = await PORTS.enter(device, self._wanted_port, self)
        self._held.callback(PORTS.leave, device, self._port, self)
        self._held.enter_context(device.announce(self._shared.word, self._port.number))
        self._look_at_all()
        self.start(self._port.accept, self)
        self.start(self._follow, events)

    def _make_files(self) -> Files:
        from tailscale.mesh.file_ways import MeshWays
        from tailscale.mesh.files import Files

        return Files(
            MeshWays(self.line_of, self.start),
            inbox=self._receive,
            share=self._share,
            cache=self._state / HASHES if self._state is not None else None,
            limits=self.limits,
            drops=self.drops,
            on_done=lambda peer, name, problem: self._readers.put(TransferDone(peer, name, problem)),
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return await self._close(error)

    async def _close(self, error: BaseException | None) -> bool:
        assert self._nursery is not None
        self._is_closed = True
        crashed = self._nursery.cancel_scope.cancel_called
        self._held.close()
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as closing:
                for line in self._lines.values():
                    closing.start_soon(line.close)
        self._nursery.cancel_scope.cancel()
        self._readers.close()
        try:
            absorbed = await self._manager.__aexit__(
                *((type(error), error, error.__traceback__) if crashed and error is not None else (None, None, None))
            )
        except BaseExceptionGroup as group:
            if error is not None and group.split(trio.Cancelled)[1] is None:
                return False  # whoever cancels us hears of it anyway; what the block raised must not be lost
            raise
        return bool(absorbed) and crashed

    def start(self, task: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """A task that lives no longer than the mesh, and ends nothing but itself."""
        assert self._nursery is not None
        self._nursery.start_soon(self._contained, task, *arguments)

    async def _contained(self, task: Callable[..., Awaitable[object]], *arguments: object) -> None:
        try:
            await task(*arguments)
        except Exception:
            self.drops["mesh.failed_task"] += 1
            log.exception("a task of the mesh failed; the rest of it goes on")

    def _ready(self) -> Shared:
        if self._is_closed:
            raise DeviceClosed("this Mesh has been closed: make a new one")
        if self._shared is None:
            raise RuntimeError("this Mesh has not been entered: use it inside `async with`")
        return self._shared

    def _identity(self) -> Identity:
        node = self.device.node
        return Identity(self.app, self.id, self.name, platform.system().lower(), node.stable_id)

    # Who is there

    @property
    def name(self) -> str:
        """What others see this device as."""
        return self._name if self._name is not None else self.device.node.hostname

    @property
    def peers(self) -> Members:
        """The members right now, without us: by name, address, mesh id, or the first four or more signs of one.

        ```python no-run: inside a mesh
        for peer in notes.peers.values():
            print(peer.name, peer.online, peer.connected)
        ```
        """
        self._ready()
        return Members(line.peer for line in self._lines.values() if not line.is_hidden)

    async def peer(self, who: str | Node, *, timeout: float | None = None) -> MeshPeer:
        """A member, once it is one. A session with it is opened meanwhile, so that `id` and `features` are known.

        Raises `NotInMesh` when it has not appeared within `timeout` seconds, None waits for ever; `AmbiguousPeer`
        where several are meant.

        ```python no-run: inside a mesh
        bob = await notes.peer("bob", timeout=5)
        ```
        """
        self._ready()
        name = who if isinstance(who, str) else who.stable_id
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            await trio.lowlevel.checkpoint()
            while (found := self._find(name)) is None:
                await self._changed.wait()
            line = self._line_of(found)
            if line is not None and not line.is_connected and found.online:
                with trio.move_on_after(INTRODUCTION):
                    line.want()
                    await line.settled.wait()
            return line.peer if line is not None else found
        found = self._find(name)
        if found is None:
            raise self._unknown(name)
        return found

    def _find(self, who: str) -> MeshPeer | None:
        found = self.peers.meant(who)
        if len(found) > 1:
            raise AmbiguousPeer(who, found)
        return found[0] if found else None

    def _unknown(self, who: str) -> NotInMesh:
        return NotInMesh(who, self.app, (peer.node.hostname for peer in self.peers.values()))

    def _peer(self, to: str | MeshPeer) -> MeshPeer:
        if isinstance(to, MeshPeer):
            return to
        found = self._find(to)
        if found is None:
            raise self._unknown(to)
        return found

    def _line_of(self, peer: MeshPeer) -> Line | None:
        return self._lines.get(peer.node.stable_id)

    def events(self) -> EventStream:
        """What happens from now on: `PeerJoined`, `PeerLeft`, `PeerRenamed`, `PeerConnected`, `PeerDisconnected`,
        `TransferDone`, and `Lagged` for a reader that was too slow. Ends when the mesh is left.
        """
        self._ready()
        return self._readers.open_stream()

    # Messages

    def subscribe(
        self,
        namespace: str,
        type: type[T] = Any,  # type: ignore[assignment]
        *,
        limit: int = 256,
        overflow: Literal["wait", "drop"] = "wait",
    ) -> Subscription[T]:
        """The messages of a namespace from every member: `async with`, then `async for`.

        `type` is any that msgspec reads: dataclasses, Structs, TypedDicts, builtins; what does not fit is refused to
        its sender. `limit` messages wait here; then their senders wait, or, with `overflow="drop"`, the oldest go and a
        `Lagged` says how many.

        ```python no-run: inside a mesh
        async with notes.subscribe("chat", dict) as inbox:
            async for message in inbox:
                print(message.sender.name, message.data["text"])
        ```
        """
        self._ready()
        _check_namespace(namespace)
        if limit < 1 or overflow not in ("wait", "drop"):
            raise ValueError("limit= is at least 1, and overflow= is 'wait' or 'drop'")
        return Subscription(self._router, namespace, type, limit, overflow)

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
        """Send anything that is JSON, or bytes. Returns when a subscription of the peer's process holds it.

        Messages to one peer in one namespace arrive in order, each exactly once while both processes live, over
        however many connections. With `wait=False` it returns once the message is queued. Raises `NobodyListens`,
        `WrongShape`, `MessageTooLarge`, `PeerGone`; `ConnectionTimedOut` after `timeout` seconds, when it is unknown
        whether it arrived; and what dialling the peer raises.

        ```python no-run: inside a mesh
        await notes.send("bob", "chat", {"text": "hello"}, timeout=5)
        ```
        """
        self._ready()
        _check_namespace(namespace)
        await self._peer(to).send(namespace, data, kind=kind, wait=wait, timeout=timeout)

    # Files

    def push(self, to: str | MeshPeer, *paths: str | os.PathLike[str], into: str = "", resume: bool = True) -> Transfer:
        """Send files and folders to a member's `Inbox`, below `into` there; what broke off before goes on.

        ```python no-run: inside a mesh
        report = await notes.push("bob", "thesis/", "photo.jpg")
        print(report.files, report.bytes_sent, report.bytes_skipped)
        ```
        """
        self._ready()
        return self._peer(to).push(*paths, into=into, resume=resume)

    def pull(self, source: str | MeshPeer, path: str, into: str | os.PathLike[str], *, resume: bool = True) -> Transfer:
        """Fetch a file or folder that a member shares, into a folder here; what broke off before goes on.

        ```python no-run: inside a mesh
        await notes.pull("bob", "docs/thesis", "fetched")
        ```
        """
        self._ready()
        return self._peer(source).pull(path, into, resume=resume)

    # Membership

    async def _follow(self, events: EventStream) -> None:
        async for event in events:
            match event:
                case PeerUp(node=node):
                    self._look_at(node)
                    if (line := self._lines.get(node.stable_id)) is not None:
                        line.hope()
                case PeerChanged(node=node):
                    self._look_at(node)
                case PeerDown(node=node):
                    self._look_away(node)
                case PathChanged(node=node):
                    if (line := self._lines.get(node.stable_id)) is not None:
                        line.suspect()
                case Lagged():
                    self._look_at_all()

    def _look_at_all(self) -> None:
        nodes = {node.stable_id: node for node in self.device.peers.values()}
        for node in nodes.values():
            self._look_at(node)
        for stable_id in [each for each in self._lines if each not in nodes]:
            self._remove(stable_id)

    def _look_at(self, node: Node) -> None:
        """A node that appeared or changed."""
        shared = self._shared
        if shared is None or self._is_closed:
            return
        line = self._lines.get(node.stable_id)
        is_announced = shared.word in node.announced
        if line is None:
            if is_announced:
                self.admit(self.line_to(node))
            return
        before, line.node = line.node, node
        if before.name != node.name and not line.is_hidden:
            self._readers.put(PeerRenamed(line.peer, before.name))
        if before.addresses != node.addresses:
            line.suspect()
        if is_announced:
            self.admit(line)
        elif shared.word in before.announced and not line.is_connected:
            self._remove(node.stable_id)

    def _look_away(self, node: Node) -> None:
        """It went offline, or left the tailnet."""
        line = self._lines.get(node.stable_id)
        if line is None:
            return
        if node.stable_id not in self.device.peers:
            self._remove(node.stable_id)
            return
        self._look_at(node)
        line.suspect()

    def _remove(self, stable_id: str) -> None:
        line = self._lines.pop(stable_id, None)
        if line is not None:
            line.leave()
            if not line.is_hidden:
                self._readers.put(PeerLeft(line.peer))
            self._tell_changed()

    def line_to(self, node: Node) -> Line:
        """The line to a node, which may be no member yet."""
        shared = self._shared
        assert shared is not None
        line = self._lines.get(node.stable_id)
        if line is None:
            generation = self._generations.pop(node.stable_id, 0) + 1
            self._generations[node.stable_id] = generation
            while len(self._generations) > GENERATIONS_KEPT:
                del self._generations[next(iter(self._generations))]
            line = self._lines[node.stable_id] = Line(shared, node, generation)
        return line

    def admit(self, line: Line) -> None:
        """It is a member: it announces the app, or said hello and is who it says."""
        if line.is_hidden:
            line.is_hidden = False
            self._readers.put(PeerJoined(line.peer))
            self._tell_changed()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @property
    def sessions(self) -> int:
        """Open ones."""
        return sum(line.is_connected for line in self._lines.values())

    @property
    def files(self) -> FileService | None:
        """Who sends and takes files here."""
        return self._files

    def carry_files(self, service: FileService) -> None:
        """From now on this service hears the words about files, and answers the requests for them.

        To be called before the mesh is entered: hellos say then that files are understood here.
        """
        self._files = service

    def line_of(self, peer: MeshPeer) -> Line:
        """The line to a member, by which a file service speaks to its twin. Raises PeerGone."""
        line = self._lines.get(peer.node.stable_id)
        if line is None or line.peer != peer:
            raise PeerGone(f"{peer.node.hostname} left the mesh; mesh.peer() finds it when it comes back")
        return line

    def __repr__(self) -> str:
        return f"<Mesh {self.app!r} {'closed' if self._is_closed else f'with {len(self._lines)} peers'}>"


def _check_namespace(namespace: str) -> None:
    if not is_namespace(namespace):
        raise ValueError(
            f"{namespace!a} is no namespace: 1 to 64 of a-z, 0-9, dot, underscore, colon and dash, the first not _"
        )


def new_mesh_id() -> str:
    """In the form of a ULID: when it was made, then chance."""
    number = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return "".join(CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


__all__ = ["Mesh", "TailscaleError"]
