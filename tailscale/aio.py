"""The Device for asyncio programs: the same verbs as awaitables, asyncio's own streams, and real sockets on request.

```python
async with tailscale.aio.Device("worker") as device:
    reader, writer = await device.open_connection("db", 5432)
```

The node itself runs in a thread of its own, so that nothing the program does to its event loop delays a packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl as ssl_module
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from tailscale.device import DEFAULT_BACKLOG
from tailscale.device import Device as TrioDevice
from tailscale.errors import DeviceClosed
from tailscale.local_ports import Opening
from tailscale.sockets.udp import UdpSocket as TrioUdpSocket
from tailscale.threads import bridges
from tailscale.threads.awaiting import finished as _finished
from tailscale.threads.awaiting import in_loop as _in_loop
from tailscale.threads.awaiting import outcome as _outcome
from tailscale.threads.awaiting import settled as _settled
from tailscale.threads.bridges import Exposure, Forward
from tailscale.threads.face import DeviceFace, DeviceOptions, Face, UdpFace, as_work, asked
from tailscale.threads.loop_thread import Job, LoopThread
from tailscale.threads.loopback import TailnetListener, TailnetSocket

if TYPE_CHECKING:
    import os
    from types import TracebackType
    from typing import Unpack

    from tailscale.events import Event, EventStream
    from tailscale.mesh.aio_face import Mesh as Mesh
    from tailscale.nodes import Node
    from tailscale.status import ExitNode

P = ParamSpec("P")
T = TypeVar("T")
X = TypeVar("X")
Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]
DEFAULT_STREAM_LIMIT = 1 << 20  # asyncio's 64 KiB would pause a fast peer all the time


def _awaited(
    verb: Callable[Concatenate[X, P], Awaitable[T]],
) -> Callable[Concatenate[Face[X], P], Coroutine[Any, Any, T]]:
    """The same verb for this face: done in the device's own loop, awaited in this one."""

    @functools.wraps(verb)
    async def call(face: Face[X], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await _finished(asked(face, verb, *args, **kwargs))

    return call


class Device(DeviceFace):
    """A node of the tailnet, for asyncio. Takes what `tailscale.Device` takes; callables run in this event loop.

    Belongs to the event loop it was entered in. A Device is used once. What is not told here does what it does in
    `tailscale.Device`: `resolve`, `whois`, `ping`, `status` (awaited here), `set`, `login`, `logout`, `netcheck`,
    `peers` and so on.
    """

    def __init__(self, hostname: str | None = None, **options: Unpack[DeviceOptions]) -> None:
        self._hostname = hostname
        self._options = options
        self._thread = LoopThread(self._make, options.get("handle_sigterm", True))
        self._servers: set[asyncio.Server] = set()

    def _make(self) -> TrioDevice:
        return TrioDevice(self._hostname, **self._options)

    # Lifecycle

    async def __aenter__(self) -> Self:
        self._bring_callables_home()
        self._thread.start()
        try:
            await _outcome(self._thread.ready)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
        await self._leave()
        self._thread.ended.result()

    async def _leave(self) -> None:
        """Even while being cancelled: the thread is never left behind."""
        self._thread.stop()
        cancelled: asyncio.CancelledError | None = None
        while not self._thread.ended.done():
            try:
                await _settled(self._thread.ended)
            except asyncio.CancelledError as error:
                cancelled = error
        self._thread.join()
        if cancelled is not None:
            raise cancelled

    def _bring_callables_home(self) -> None:
        """`auth_key` and `on_login_url` may be the program's own functions: they run in its event loop."""
        loop = asyncio.get_running_loop()
        key = self._options.get("auth_key")
        if callable(key):
            self._options["auth_key"] = _in_loop(loop, key)
        notify = self._options.get("on_login_url")
        if notify is not None:
            self._options["on_login_url"] = _in_loop(loop, notify)

    # How work gets into the loop thread

    async def _await(self, work: Callable[[], Awaitable[T]], discard: Callable[[T], object] | None = None) -> T:
        return await _finished(self._thread.submit(work, discard))

    async def exit_nodes(self) -> tuple[ExitNode, ...]:
        """The peers that offer to be exit nodes and whose routes are approved, by name: what `via=` may name."""
        return await self._await(as_work(lambda: self._inside().exit_nodes))

    # Connections

    async def open_connection(
        self,
        host: str,
        port: int,
        *,
        timeout: float | None = None,
        limit: int = DEFAULT_STREAM_LIMIT,
        ssl: ssl_module.SSLContext | bool | None = None,
        server_hostname: str | None = None,
        via: str | Node | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As `asyncio.open_connection`, across the tailnet."""
        sock = await self.socket(host, port, timeout=timeout, via=via)
        try:
            name = server_hostname or (host if ssl else None)
            return await asyncio.open_connection(sock=sock, limit=limit, ssl=ssl, server_hostname=name)
        except BaseException:
            sock.close()
            raise

    async def create_connection(
        self,
        factory: Callable[[], Any],
        host: str,
        port: int,
        *,
        timeout: float | None = None,
        via: str | Node | None = None,
        **options: Any,
    ) -> tuple[asyncio.Transport, Any]:
        """As `loop.create_connection`, across the tailnet."""
        sock = await self.socket(host, port, timeout=timeout, via=via)
        if options.get("ssl"):
            options.setdefault("server_hostname", host)
        try:
            return await asyncio.get_running_loop().create_connection(factory, sock=sock, **options)
        except BaseException:
            sock.close()
            raise

    async def socket(
        self, host: str, port: int, *, timeout: float | None = None, via: str | Node | None = None
    ) -> socket.socket:
        """A connected, non-blocking socket, for libraries that take one."""
        sock = await self._await(lambda: bridges.connect(self._thread, host, port, timeout, via), TailnetSocket.close)
        sock.setblocking(False)
        return sock

    async def start_server(
        self,
        connected: Connected,
        port: int,
        *,
        host: str | None = None,
        backlog: int = DEFAULT_BACKLOG,
        announce: str = "",
        limit: int = DEFAULT_STREAM_LIMIT,
        ssl: ssl_module.SSLContext | None = None,
    ) -> asyncio.Server:
        """As `asyncio.start_server`, on the tailnet. `get_extra_info("peername")` is the caller's tailnet address."""
        sock = await self.forward_listen(port, host=host, backlog=backlog, announce=announce)
        return self._keep(await asyncio.start_server(connected, sock=sock, limit=limit, ssl=ssl))

    async def create_server(
        self,
        factory: Callable[[], Any],
        port: int,
        *,
        host: str | None = None,
        backlog: int = DEFAULT_BACKLOG,
        announce: str = "",
        ssl: ssl_module.SSLContext | None = None,
    ) -> asyncio.Server:
        """As `loop.create_server`, on the tailnet."""
        sock = await self.forward_listen(port, host=host, backlog=backlog, announce=announce)
        return self._keep(await asyncio.get_running_loop().create_server(factory, sock=sock, ssl=ssl))

    def _keep(self, server: asyncio.Server) -> asyncio.Server:
        self._servers.add(server)
        return server

    async def forward_listen(
        self, port: int, *, host: str | None = None, backlog: int = DEFAULT_BACKLOG, announce: str = ""
    ) -> TailnetListener:
        """A listening socket for servers that take one: `uvicorn.Server(config).serve(sockets=[sock])`."""
        sock = await self._await(
            lambda: bridges.listen(self._thread, port, host, backlog, announce), TailnetListener.close
        )
        sock.setblocking(False)
        return sock

    def forward(
        self, host: str, port: int, *, local_port: int = 0, path: str | os.PathLike[str] | None = None
    ) -> Opening[Forward]:
        """Let libraries that dial by themselves reach `host`: over loopback, or a private Unix socket.

        `async with device.forward("db", 5432) as way:`, or `await` it and close it later.
        """
        forwarding = self._await(lambda: bridges.forward(self._thread, host, port, local_port, path), Forward.close)
        return Opening(forwarding)

    def expose(self, port: int, host: str = "127.0.0.1", local_port: int | None = None) -> Opening[Exposure]:
        """Let the tailnet reach a server of this machine under `port`. To be used as `forward` is."""
        target = port if local_port is None else local_port
        return Opening(self._await(lambda: bridges.expose(self._thread, port, host, target), Exposure.close))

    async def udp(self, port: int = 0, *, host: str | None = None, via: str | Node | None = None) -> UdpSocket:
        """A UDP socket on the tailnet."""
        return UdpSocket(await self._await(lambda: self._inside().udp(port, host=host, via=via)), self._thread)

    # Names and identities

    way_to = _awaited(TrioDevice.way_to)
    way_by = _awaited(TrioDevice.way_by)
    resolve = _awaited(TrioDevice.resolve)
    resolve_all = _awaited(TrioDevice.resolve_all)
    whois = _awaited(TrioDevice.whois)

    # Diagnosis

    ping = _awaited(TrioDevice.ping)
    netcheck = _awaited(TrioDevice.netcheck)
    status = _awaited(as_work(TrioDevice.status))

    def events(self) -> AsyncIterator[Event]:
        """What happens from now on, as it happens; ends when the device is closed."""
        return self._events_of(self._thread.submit(as_work(self._inside().events)))

    async def _events_of(self, subscribing: Job[EventStream]) -> AsyncIterator[Event]:
        stream = await _finished(subscribing)
        while True:
            try:
                yield await self._await(stream.__anext__)
            except (StopAsyncIteration, DeviceClosed):
                return

    # Changing our mind

    set = _awaited(TrioDevice.set)
    login = _awaited(TrioDevice.login)
    logout = _awaited(TrioDevice.logout)


class UdpSocket(UdpFace):
    """`tailscale.UdpSocket` for asyncio: the same verbs, awaited in this event loop."""

    connect = _awaited(TrioUdpSocket.connect)
    send_to = _awaited(TrioUdpSocket.send_to)
    send = _awaited(TrioUdpSocket.send)
    receive_from = _awaited(TrioUdpSocket.receive_from)
    receive = _awaited(TrioUdpSocket.receive)

    async def close(self) -> None:
        with contextlib.suppress(DeviceClosed):
            await _finished(self._thread.submit(lambda: self._udp.aclose()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def __getattr__(name: str) -> Any:
    """`Mesh` is imported when it is first used."""
    if name != "Mesh":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tailscale.mesh.aio_face import Mesh

    globals()[name] = Mesh
    return Mesh


__all__ = ["Device", "Exposure", "Forward", "Mesh", "TailnetListener", "TailnetSocket", "UdpSocket"]
