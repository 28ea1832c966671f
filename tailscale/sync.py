"""The Device for plain threads: blocking calls and real sockets.

```python
with tailscale.sync.Device("worker") as device:
    sock = device.connect("db", 5432)
```

Works in scripts, in threads, in notebooks and beside a running asyncio loop. Everything happens in one thread of its
own; this module only hands work to it and waits.
"""

from __future__ import annotations

import atexit
import socket
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from tailscale import bridges
from tailscale.bridges import Exposure, Forward
from tailscale.device import DEFAULT_BACKLOG
from tailscale.device import Device as TrioDevice
from tailscale.errors import DeviceClosed
from tailscale.loop_thread import DeviceOptions, LoopThread
from tailscale.pump import TailnetListener, TailnetSocket

if TYPE_CHECKING:
    import os
    from types import TracebackType
    from typing import Unpack

    from tailscale.events import Event, EventStream
    from tailscale.nodes import Node, Peers
    from tailscale.sockets import Address
    from tailscale.sockets import UdpSocket as TrioUdpSocket
    from tailscale.status import HealthWarning, Identity, NetcheckReport, PingResult, Status

T = TypeVar("T")
_open_devices: weakref.WeakSet[Device] = weakref.WeakSet()


class Device:
    """A node of the tailnet, for programs without an event loop. Takes what `tailscale.Device` takes.

    Use it in a `with` block, or call `open()` and `close()`. A Device is used once; it may be shared by threads.
    """

    def __init__(self, hostname: str | None = None, **options: Unpack[DeviceOptions]) -> None:
        self._thread = LoopThread(partial(TrioDevice, hostname, **options))

    # Lifecycle

    def open(self) -> Self:
        """Join the tailnet; returns when the device is usable."""
        self._thread.start()
        _open_devices.add(self)
        try:
            self._thread.ready.result()
        except BaseException:
            self._leave()
            raise
        return self

    def close(self) -> None:
        """Leave the tailnet. What made the device fail meanwhile, if anything did, is raised here."""
        self._leave()
        if self._thread.ended.done():
            self._thread.ended.result()

    def _leave(self) -> None:
        _open_devices.discard(self)
        self._thread.stop()
        self._thread.join()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # How work gets into the loop

    def _await(self, work: Callable[[], Awaitable[T]], discard: Callable[[T], object] | None = None) -> T:
        return self._thread.submit(work, discard).wait()

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

    def connect(
        self, host: str | tuple[str, int], port: int | None = None, *, timeout: float | None = None
    ) -> socket.socket:
        """A connected socket, as `socket.create_connection` makes them: `timeout` also becomes the socket's own."""
        sock = self._await(lambda: bridges.connect(self._thread, host, port, timeout), TailnetSocket.close)
        sock.settimeout(timeout)
        return sock

    def connect_anywhere(self, host: str, port: int, *, timeout: float | None = None) -> socket.socket:
        """`connect` for what the tailnet knows or routes (all, with an exit node), else the machine's own way."""
        is_tailnet, destination = self.way_to(host)
        if is_tailnet:
            return self.connect(destination, port, timeout=timeout)
        return socket.create_connection((destination, port), timeout)

    def listen(self, port: int, *, host: str | None = None, backlog: int = DEFAULT_BACKLOG) -> TailnetListener:
        """A listening socket: `accept()` returns `(socket, (address, port))`, iterating gives one after the other."""
        return self._await(lambda: bridges.listen(self._thread, port, host, backlog), TailnetListener.close)

    def forward(
        self, host: str, port: int, *, local_port: int = 0, path: str | os.PathLike[str] | None = None
    ) -> Forward:
        """Let programs and libraries that dial by themselves reach `host`: over loopback, or a private Unix socket."""
        return self._await(lambda: bridges.forward(self._thread, host, port, local_port, path), Forward.close)

    def expose(self, port: int, host: str = "127.0.0.1", local_port: int | None = None) -> Exposure:
        """Let the tailnet reach a server of this machine under `port`."""
        target = port if local_port is None else local_port
        return self._await(lambda: bridges.expose(self._thread, port, host, target), Exposure.close)

    def udp(self, port: int = 0, *, host: str | None = None) -> UdpSocket:
        """A UDP socket on the tailnet."""
        return UdpSocket(self._await(lambda: self._thread.device.udp(port, host=host)), self._thread)

    # Names and identities

    def way_to(self, host: str) -> tuple[bool, str]:
        return self._await(lambda: self._thread.device.way_to(host))

    def resolve(self, name: str) -> str:
        return self._await(lambda: self._thread.device.resolve(name))

    def resolve_all(self, name: str, type: str = "A") -> list[str]:
        return self._await(lambda: self._thread.device.resolve_all(name, type))

    def whois(self, address: str | tuple[str, int]) -> Identity:
        """Who is behind `ip` or `ip:port`, for example behind what `accept` returned."""
        return self._await(lambda: self._thread.device.whois(address))

    # Diagnosis

    def ping(self, host: str, kind: str = "disco", size: int = 0, *, timeout: float = 5.0) -> PingResult:
        return self._await(lambda: self._thread.device.ping(host, kind, size, timeout=timeout))

    def status(self) -> Status:
        """Everything the device knows about itself, as plain values."""

        async def answer() -> Status:
            return self._thread.device.status()

        return self._await(answer)

    @property
    def health(self) -> tuple[HealthWarning, ...]:
        """What is wrong right now; empty when all is well."""
        return self._thread.device.health

    def netcheck(self) -> NetcheckReport:
        return self._await(lambda: self._thread.device.netcheck())

    def events(self) -> Iterator[Event]:
        """What happens from now on, as it happens; ends when the device is closed."""

        async def subscribe() -> EventStream:
            return self._thread.device.events()

        stream = self._await(subscribe)
        return self._events_of(stream)

    def _events_of(self, stream: EventStream) -> Iterator[Event]:
        while True:
            try:
                yield self._await(stream.__anext__)
            except (StopAsyncIteration, DeviceClosed):
                return

    # Changing our mind

    def set(
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
        self._await(
            lambda: self._thread.device.set(
                hostname=hostname,
                tags=tags,
                accept_routes=accept_routes,
                exit_node=exit_node,
                advertise_routes=advertise_routes,
                shields_up=shields_up,
            )
        )

    def login(self) -> None:
        self._await(lambda: self._thread.device.login())

    def logout(self) -> None:
        self._await(lambda: self._thread.device.logout())

    def __repr__(self) -> str:
        return f"<tailscale.sync.Device {'closed' if self._thread.ended.done() else 'open'}>"


class UdpSocket:
    """Whole datagrams to and from the tailnet."""

    def __init__(self, udp: TrioUdpSocket, thread: LoopThread) -> None:
        self._udp = udp
        self._thread = thread

    def connect(self, address: Address) -> None:
        """Fix the other end: `send` goes there and `receive` hears only from there."""
        self._thread.submit(lambda: self._udp.connect(address)).wait()

    def send_to(self, data: bytes, address: Address) -> None:
        self._thread.submit(lambda: self._udp.send_to(data, address)).wait()

    def send(self, data: bytes) -> None:
        self._thread.submit(lambda: self._udp.send(data)).wait()

    def receive_from(self, timeout: float | None = None) -> tuple[bytes, Address]:
        """The next datagram and who sent it; TimeoutError after `timeout` seconds."""
        job = self._thread.submit(lambda: self._udp.receive_from())
        try:
            return job.future.result(timeout)
        except BaseException:
            job.give_up()
            raise

    def receive(self, timeout: float | None = None) -> bytes:
        return self.receive_from(timeout)[0]

    @property
    def local_address(self) -> Address:
        return self._udp.local_address

    def close(self) -> None:
        if not self._thread.ended.done():
            self._thread.submit(lambda: self._udp.aclose()).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@atexit.register
def _close_all() -> None:
    """A program that ends says goodbye for the devices it forgot."""
    for device in tuple(_open_devices):
        device._leave()


__all__ = ["Device", "Exposure", "Forward", "TailnetListener", "TailnetSocket", "UdpSocket"]
