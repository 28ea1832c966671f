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
import inspect
import socket
import ssl as ssl_module
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tailscale import bridges
from tailscale.bridges import Exposure, Forward
from tailscale.device import DEFAULT_BACKLOG
from tailscale.device import Device as TrioDevice
from tailscale.errors import DeviceClosed
from tailscale.loop_thread import DeviceOptions, Job, LoopThread
from tailscale.pump import TailnetListener, TailnetSocket

if TYPE_CHECKING:
    import os
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Unpack

    from tailscale.events import Event, EventStream
    from tailscale.nodes import Node, Peers
    from tailscale.sockets import Address
    from tailscale.sockets import UdpSocket as TrioUdpSocket
    from tailscale.status import HealthWarning, Identity, NetcheckReport, PingResult, Status

T = TypeVar("T")
Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]
DEFAULT_STREAM_LIMIT = 1 << 20  # asyncio's 64 KiB would pause a fast peer all the time


class Device:
    """A node of the tailnet, for asyncio. Takes what `tailscale.Device` takes; callables run in this event loop.

    Belongs to the event loop it was entered in. A Device is used once.
    """

    def __init__(self, hostname: str | None = None, **options: Unpack[DeviceOptions]) -> None:
        self._hostname = hostname
        self._options = options
        self._thread = LoopThread(self._make)
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

    # Who we are and who is there

    @property
    def node(self) -> Node:
        """Ourselves, as the tailnet sees us right now."""
        return self._thread.device.node  # a netmap never changes, so it can be read from any thread

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def hostname(self) -> str:
        return self.node.hostname

    @property
    def ipv4(self) -> str | None:
        return self.node.ipv4

    @property
    def ipv6(self) -> str | None:
        return self.node.ipv6

    @property
    def peers(self) -> Peers:
        """Every other node we are allowed to see, right now."""
        return self._thread.device.peers

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
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As `asyncio.open_connection`, across the tailnet."""
        sock = await self.socket(host, port, timeout=timeout)
        try:
            name = server_hostname or (host if ssl else None)
            return await asyncio.open_connection(sock=sock, limit=limit, ssl=ssl, server_hostname=name)
        except BaseException:
            sock.close()
            raise

    async def create_connection(
        self, factory: Callable[[], Any], host: str, port: int, *, timeout: float | None = None, **options: Any
    ) -> tuple[asyncio.Transport, Any]:
        """As `loop.create_connection`, across the tailnet."""
        sock = await self.socket(host, port, timeout=timeout)
        if options.get("ssl"):
            options.setdefault("server_hostname", host)
        try:
            return await asyncio.get_running_loop().create_connection(factory, sock=sock, **options)
        except BaseException:
            sock.close()
            raise

    async def socket(self, host: str, port: int, *, timeout: float | None = None) -> socket.socket:
        """A connected, non-blocking socket, for libraries that take one."""
        sock = await self._await(lambda: bridges.connect(self._thread, host, port, timeout), TailnetSocket.close)
        sock.setblocking(False)
        return sock

    async def start_server(
        self,
        connected: Connected,
        port: int,
        *,
        host: str | None = None,
        backlog: int = DEFAULT_BACKLOG,
        limit: int = DEFAULT_STREAM_LIMIT,
        ssl: ssl_module.SSLContext | None = None,
    ) -> asyncio.Server:
        """As `asyncio.start_server`, on the tailnet. `get_extra_info("peername")` is the caller's tailnet address."""
        sock = await self.forward_listen(port, host=host, backlog=backlog)
        return self._keep(await asyncio.start_server(connected, sock=sock, limit=limit, ssl=ssl))

    async def create_server(
        self,
        factory: Callable[[], Any],
        port: int,
        *,
        host: str | None = None,
        backlog: int = DEFAULT_BACKLOG,
        ssl: ssl_module.SSLContext | None = None,
    ) -> asyncio.Server:
        """As `loop.create_server`, on the tailnet."""
        sock = await self.forward_listen(port, host=host, backlog=backlog)
        return self._keep(await asyncio.get_running_loop().create_server(factory, sock=sock, ssl=ssl))

    def _keep(self, server: asyncio.Server) -> asyncio.Server:
        self._servers.add(server)
        return server

    async def forward_listen(
        self, port: int, *, host: str | None = None, backlog: int = DEFAULT_BACKLOG
    ) -> TailnetListener:
        """A listening socket for servers that take one: `uvicorn.Server(config).serve(sockets=[sock])`."""
        sock = await self._await(lambda: bridges.listen(self._thread, port, host, backlog), TailnetListener.close)
        sock.setblocking(False)
        return sock

    async def forward(
        self, host: str, port: int, *, local_port: int = 0, path: str | os.PathLike[str] | None = None
    ) -> Forward:
        """Let libraries that dial by themselves reach `host`: over loopback, or a private Unix socket."""
        return await self._await(lambda: bridges.forward(self._thread, host, port, local_port, path), Forward.close)

    async def expose(self, port: int, host: str = "127.0.0.1", local_port: int | None = None) -> Exposure:
        """Let the tailnet reach a server of this machine under `port`."""
        target = port if local_port is None else local_port
        return await self._await(lambda: bridges.expose(self._thread, port, host, target), Exposure.close)

    async def udp(self, port: int = 0, *, host: str | None = None) -> UdpSocket:
        """A UDP socket on the tailnet."""
        return UdpSocket(await self._await(lambda: self._thread.device.udp(port, host=host)), self._thread)

    # Names and identities

    async def way_to(self, host: str) -> tuple[bool, str]:
        return await self._await(lambda: self._thread.device.way_to(host))

    async def resolve(self, name: str) -> str:
        return await self._await(lambda: self._thread.device.resolve(name))

    async def resolve_all(self, name: str, type: str = "A") -> list[str]:
        return await self._await(lambda: self._thread.device.resolve_all(name, type))

    async def whois(self, address: str | tuple[str, int]) -> Identity:
        """Who is behind `ip` or `ip:port`, for example behind `get_extra_info("peername")`."""
        return await self._await(lambda: self._thread.device.whois(address))

    # Diagnosis

    async def ping(self, host: str, kind: str = "disco", size: int = 0, *, timeout: float = 5.0) -> PingResult:
        return await self._await(lambda: self._thread.device.ping(host, kind, size, timeout=timeout))

    async def status(self) -> Status:
        """Everything the device knows about itself, as plain values."""

        async def answer() -> Status:
            return self._thread.device.status()

        return await self._await(answer)

    @property
    def health(self) -> tuple[HealthWarning, ...]:
        """What is wrong right now; empty when all is well."""
        return self._thread.device.health

    async def netcheck(self) -> NetcheckReport:
        return await self._await(lambda: self._thread.device.netcheck())

    async def events(self) -> AsyncIterator[Event]:
        """What happens, as it happens; ends when the device is closed."""

        async def subscribe() -> EventStream:
            return self._thread.device.events()

        stream = await self._await(subscribe)
        while True:
            try:
                yield await self._await(stream.__anext__)
            except (StopAsyncIteration, DeviceClosed):
                return

    # Changing our mind

    async def set(
        self,
        *,
        hostname: str | None = None,
        tags: Sequence[str] | None = None,
        accept_routes: bool | None = None,
        exit_node: str | None = "",
        advertise_routes: Sequence[str] | None = None,
        shields_up: bool | None = None,
    ) -> None:
        """Change preferences while running; what is not named stays. `exit_node=None` stops using one."""
        await self._await(
            lambda: self._thread.device.set(
                hostname=hostname,
                tags=tags,
                accept_routes=accept_routes,
                exit_node=exit_node,
                advertise_routes=advertise_routes,
                shields_up=shields_up,
            )
        )

    async def login(self) -> None:
        await self._await(lambda: self._thread.device.login())

    async def logout(self) -> None:
        await self._await(lambda: self._thread.device.logout())

    def __repr__(self) -> str:
        return f"<tailscale.aio.Device {'closed' if self._thread.ended.done() else 'open'}>"


class UdpSocket:
    """Whole datagrams to and from the tailnet."""

    def __init__(self, udp: TrioUdpSocket, thread: LoopThread) -> None:
        self._udp = udp
        self._thread = thread

    async def connect(self, address: Address) -> None:
        """Fix the other end: `send` goes there and `receive` hears only from there."""
        await _finished(self._thread.submit(lambda: self._udp.connect(address)))

    async def send_to(self, data: bytes, address: Address) -> None:
        await _finished(self._thread.submit(lambda: self._udp.send_to(data, address)))

    async def send(self, data: bytes) -> None:
        await _finished(self._thread.submit(lambda: self._udp.send(data)))

    async def receive_from(self) -> tuple[bytes, Address]:
        """The next datagram and who sent it."""
        return await _finished(self._thread.submit(lambda: self._udp.receive_from()))

    async def receive(self) -> bytes:
        return (await self.receive_from())[0]

    @property
    def local_address(self) -> Address:
        return self._udp.local_address

    async def close(self) -> None:
        with contextlib.suppress(DeviceClosed):
            await _finished(self._thread.submit(lambda: self._udp.aclose()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _settled(future: Future[Any]) -> None:
    """Wait until it is done, however it went."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def tell(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is gone: nobody waits
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(tell)
    await done.wait()


async def _outcome(future: Future[T]) -> T:
    await _settled(future)
    return future.result()


async def _finished(job: Job[T]) -> T:
    """Its result or its error. Cancelling the wait cancels the job."""
    try:
        await _settled(job.future)
    except asyncio.CancelledError:
        job.give_up()
        raise
    return job.future.result()


def _in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., Any]) -> Callable[..., Any]:
    """The program's function, called by the device's thread but run by the program's event loop."""

    async def call(*arguments: Any) -> Any:
        import trio

        async def run() -> Any:
            result = function(*arguments)
            return await result if inspect.isawaitable(result) else result

        answer = asyncio.run_coroutine_threadsafe(run(), loop)
        arrived = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def tell(_: Future[Any]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(arrived.set)

        answer.add_done_callback(tell)
        try:
            await arrived.wait()
        except trio.Cancelled:
            answer.cancel()
            raise
        return answer.result()

    return call


__all__ = ["Device", "Exposure", "Forward", "TailnetListener", "TailnetSocket", "UdpSocket"]
