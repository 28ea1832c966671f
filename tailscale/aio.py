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
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar

from tailscale._faces import AsyncWithOnly, wrong_face
from tailscale._lazy import lazily, names_of
from tailscale.device import DEFAULT_BACKLOG
from tailscale.device import Device as TrioDevice
from tailscale.errors import DeviceClosed, TailscaleError
from tailscale.local_ports import Opening
from tailscale.threads import bridges
from tailscale.threads.accepting import accepting, discard
from tailscale.threads.awaiting import DEFAULT_STREAM_LIMIT, awaited, events_of, finished, in_loop, outcome, settled
from tailscale.threads.bridges import Exposure, Forward, NameServer
from tailscale.threads.crossing import Crossing
from tailscale.threads.face import CaptureFace, DeviceFace, DeviceOptions, as_work, leave_now, takes_options_of
from tailscale.threads.loop_thread import LoopThread
from tailscale.threads.loopback import TailnetListener, TailnetSocket
from tailscale.threads.servers import TailnetServer
from tailscale.threads.transports import TailnetEnd, loop_for_streams, streams_of
from tailscale.threads.transports import connected as connected_by
from tailscale.threads.udp_aio import UdpSocket

if TYPE_CHECKING:
    import os
    from ssl import SSLContext
    from types import TracebackType
    from typing import Unpack

    from tailscale.capturing import Capture as TrioCapture
    from tailscale.capturing import Sink
    from tailscale.events import Event
    from tailscale.funnel.listening import Tls
    from tailscale.lock import LockStatus
    from tailscale.mesh.aio_face import Mesh as Mesh
    from tailscale.nodes import Node
    from tailscale.proxy.aio_face import Exits as Exits
    from tailscale.proxy.aio_face import serve as serve
    from tailscale.status import ExitNode
    from tailscale.threads.taking import TakenDials as TakenDials
    from tailscale.threads.tls_listeners import TlsStreams
    from tailscale.tun_options import TunOptions

P = ParamSpec("P")
T = TypeVar("T")
X = TypeVar("X")
Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


class Device(DeviceFace, AsyncWithOnly):
    """A node of the tailnet, for asyncio. Takes what `tailscale.Device` takes; callables run in this event loop.

    Belongs to the event loop it was entered in. A Device is used once. What is not told here does what it does in
    `tailscale.Device`: `resolve`, `whois`, `ping`, `status` (awaited here), `set`, `login`, `logout`, `netcheck`,
    `peers` and so on.
    """

    @takes_options_of(TrioDevice.__init__)
    def __init__(self, hostname: str | None = None, **options: Unpack[DeviceOptions]) -> None:
        self._options = options
        thread = LoopThread(lambda: TrioDevice(hostname, **options), options.get("handle_sigterm", True))
        super().__init__(hostname, options, thread)
        self._end_of_loop = _leaving_with_the_loop(self._thread)
        self._servers: set[asyncio.Server] = set()

    # Lifecycle

    async def open(self) -> Self:
        """Join the tailnet; returns when the device is usable. It leaves at `close`, or when the event loop ends.

        One that is open already stays as it is. In a notebook the device of the same name or state that an earlier cell
        has opened leaves first.
        """
        if not _is_asyncio():
            raise wrong_face("tailscale.aio.Device was entered outside of asyncio")
        if self._is_open_already():
            return self
        for other in self._forerunners():
            await asyncio.to_thread(leave_now, other)
        self._bring_callables_home()
        self._start()
        try:
            await outcome(self._thread.ready)
            await anext(self._end_of_loop)
        except TailscaleError as error:
            await self._leave()
            raise error.with_traceback(None) from error.__cause__
        except BaseException:
            await self._leave()
            raise
        return self

    async def close(self) -> None:
        """Leave the tailnet. What made the device fail meanwhile, if anything did, is raised here."""
        self._let_go()
        await self._leave()
        await self._end_of_loop.aclose()
        if self._thread.ended.done():
            self._thread.ended.result()

    def _let_go(self) -> None:
        for server in self._servers:
            server.close()

    async def __aenter__(self) -> Self:
        return self if self.is_open else await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _leave(self) -> None:
        """Even while being cancelled: the thread is never left behind."""
        self._thread.stop()
        cancelled: asyncio.CancelledError | None = None
        while self._thread.has_started and not self._thread.ended.done():
            try:
                await settled(self._thread.ended)
            except asyncio.CancelledError as error:
                cancelled = error
        self._thread.join()
        if cancelled is not None:
            raise cancelled

    def _bring_callables_home(self) -> None:
        """The program's own functions among the options (`auth_key`, `on_flow` and so on) run in its event loop."""
        loop = asyncio.get_running_loop()
        key, token = self._options.get("auth_key"), self._options.get("id_token")
        if callable(key):
            self._options["auth_key"] = in_loop(loop, key)
        if callable(token):
            self._options["id_token"] = in_loop(loop, token)
        notify = self._options.get("on_login_url")
        if notify is not None:
            self._options["on_login_url"] = in_loop(loop, notify)
        on_flow = self._options.get("on_flow")
        if on_flow is not None:
            from tailscale.threads.taken_flows import on_flow_in_loop  # few take flows

            self._options["on_flow"] = on_flow_in_loop(loop, self._thread, on_flow)

    # How work gets into the loop thread

    async def _await(self, work: Callable[[], Awaitable[T]], discard: Callable[[T], object] | None = None) -> T:
        return await finished(self._thread.submit(work, discard))

    @property
    def lock(self) -> LockStatus:
        """The tailnet's lock as this device knows it; `sign` vouches for a node, and is awaited."""
        return self._inside().lock.waiting_by(self._await)

    async def exit_nodes(self) -> tuple[ExitNode, ...]:
        """The peers that offer to be exit nodes and whose routes are approved, by name: what `via=` may name."""
        return await self._await(as_work(lambda: self._inside().exit_nodes))

    # Connections

    async def tcp_connect(
        self,
        host: str | tuple[str, int],
        port: int | None = None,
        *,
        timeout: float | None = None,
        local_port: int = 0,
        via: str | Node | None = None,
        dns: Literal["exit", "tailnet"] = "exit",
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection across the tailnet, as asyncio's streams. `open_connection` takes `ssl` as well."""
        crossing = await self._dial(host, port, timeout=timeout, local_port=local_port, via=via, dns=dns)
        return await streams_of(crossing, DEFAULT_STREAM_LIMIT)

    async def connect_anywhere(
        self, host: str, port: int, *, timeout: float | None = None, via: str | Node | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """`tcp_connect` for what the tailnet knows or routes (all, with an exit node), else the machine's own way."""
        is_tailnet, destination, via = await self.way_by(host, via)
        if is_tailnet:
            return await self.open_connection(destination, port, timeout=timeout, via=via)
        async with asyncio.timeout(timeout):
            return await asyncio.open_connection(destination, port, limit=DEFAULT_STREAM_LIMIT)

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
        crossing = await self._dial(host, port, timeout=timeout, via=via)
        name = server_hostname or (host if ssl else None)
        return await streams_of(crossing, limit, ssl, server_hostname=name)

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
        """As `loop.create_connection`, across the tailnet. `options` are those of TLS."""
        crossing = await self._dial(host, port, timeout=timeout, via=via)
        if options.get("ssl"):
            options.setdefault("server_hostname", host)
        try:
            protocol = factory()
        except BaseException:
            crossing.abort()
            raise
        return await connected_by(crossing, protocol, **options), protocol

    async def _dial(self, host: str | tuple[str, int], port: int | None, **how: Any) -> Crossing:
        dial = functools.partial(self._inside().tcp_connect, host, port, **how)

        async def cross() -> Crossing:
            return Crossing.take(await dial(), self._thread)

        return await self._await(cross, Crossing.abort)

    async def socket(
        self,
        host: str | tuple[str, int],
        port: int | None = None,
        *,
        timeout: float | None = None,
        local_port: int = 0,
        via: str | Node | None = None,
        dns: Literal["exit", "tailnet"] = "exit",
    ) -> socket.socket:
        """A connected, non-blocking socket, for libraries that take one."""
        dial = functools.partial(
            self._inside().tcp_connect, host, port, timeout=timeout, local_port=local_port, via=via, dns=dns
        )
        sock = await self._await(lambda: bridges.connect(self._thread, dial), TailnetSocket.close)
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
        loop = loop_for_streams()

        def factory() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=limit, loop=loop), connected, loop=loop)

        return await self.create_server(factory, port, host=host, backlog=backlog, announce=announce, ssl=ssl)

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
        taking, where = await self._await(lambda: accepting(self._thread, port, host, backlog, announce), discard)
        server = TailnetServer(asyncio.get_running_loop(), taking, TailnetEnd(where), factory, ssl)
        self._servers.add(server)
        server.begin()
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

    async def listen(
        self, port: int, *, host: str | None = None, backlog: int = DEFAULT_BACKLOG, announce: str = ""
    ) -> TailnetListener:
        """`forward_listen` by the name it has in `tailscale.Device`. `loop.sock_accept` takes it; so do servers."""
        return await self.forward_listen(port, host=host, backlog=backlog, announce=announce)

    async def listen_service(self, service: str, port: int) -> TailnetListener:
        """A listening socket for a TCP port of a Service that this device hosts, to be used as `listen`'s."""
        sock = await self._await(lambda: bridges.listen_service(self._thread, service, port), TailnetListener.close)
        sock.setblocking(False)
        return sock

    async def listen_funnel(
        self,
        port: int = 443,
        *,
        name: str | None = None,
        tls: Tls | None = None,
        funnel_only: bool = False,
        relays: Sequence[str] = (),
    ) -> TailnetListener:
        """A listening socket for what Funnel relays bring from the internet, without its TLS, to be used as `listen`'s.

        The address of a connection is what the relay says, and nobody's identity: `caller_at` knows nobody there. A
        function given as `tls` is called in the device's thread.
        """
        how = bridges.Publishing(name=name, tls=tls, funnel_only=funnel_only, relays=relays)
        sock = await self._await(lambda: bridges.listen_funnel(self._thread, port, **how), TailnetListener.close)
        sock.setblocking(False)
        return sock

    certificate = awaited(TrioDevice.certificate)
    tls_context = awaited(TrioDevice.tls_context)

    async def listen_tls(
        self,
        port: int = 443,
        *,
        host: str | None = None,
        tls: SSLContext | None = None,
        backlog: int = DEFAULT_BACKLOG,
        announce: str = "",
    ) -> TlsStreams:
        """Accept TLS by this device's certificate, unless `tls` is another context: `async for reader, writer in ...`.

        With a callback: `start_server(connected, 443, ssl=await device.tls_context())`.
        """
        from tailscale.threads.tls_listeners import TlsStreams

        context = tls if tls is not None else await self.tls_context()
        streams = TlsStreams(context)
        streams.serve(
            await self.start_server(streams.greet, port, host=host, backlog=backlog, announce=announce, ssl=context)
        )
        return streams

    def forward(
        self, host: str, port: int, *, local_port: int = 0, path: str | os.PathLike[str] | None = None
    ) -> Opening[Forward]:
        """Let libraries that dial by themselves reach `host`: over loopback, or a private Unix socket.

        `async with device.forward("db", 5432) as way:`, or `await` it and close it later.
        """
        forwarding = self._await(lambda: bridges.forward(self._thread, host, port, local_port, path), Forward.close)
        return Opening(forwarding)

    def expose(
        self, port: int, host: str = "127.0.0.1", local_port: int | None = None, *, proxy_protocol: int = 0
    ) -> Opening[Exposure]:
        """Let the tailnet reach a server of this machine under `port`. To be used as `forward` is.

        `proxy_protocol` 1 or 2 tells it each caller's address first; a server in this process may ask `caller_at`.
        """
        target = port if local_port is None else local_port
        return Opening(
            self._await(lambda: bridges.expose(self._thread, port, host, target, proxy_protocol), Exposure.close)
        )

    def name_server(self, host: str = "127.0.0.1", port: int = 0) -> Opening[NameServer]:
        """Be a DNS server on an address of this machine, UDP and TCP. To be used as `forward` is."""
        return Opening(self._await(lambda: bridges.name_server(self._thread, host, port), NameServer.close))

    async def udp(self, port: int = 0, *, host: str | None = None, via: str | Node | None = None) -> UdpSocket:
        """A UDP socket on the tailnet."""
        return UdpSocket(await self._await(lambda: self._inside().udp(port, host=host, via=via)), self._thread)

    async def tun_up(self, options: TunOptions | None = None) -> None:
        """Give the kernel's own sockets the tailnet, by `tailscale.tun(...)`. TunFailed says what to set."""
        await self._await(lambda: self._inside().tun_up(options))

    async def tun_down(self) -> None:
        """Take the TUN device away again; this machine's routes, rules and addresses are as they were before."""
        await self._await(lambda: self._inside().tun_down())

    async def tun_ended(self) -> None:
        """Wait until there is no TUN device. TunFailed where nobody asked for its end: somebody removed it."""
        await self._await(lambda: self._inside().tun_ended())

    def take_dials(self) -> TakenDials:
        """Carry what this program dials in the tailnet, by whatever library: `with device.take_dials():`.

        What `connect_anywhere` sends over the tailnet is reached by this device wherever the program uses Python's
        sockets, blocking or in asyncio; everything else goes as before, and so does all of it after `close()` or the
        block. One device at a time takes a program's dials; datagrams to the tailnet are refused.
        """
        from tailscale.threads.taking import TakenDials  # few do

        return TakenDials(self)

    # Names and identities

    way_to = awaited(TrioDevice.way_to)
    way_by = awaited(TrioDevice.way_by)
    resolve = awaited(TrioDevice.resolve)
    resolve_all = awaited(TrioDevice.resolve_all)
    dns_query = awaited(TrioDevice.dns_query)
    whois = awaited(TrioDevice.whois)

    # Diagnosis

    ping = awaited(TrioDevice.ping)
    bench = awaited(TrioDevice.bench)
    explain = awaited(TrioDevice.explain)
    netcheck = awaited(TrioDevice.netcheck)
    status = awaited(as_work(TrioDevice.status))
    flows = awaited(as_work(TrioDevice.flows))
    peer_status = awaited(as_work(TrioDevice.peer_status))
    paths = awaited(as_work(TrioDevice.paths))

    def capture(
        self,
        file: str | os.PathLike[str] | Sink,
        peer: str | Node | None = None,
        *,
        snaplen: int = 65_535,
        max_packets: int | None = None,
        max_bytes: int | None = None,
    ) -> Opening[Capture]:
        """Write the packets inside the tunnel to a pcapng file: `async with device.capture("x.pcapng") as capture:`."""

        async def begin() -> TrioCapture:
            opening = self._inside().capture(file, peer, snaplen=snaplen, max_packets=max_packets, max_bytes=max_bytes)
            return await opening

        async def open_face() -> Capture:
            return Capture(await self._await(begin), self._thread)

        return Opening(open_face())

    def events(self) -> AsyncIterator[Event]:
        """What happens from now on, as it happens; ends when the device is closed."""
        return events_of(self._thread, self._thread.submit(as_work(self._inside().events)))

    # Changing our mind

    set = awaited(TrioDevice.set)
    set_uplink = awaited(TrioDevice.set_uplink)
    login = awaited(TrioDevice.login)
    logout = awaited(TrioDevice.logout)
    id_token = awaited(TrioDevice.id_token)


class Capture(CaptureFace):
    """`tailscale.Capture` for asyncio: the same verbs, awaited in this event loop."""

    async def wait(self) -> None:
        """Until a limit is reached, or nothing more can be written."""
        await finished(self._thread.submit(self._capture.wait))

    async def aclose(self) -> None:
        """No more packets; returns when the file is whole."""
        with contextlib.suppress(DeviceClosed):  # the device's end was the capture's
            await finished(self._thread.submit(self._capture.aclose))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _is_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _leaving_with_the_loop(thread: LoopThread) -> AsyncGenerator[None, None]:
    """asyncio closes the generators it has begun before a loop ends: `asyncio.run` does, as do uvloop's and anyio's."""
    try:
        yield
    finally:
        if thread.is_left_open:
            thread.stop()
            await settled(thread.ended)
            thread.join()
            message = "a tailscale.aio.Device was left open until its event loop ended: use `async with`, or `close()`"
            warnings.warn(message, ResourceWarning, stacklevel=1)


# What stands on a Device: whoever needs none of it loads nothing of it.
__getattr__ = lazily(
    __name__,
    names_of(
        {
            "tailscale.mesh.aio_face": ("Mesh",),
            "tailscale.proxy.aio_face": ("Exits", "serve"),
            "tailscale.taildrop.aio_face": ("taildrop",),
            "tailscale.threads.taking": ("TakenDials",),
        }
    ),
)

__all__ = [
    *("Capture", "Device", "Exits", "Exposure", "Forward", "Mesh", "TailnetListener", "TailnetSocket", "TakenDials"),
    *("UdpSocket", "serve", "taildrop"),
]
