"""The mesh of one app: who is a member, and the verbs of whoever uses it.

Owns the members' lines and every task of them; each verb is a line or two over those. Members are found in the netmap,
where they announce themselves: nobody is asked who is not one.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import trio

from tailscale.errors import DeviceClosed, DeviceNotReady
from tailscale.event_readers import Readers
from tailscale.events import EventStream
from tailscale.mesh.peers import Members, MeshPeer
from tailscale.mesh.ports import PORTS, Port
from tailscale.mesh.roster import Roster
from tailscale.mesh.saved import Saved
from tailscale.mesh.shared import Shared
from tailscale.mesh.subscriptions import Message, Router, Server, Subscription, decoder_of
from ts_mesh.envelope import is_namespace
from ts_mesh.hello import APP, Identity
from ts_mesh.limits import MeshLimits

if TYPE_CHECKING:
    from types import TracebackType

    from tailscale.device import Device
    from tailscale.mesh.broadcasting import BroadcastReport
    from tailscale.mesh.counting import MeshStatistics
    from tailscale.mesh.file_seam import FileService
    from tailscale.mesh.lines import Line
    from tailscale.mesh.stores import Store
    from tailscale.mesh.transfers import Inbox, Transfer
    from tailscale.nodes import Node
    from tailscale.state_file import NamedStore

T = TypeVar("T")


log = logging.getLogger("tailscale.mesh")
DEFAULT_PORT = 9417
INTRODUCTION = 5.0  # for the first session with a peer that somebody looks up


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
    - `state`: a directory (or a `NamedStore`) that keeps the mesh id, the values of stores, and, if it is a directory,
      what files were hashed; None: memory.
    - `receive`: an `Inbox` for files that members push; None: nothing arrives.
    - `share`: folders or files that members may pull, by the names they ask for; None: nothing.
    - `discover`: which nodes to ask whether they are members, where control does not pass on what members announce;
      None: nobody.
    - `limits`: sizes, counts and patience.
    """

    def __init__(
        self,
        device: Device,
        app: str,
        *,
        port: int = DEFAULT_PORT,
        name: str | None = None,
        state: str | os.PathLike[str] | NamedStore | None = None,
        receive: Inbox | None = None,
        share: Mapping[str, Path] | None = None,
        discover: Callable[[Node], bool] | None = None,
        limits: MeshLimits | None = None,
    ) -> None:
        if not APP.fullmatch(app):
            raise ValueError(f"{app!a} is no name for an app: 1 to 32 of a-z, 0-9, dot, underscore and dash")
        self.device = device
        self.app = app
        self.limits = limits or MeshLimits()
        self.drops: Counter[str] = Counter()
        self._wanted_port = port
        self._name = name
        self._readers = Readers(self.drops)
        self._router = Router(self.drops)
        self._saved = Saved(state, app)
        self._discover = discover
        self._held = ExitStack()
        self._manager: Any = None
        self._nursery: trio.Nursery | None = None
        self._shared: Shared | None = None
        self._roster: Roster | None = None
        self._port: Port | None = None
        self._files: FileService | None = None
        self._receive, self._share = receive, share
        self._folder = Path(state).expanduser() if isinstance(state, str | os.PathLike) else None
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
        self._held.enter_context(self._saved.lock())
        await self._saved.load()
        shared = self._shared = Shared(
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
        if shared.files is None:
            from tailscale.mesh.file_ways import files_of

            shared.files = self._files = files_of(shared, self.line_of, self._receive, self._share, self._folder)
            self._held.callback(self._files.close)
        roster = self._roster = Roster(shared, lambda node: self._saved.recently_asked().get(node.stable_id, False))
        self._router.lines = roster.lines.values()
        self._port = await PORTS.enter(device, self._wanted_port, self)
        self._held.callback(PORTS.leave, device, self._port, self)
        self._held.enter_context(device.announce(shared.word, self._port.number))
        self._held.enter_context(device.include("mesh", self))
        look = self._looking(shared, roster) if self._discover is not None else lambda: None
        roster.look_at_all()
        self.start(self._port.accept, self)
        self.start(roster.follow, events, look)

    def _looking(self, shared: Shared, roster: Roster) -> Callable[[], None]:
        """What is to be done whenever the tailnet changes, where some nodes are to be asked."""
        from tailscale.mesh.probing import Prober

        assert self._discover is not None
        return Prober(shared, roster, self._saved, self._discover).look

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return await self._close(error)

    async def _close(self, error: BaseException | None) -> bool:
        assert self._nursery is not None
        self._is_closed = True
        crashed = self._nursery.cancel_scope.cancel_called
        if self._roster is not None:
            self._roster.close()
            self._router.close()
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as closing:
                    for line in self._roster.lines.values():
                        closing.start_soon(line.close)
        self._held.close()
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

    def _ready(self) -> Roster:
        if self._is_closed:
            raise DeviceClosed("this Mesh has been closed: make a new one")
        if self._roster is None:
            raise DeviceNotReady("this Mesh has not been entered: use it inside `async with`")
        return self._roster

    @property
    def id(self) -> str:
        """Of this device in this mesh, kept over restarts with `state=`; "" before the mesh is entered."""
        return self._saved.id

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
        return self._ready().members

    async def peer(self, who: str | Node, *, timeout: float | None = None) -> MeshPeer:
        """A member, once it is one. A session with it is opened meanwhile, so that `id` and `features` are known.

        Raises `NotInMesh` when it has not appeared within `timeout` seconds, None waits for ever; `AmbiguousPeer`
        where several are meant.

        ```python no-run: inside a mesh
        bob = await notes.peer("bob", timeout=5)
        ```
        """
        roster = self._ready()
        name = who if isinstance(who, str) else who.stable_id
        with trio.move_on_after(math.inf if timeout is None else timeout):
            await trio.lowlevel.checkpoint()
            while (found := roster.find(name)) is None:
                await roster.changed.wait()
                self._ready()
            line = roster.line_of(found)
            if not line.is_connected and found.online:
                with trio.move_on_after(INTRODUCTION):
                    line.want()
                    await line.settled.wait()
            return line.peer
        return roster.named(name)

    def events(self) -> EventStream:
        """What happens from now on: `PeerJoined`, `PeerLeft`, `PeerRenamed`, `PeerConnected`, `PeerDisconnected`,
        `TransferDone`, and `Lagged` for a reader that was too slow. Ends when the mesh is left.
        """
        self._ready()
        return self._readers.open_stream()

    def statistics(self) -> MeshStatistics:
        """Members, messages, files and drops so far; the device's status and metrics have them as well.

        ```python no-run: inside a mesh
        print(notes.statistics().sent, notes.statistics().drops)
        ```
        """
        from tailscale.mesh.counting import count

        roster, shared = self._roster, self._shared
        if roster is None or shared is None:
            raise DeviceNotReady("this Mesh has not been entered: use it inside `async with`")
        lines, former = tuple(roster.lines.values()), roster.former
        return count(len(roster.members), shared.sessions, lines, former, self.drops, self._files)

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
        roster = self._ready()
        _check_namespace(namespace)
        await roster.named(to).send(namespace, data, kind=kind, wait=wait, timeout=timeout)

    async def broadcast(self, namespace: str, data: object, *, timeout: float = 5.0) -> BroadcastReport:
        """`send` to every member that is online, at once: a slow one costs the others nothing.

        ```python no-run: inside a mesh
        report = await notes.broadcast("chat", {"text": "hello, all"})
        print(len(report.delivered), "heard it;", report.failed)
        ```
        """
        self._ready()
        _check_namespace(namespace)
        from tailscale.mesh.broadcasting import broadcast

        online = [peer for peer in self.peers.values() if peer.online]
        return await broadcast(online, namespace, data, timeout)

    async def request(
        self,
        to: str | MeshPeer,
        namespace: str,
        data: object,
        *,
        type: type[T] = Any,  # type: ignore[assignment]
        timeout: float = 30.0,
    ) -> T:
        """Ask, and return the answer of whoever serves this namespace there, as `type`.

        What the handler raises is `RemoteError` here. Given up (cancelled, or late: `ConnectionTimedOut`), the handler
        is cancelled as well.

        ```python no-run: inside a mesh
        print(await notes.request("bob", "weather", {"city": "Oslo"}, timeout=3))
        ```
        """
        roster = self._ready()
        _check_namespace(namespace)
        return await roster.named(to).request(namespace, data, type=type, timeout=timeout)

    async def serve(
        self,
        namespace: str,
        handler: Callable[[Message[T]], Awaitable[object]],
        *,
        type: type[T] = Any,  # type: ignore[assignment]
        limit: int = 64,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer requests in a namespace until cancelled, or the mesh is left: `limit` at once.

        What the handler returns is the answer.

        ```python no-run: inside a mesh
        async def weather(question):
            return {"city": question.data["city"], "sky": "clear"}


        await nursery.start(notes.serve, "weather", weather)
        ```
        """
        self._ready()
        _check_namespace(namespace)
        if limit < 1:
            raise ValueError("limit= is at least 1")
        if namespace in self._router.servers:
            raise ValueError(f"somebody serves {namespace!r} here already")
        server = Server(decoder_of(type))
        from tailscale.mesh.answering import answer_all

        self._router.serve(namespace, server)
        try:
            task_status.started()
            at_once = trio.CapacityLimiter(min(limit, self.limits.handlers))
            await answer_all(server, handler, at_once, self.limits.message)
        finally:
            self._router.stop_serving(namespace)

    def store(self, name: str, type: type[T] = dict) -> Store[T]:  # type: ignore[assignment]
        """A value of each device under one name, `type` being what each of them is: `async with`.

        ```python no-run: inside a mesh
        async with notes.store("presence") as presence:
            presence.mine = {"status": "writing"}
        ```
        """
        from tailscale.mesh.stores import Store
        from ts_mesh.slices import PREFIX

        self._ready()
        _check_namespace(PREFIX + name)
        assert self._shared is not None
        assert self._roster is not None
        return Store(self._shared, self._roster, self._saved, name, type)

    # Files

    def push(self, to: str | MeshPeer, *paths: str | os.PathLike[str], into: str = "", resume: bool = True) -> Transfer:
        """Send files and folders to a member's `Inbox`, below `into` there; what broke off before goes on.

        ```python no-run: inside a mesh
        report = await notes.push("bob", "thesis/", "photo.jpg")
        print(report.files, report.bytes_sent, report.bytes_skipped)
        ```
        """
        return self._ready().named(to).push(*paths, into=into, resume=resume)

    def pull(self, source: str | MeshPeer, path: str, into: str | os.PathLike[str], *, resume: bool = True) -> Transfer:
        """Fetch a file or folder that a member shares, into a folder here; what broke off before goes on.

        ```python no-run: inside a mesh
        await notes.pull("bob", "docs/thesis", "fetched")
        ```
        """
        return self._ready().named(source).pull(path, into, resume=resume)

    # What a port and a file service ask

    @property
    def is_full(self) -> bool:
        """As many sessions as are allowed stand."""
        return self._shared is not None and self._shared.is_full

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
        return self._ready().line_of(peer)

    def line_to(self, node: Node) -> Line:
        """The line to a node that said hello and may be no member yet."""
        return self._ready().line_to(node)

    def admit(self, line: Line) -> None:
        """Who is at its other end is who it says: a member from now on."""
        self._ready().admit(line)

    def dismiss(self, line: Line) -> None:
        """Who said hello is not who it says; a member that it is otherwise stays one."""
        self._ready().drop_hidden(line)

    def __repr__(self) -> str:
        state = "new" if self._roster is None else "closed" if self._is_closed else f"with {len(self.peers)} peers"
        return f"<Mesh {self.app!r} {state}>"


def _check_namespace(namespace: str) -> None:
    if not is_namespace(namespace):
        raise ValueError(
            f"{namespace!a} is no namespace: 1 to 64 of a-z, 0-9, dot, underscore, colon and dash, the first not _"
        )
