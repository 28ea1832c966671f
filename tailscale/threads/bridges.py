"""What carries connections between the tailnet and real sockets: dials, listeners, forwarded ports."""

from __future__ import annotations

import contextlib
import logging
import weakref
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypedDict, TypeVar

import trio

from tailscale._faces import ClosedByLeaving
from tailscale.carry import Splice
from tailscale.errors import DeviceClosed, TailscaleError
from tailscale.funnel.streams import FunnelStream
from tailscale.local_ports import Exposure as TrioExposure
from tailscale.local_ports import Forward as TrioForward
from tailscale.local_ports import PortStatistics, Target, open_exposure, open_forward
from tailscale.sockets.early import EarlyStream
from tailscale.sockets.local import LocalStream
from tailscale.threads.loopback import FarEnd, TailnetListener, TailnetSocket, connect_back, loopback_pair

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Unpack

    from tailscale.funnel.listening import FunnelListener, Tls
    from tailscale.sockets.tcp import TcpListener, TcpStream
    from tailscale.threads.loop_thread import LoopThread


log = logging.getLogger("tailscale")

B = TypeVar("B", TrioForward, TrioExposure)
FUNNEL_BACKLOG = SERVICE_BACKLOG = 128


class ServiceListener(Protocol):
    """What `Device.listen_service` gives."""

    @property
    def port(self) -> int:
        """The service's."""

    async def accept(self) -> TcpStream:
        """The next connection."""

    async def __aenter__(self) -> object:
        """Nothing is to be done."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> object:
        """Closed, and withdrawn."""


class Publishing(TypedDict):
    """How a port is published; what `listen_funnel` was told."""

    name: str | None
    tls: Tls | None
    funnel_only: bool
    relays: Sequence[str]


async def connect(thread: LoopThread, dial: Callable[[], Awaitable[TcpStream]]) -> TailnetSocket:
    """Dial, and hand out the near end of a pumped connection."""
    return as_socket(thread, await dial())


def as_socket(thread: LoopThread, stream: TcpStream) -> TailnetSocket:
    """The near end of a pumped connection, whoever made it. Inside the loop."""
    try:
        ours, theirs = loopback_pair()
    except BaseException:
        stream.abort()
        raise
    thread.join_streams(Splice(LocalStream(ours), stream))
    return TailnetSocket(theirs, far_end(thread, stream))


def far_end(thread: LoopThread, stream: TcpStream | EarlyStream | FunnelStream) -> FarEnd:
    """What a socket that stands for `stream` shows and sets. Inside the loop."""

    def keep_alive(idle: float | None, interval: float, count: int) -> None:
        thread.call_soon(stream.set_keepalive, idle, interval, count)

    return FarEnd(stream.local_address, stream.remote_address, keep_alive)


async def listen(thread: LoopThread, port: int, host: str | None, backlog: int, announce: str = "") -> TailnetListener:
    """A listening socket that the tailnet's connections arrive at."""
    listener = await thread.device.listen(port, host=host, backlog=backlog, announce=announce)
    return _door(thread, listener, host, backlog)


async def listen_service(thread: LoopThread, service: str, port: int) -> TailnetListener:
    """A listening socket for a service that this device hosts."""
    return _door(thread, await thread.device.listen_service(service, port), None, SERVICE_BACKLOG)


async def listen_funnel(thread: LoopThread, port: int, **how: Unpack[Publishing]) -> TailnetListener:
    """A listening socket for what relays bring from the internet, without its TLS."""
    return _door(thread, await thread.device.listen_funnel(port, **how), None, FUNNEL_BACKLOG)


def _door(
    thread: LoopThread, listener: TcpListener | FunnelListener | ServiceListener, host: str | None, backlog: int
) -> TailnetListener:
    device = thread.device
    feeding = trio.CancelScope()

    def stop_feeding() -> None:
        with contextlib.suppress(TailscaleError):  # the loop has ended: so has the feeding
            thread.call_soon(feeding.cancel)

    door = TailnetListener(listener.port, host or device.ipv4 or device.ipv6 or "", backlog, stop_feeding)
    weakref.finalize(door, stop_feeding).atexit = False  # one that the program loses is closed by Python
    lost_or_held = weakref.ref(door)

    async def run() -> None:
        with feeding:
            await feed(thread, listener, lost_or_held)

    thread.spawn(run)
    return door


async def feed(
    thread: LoopThread,
    listener: TcpListener | FunnelListener | ServiceListener,
    lost_or_held: weakref.ref[TailnetListener],
    arrived: Iterable[TcpStream | EarlyStream] = (),
) -> None:
    """Bring connections to a door, those first that have `arrived`, as long as the program has it."""
    try:
        async with listener:
            for early in arrived:
                door = lost_or_held()
                if door is None or not await _hand_over(thread, early, door):
                    return
                del door
            while True:
                stream = await listener.accept()
                door = lost_or_held()
                if door is None:
                    stream.abort()
                    return
                if not await _hand_over(thread, stream, door):
                    return
                del door
    except trio.ClosedResourceError:
        return  # the device is closing
    finally:
        door = lost_or_held()
        if door is not None:
            door.end()


async def _hand_over(thread: LoopThread, stream: TcpStream | EarlyStream | FunnelStream, door: TailnetListener) -> bool:
    """Whether the program still listens."""
    try:
        # Where a relay says that somebody is, is nobody's address: whoever asks `caller_at` is told so.
        owner = None if isinstance(stream, FunnelStream) and stream.is_funnel else thread.device
        near = await connect_back(door, far_end(thread, stream), owner)
        thread.join_streams(Splice(near, stream))
    except OSError as error:
        stream.abort()
        if door.fileno() < 0:
            return False
        log.warning("a connection to port %s could not be handed over: %s", door.port, error)
    except BaseException:
        stream.abort()
        raise
    return True


class _FacePort(ClosedByLeaving, Generic[B]):
    """Stands outside the loop for a port inside it. Close it, or use it in a `with` or `async with` block."""

    def __init__(self, inside: B, thread: LoopThread) -> None:
        self._inside: B = inside
        self._thread = thread

    def close(self) -> None:
        """No new connections; those that are open go on."""
        with contextlib.suppress(TailscaleError):  # the loop has ended: so has the port
            self._thread.call_soon(self._inside.close)

    def statistics(self) -> PortStatistics:
        """Connections and bytes so far."""
        return self._inside.statistics()


class Forward(_FacePort[TrioForward]):
    """A local port, or Unix socket, that leads to a port of the tailnet. Close it, or use it in a `with` block.

    Closing it lets no new connections in; those that are open go on.
    """

    @property
    def address(self) -> tuple[str, int] | str:
        """`("127.0.0.1", port)`, or the path."""
        return self._inside.address

    @property
    def host(self) -> str:
        """`127.0.0.1`, or the path."""
        return self._inside.host

    @property
    def port(self) -> int:
        """The local port; 0 for a Unix socket."""
        return self._inside.port


class Exposure(_FacePort[TrioExposure]):
    """A port of the tailnet that leads to a server of this machine. Close it, or use it in a `with` block.

    Closing it lets no new connections in; those that are open go on.
    """

    @property
    def port(self) -> int:
        """On the tailnet."""
        return self._inside.port


class _ServerInside(Protocol):
    """The same in the loop."""

    host: str
    port: int

    def shut(self) -> None: ...


class NameServer(ClosedByLeaving):
    """A DNS server on this machine, UDP and TCP on one port. Close it, or use it in a `with` block."""

    def __init__(self, inside: _ServerInside, thread: LoopThread) -> None:
        self._inside, self._thread = inside, thread
        self.host, self.port = inside.host, inside.port

    def close(self) -> None:
        """No more questions; those under way are dropped."""
        with contextlib.suppress(DeviceClosed):  # the device's end was its own
            self._thread.call_soon(self._inside.shut)


async def name_server(thread: LoopThread, host: str, port: int) -> NameServer:
    """`Device.name_server`."""
    return NameServer(await thread.device.name_server(host, port), thread)


async def forward(
    thread: LoopThread, host: str, port: int, local_port: int, path: str | os.PathLike[str] | None
) -> Forward:
    """`Device.forward`, with its connections among those that the thread lets finish."""
    dial = partial(thread.device.tcp_connect, host, port)
    inside = await open_forward(dial, local_port, path, thread.spawn, thread.run_splice)
    return Forward(inside, thread)


async def expose(thread: LoopThread, port: int, host: str, local_port: int, proxy_protocol: int = 0) -> Exposure:
    """`Device.expose`, with its connections among those that the thread lets finish."""
    target = Target(host, local_port, thread.device, proxy_protocol)
    inside = await open_exposure(thread.device.listen(port), target, thread.spawn, thread.run_splice)
    return Exposure(inside, thread)
