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
from collections.abc import Awaitable, Callable, Iterator
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from tailscale.device import DEFAULT_BACKLOG
from tailscale.device import Device as TrioDevice
from tailscale.errors import DeviceClosed
from tailscale.sockets.udp import UdpSocket as TrioUdpSocket
from tailscale.threads import bridges
from tailscale.threads.bridges import Exposure, Forward
from tailscale.threads.face import DeviceFace, DeviceOptions, Face, UdpFace, as_work, asked
from tailscale.threads.loop_thread import LoopThread
from tailscale.threads.loopback import TailnetListener, TailnetSocket

if TYPE_CHECKING:
    import os
    from types import TracebackType
    from typing import Unpack

    from tailscale.events import Event, EventStream
    from tailscale.mesh.sync_face import Mesh as Mesh
    from tailscale.nodes import Node
    from tailscale.sockets.socket_device import Address
    from tailscale.status import ExitNode

P = ParamSpec("P")
T = TypeVar("T")
X = TypeVar("X")
_open_devices: weakref.WeakSet[Device] = weakref.WeakSet()


def _blocking(verb: Callable[Concatenate[X, P], Awaitable[T]]) -> Callable[Concatenate[Face[X], P], T]:
    """The same verb for this face: done in the loop, and waited for."""

    @wraps(verb)
    def call(face: Face[X], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return asked(face, verb, *args, **kwargs).wait()

    call.__doc__ = (verb.__doc__ or "").partition("```")[0].rstrip()  # the example behind it awaits
    return call


class Device(DeviceFace):
    """A node of the tailnet, for programs without an event loop. Takes what `tailscale.Device` takes.

    Use it in a `with` block, or call `open()` and `close()`. A Device is used once; it may be shared by threads.
    What is not told here does what it does in `tailscale.Device`: `resolve`, `whois`, `ping`, `status`, `set`, `login`,
    `logout`, `netcheck`, `peers` and so on.
    """

    def __init__(self, hostname: str | None = None, **options: Unpack[DeviceOptions]) -> None:
        self._thread = LoopThread(partial(TrioDevice, hostname, **options), options.get("handle_sigterm", True))

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
        return self if self.is_open else self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # How work gets into the loop

    def _await(self, work: Callable[[], Awaitable[T]], discard: Callable[[T], object] | None = None) -> T:
        return self._thread.submit(work, discard).wait()

    @property
    def exit_nodes(self) -> tuple[ExitNode, ...]:
        """The peers that offer to be exit nodes and whose routes are approved, by name: what `via=` may name."""
        return self._await(as_work(lambda: self._inside().exit_nodes))

    # Connections

    def connect(
        self,
        host: str | tuple[str, int],
        port: int | None = None,
        *,
        timeout: float | None = None,
        via: str | Node | None = None,
    ) -> socket.socket:
        """A connected socket, as `socket.create_connection` makes them: `timeout` also becomes the socket's own."""
        sock = self._await(lambda: bridges.connect(self._thread, host, port, timeout, via), TailnetSocket.close)
        sock.settimeout(timeout)
        return sock

    def connect_anywhere(
        self, host: str, port: int, *, timeout: float | None = None, via: str | Node | None = None
    ) -> socket.socket:
        """`connect` for what the tailnet knows or routes (all, with an exit node), else the machine's own way."""
        is_tailnet, destination, via = self.way_by(host, via)
        if is_tailnet:
            return self.connect(destination, port, timeout=timeout, via=via)
        return socket.create_connection((destination, port), timeout)

    def listen(
        self, port: int, *, host: str | None = None, backlog: int = DEFAULT_BACKLOG, announce: str = ""
    ) -> TailnetListener:
        """A listening socket: `accept()` returns `(socket, (address, port))`, iterating gives one after the other.

        `whois(address)` says who that is.
        """
        return self._await(lambda: bridges.listen(self._thread, port, host, backlog, announce), TailnetListener.close)

    def forward(
        self, host: str, port: int, *, local_port: int = 0, path: str | os.PathLike[str] | None = None
    ) -> Forward:
        """Let programs and libraries that dial by themselves reach `host`: over loopback, or a private Unix socket."""
        return self._await(lambda: bridges.forward(self._thread, host, port, local_port, path), Forward.close)

    def expose(self, port: int, host: str = "127.0.0.1", local_port: int | None = None) -> Exposure:
        """Let the tailnet reach a server of this machine under `port`."""
        target = port if local_port is None else local_port
        return self._await(lambda: bridges.expose(self._thread, port, host, target), Exposure.close)

    def udp(self, port: int = 0, *, host: str | None = None, via: str | Node | None = None) -> UdpSocket:
        """A UDP socket on the tailnet."""
        return UdpSocket(self._await(lambda: self._inside().udp(port, host=host, via=via)), self._thread)

    # Names and identities

    way_to = _blocking(TrioDevice.way_to)
    way_by = _blocking(TrioDevice.way_by)
    resolve = _blocking(TrioDevice.resolve)
    resolve_all = _blocking(TrioDevice.resolve_all)
    whois = _blocking(TrioDevice.whois)

    # Diagnosis

    ping = _blocking(TrioDevice.ping)
    netcheck = _blocking(TrioDevice.netcheck)
    status = _blocking(as_work(TrioDevice.status))

    def events(self) -> Iterator[Event]:
        """What happens from now on, as it happens; ends when the device is closed."""
        return self._events_of(self._await(as_work(self._inside().events)))

    def _events_of(self, stream: EventStream) -> Iterator[Event]:
        while True:
            try:
                yield self._await(stream.__anext__)
            except (StopAsyncIteration, DeviceClosed):
                return

    # Changing our mind

    set = _blocking(TrioDevice.set)
    login = _blocking(TrioDevice.login)
    logout = _blocking(TrioDevice.logout)


class UdpSocket(UdpFace):
    """`tailscale.UdpSocket` for plain threads: the same verbs, blocking."""

    connect = _blocking(TrioUdpSocket.connect)
    send_to = _blocking(TrioUdpSocket.send_to)
    send = _blocking(TrioUdpSocket.send)

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

    def close(self) -> None:
        if not self._thread.ended.done():
            self._thread.submit(lambda: self._udp.aclose()).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def __getattr__(name: str) -> Any:
    """`Mesh` is imported when it is first used."""
    if name != "Mesh":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tailscale.mesh.sync_face import Mesh

    globals()[name] = Mesh
    return Mesh


@atexit.register
def _close_all() -> None:
    """A program that ends says goodbye for the devices it forgot."""
    for device in tuple(_open_devices):
        device._leave()


__all__ = ["Device", "Exposure", "Forward", "Mesh", "TailnetListener", "TailnetSocket", "UdpSocket"]
