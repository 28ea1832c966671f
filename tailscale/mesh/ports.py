"""The mesh port of a device: one listener however many meshes there are, and who is let in to which.

`GET /ws` becomes a session of the mesh whose app the hello names; `/f/{ticket}/{n}` goes to the files of the mesh that
gave the ticket; everything else is 404. Who calls is what the tailnet says: a caller that is no node is refused.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import h11
import trio

from tailscale.errors import NameNotFound, TailscaleError
from tailscale.http1 import framing
from tailscale.http1.asgi import ClientDisconnected
from tailscale.http1.heads import wants_websocket
from tailscale.http1.limits import Limits
from tailscale.http1.requests import next_request
from tailscale.http1.wire import Wire
from tailscale.mesh.file_seam import FileRequest
from tailscale.mesh.parting import TRY_LATER, LinkLost
from ts_mesh import hello as hellos

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.mesh.file_seam import FileService
    from tailscale.mesh.lines import Line
    from tailscale.nodes import Node
    from tailscale.sockets.tcp import TcpListener, TcpStream
    from ts_mesh.limits import MeshLimits

log = logging.getLogger("tailscale.mesh")
FILES_PATH = b"/f/"
HTTP = Limits(head=16 << 10, head_timeout=5.0, idle_timeout=60.0)
GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Host(Protocol):
    """One mesh, as its port sees it."""

    app: str
    limits: MeshLimits
    drops: Counter[str]

    @property
    def files(self) -> FileService | None: ...

    @property
    def is_full(self) -> bool:
        """As many sessions as are allowed stand."""

    def line_to(self, node: Node) -> Line:
        """The line to a node, which may be no member yet."""

    def admit(self, line: Line) -> None:
        """Who is at its other end said hello, and is who it says."""

    def dismiss(self, line: Line) -> None:
        """Who is at its other end is not who it says; a member that it is otherwise stays one."""

    def start(self, task: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """A task that lives no longer than the mesh, and ends nothing but itself."""


class Port:
    """One listener, shared by the meshes of a device."""

    def __init__(self, device: Device, listener: TcpListener) -> None:
        self._device = device
        self._listener = listener
        self._hosts: dict[str, Host] = {}
        self._pending = 0

    @property
    def number(self) -> int:
        return self._listener.port

    async def accept(self, host: Host) -> None:
        """Let callers in, as one of the meshes that share the port; returns when the device is closed."""
        while True:
            try:
                stream = await self._listener.accept()
            except trio.ClosedResourceError:
                return
            limits = host.limits
            if self._pending >= limits.pending:
                host.drops["mesh.too_many_callers"] += 1
                stream.abort()
                continue
            self._pending += 1
            host.start(self._serve, stream)

    async def _serve(self, stream: TcpStream) -> None:
        """One connection until it is a session, or over."""
        is_kept = False
        try:
            try:
                is_kept = await self._read_requests(Wire(stream, HTTP))
            finally:
                self._pending -= 1
        except (ClientDisconnected, LinkLost, TailscaleError, *GONE) as problem:
            log.debug("a caller of the mesh port went away: %s", problem)
        finally:
            if not is_kept:
                stream.shut()

    async def _read_requests(self, wire: Wire) -> bool:
        """Until the connection is over, or somebody else's (True)."""
        caller = await self._caller(wire)
        while (request := await next_request(wire, set())) is not None:
            if caller is None:
                await wire.refuse(403, "who calls from this address is no node of the tailnet")
                break
            target = framing.read_target(request.method, request.target)
            path = target.path if target is not None else b""
            if path == hellos.PATH.encode() and wants_websocket(request):
                return await self._greet(wire, request, caller)
            host = self._host_of(path)
            if host is None:
                await wire.refuse(404, "a mesh has /ws and the files it has tickets for", has_body=True)
                break
            host.start(self._serve_files, host, wire, request, caller)
            return True
        await wire.finish()
        return False

    async def _caller(self, wire: Wire) -> Node | None:
        """The node at the other end; None for a host behind a subnet router, which is nobody's identity."""
        stream: TcpStream = wire.stream  # type: ignore[assignment]
        address = stream.remote_address
        try:
            node = (await self._device.whois(address)).node
        except NameNotFound:
            return None
        return node if address[0] in node.addresses else None

    # Sessions

    async def _greet(self, wire: Wire, request: h11.Request, caller: Node) -> bool:
        """Read first: we say who we are only to whoever is who they say."""
        from wsproto.utilities import RemoteProtocolError

        from tailscale.mesh.links import Link  # with the first session

        stream: TcpStream = wire.stream  # type: ignore[assignment]
        if all(host.is_full for host in self._hosts.values()):
            await wire.refuse(503, "as many sessions as this device allows are open")
            return False
        try:
            link = await Link.accept(stream, request, bytes(wire.http.trailing_data[0]))
        except RemoteProtocolError as problem:
            await wire.refuse(400, str(problem))
            await wire.finish()
            return False
        limits = next(iter(self._hosts.values())).limits
        hello = await link.hear_hello(limits)
        host = self._hosts.get(hello.identity.app_id)
        if host is None:
            await link.refuse(hellos.OTHER_APP, "this device runs no such app")
        line = host.line_to(caller)
        if (objection := line.objection(hello, caller)) is not None:
            host.drops["mesh.wrong_identity"] += objection[0] == hellos.WRONG_IDENTITY
            host.dismiss(line)
            await link.refuse(*objection)
        if host.is_full and not line.is_connected:
            host.dismiss(line)
            await link.refuse(TRY_LATER, "as many sessions as this app allows are open")
        await link.say_hello(line.greeting())
        host.admit(line)
        line.join(link, hello, is_ours=False)
        return True

    # Files

    def _host_of(self, path: bytes) -> Host | None:
        ticket = _ticket_of(path)
        hosts = self._hosts.values()
        return next((host for host in hosts if ticket and host.files is not None and host.files.knows(ticket)), None)

    async def _serve_files(self, host: Host, wire: Wire, request: h11.Request | None, caller: Node) -> None:
        """Requests for files, one after another, of a connection that began with one."""
        stream: TcpStream = wire.stream  # type: ignore[assignment]
        try:
            while request is not None:
                target = framing.read_target(request.method, request.target)
                path = target.path if target is not None else b""
                files, ticket = host.files, _ticket_of(path)
                if files is None or not files.knows(ticket):
                    await wire.refuse(404, "there is no such ticket, or no more")
                    break
                headers = [(bytes(name), bytes(value)) for name, value in request.headers]
                number = path.split(b"/")[3].decode("ascii", "replace")
                await files.answer(FileRequest(caller, request.method.decode(), ticket, number, headers, wire))
                if wire.http.our_state is not h11.DONE or wire.http.their_state is not h11.DONE:
                    break
                wire.http.start_next_cycle()
                request = await next_request(wire, set())
            await wire.finish()
        except (ClientDisconnected, h11.RemoteProtocolError, *GONE) as problem:
            log.debug("a connection for files broke: %s", problem)
        finally:
            stream.shut()

    # Who shares it

    def close(self) -> None:
        self._listener.shut()

    def enter(self, host: Host) -> None:
        if host.app in self._hosts:
            raise ValueError(f"this device has a mesh {host.app!r} on port {self.number} already: use that one")
        self._hosts[host.app] = host

    def leave(self, host: Host) -> bool:
        """True if it was the last."""
        if self._hosts.get(host.app) is host:
            del self._hosts[host.app]
        return not self._hosts


class _Ports:
    """The open mesh ports of every device of this program."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[Device, dict[int, Port]] = WeakKeyDictionary()

    async def enter(self, device: Device, port: int, host: Host) -> Port:
        open_ports = self._of.setdefault(device, {})
        shared = open_ports.get(port) if port else None
        if shared is None:
            shared = Port(device, await device.listen(port))
            open_ports[shared.number] = shared
        shared.enter(host)
        return shared

    def leave(self, device: Device, port: Port, host: Host) -> None:
        if port.leave(host):
            port.close()
            self._of.get(device, {}).pop(port.number, None)


PORTS = _Ports()


def _ticket_of(path: bytes) -> str:
    """Of `/f/{ticket}/{n}`; "" for any other path."""
    parts = path.split(b"/")
    if not path.startswith(FILES_PATH) or len(parts) != 4 or not parts[3]:
        return ""
    return parts[2].decode("ascii", "replace")
