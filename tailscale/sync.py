"""The Device for plain threads: blocking calls and real sockets.

```python
with tailscale.sync.Device("worker") as device:
    sock = device.connect("db", 5432)
```

Works in scripts, in threads, in notebooks and beside a running asyncio loop. Everything happens in one thread of its
own; this module only hands work to it and waits.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, ParamSpec, Self, TypeVar

from tailscale._faces import WithOnly, nor_here
from tailscale._lazy import lazily, names_of
from tailscale.device import DEFAULT_BACKLOG
from tailscale.device import Device as TrioDevice
from tailscale.errors import TailscaleError
from tailscale.threads import bridges
from tailscale.threads.accepting import accepting, discard
from tailscale.threads.blocking import blocking, events_of
from tailscale.threads.bridges import Exposure, Forward, NameServer
from tailscale.threads.crossing import Crossing
from tailscale.threads.direct import DirectSocket
from tailscale.threads.direct_listener import DirectListener
from tailscale.threads.face import CaptureFace, DeviceFace, DeviceOptions, as_work, leave_now, takes_options_of
from tailscale.threads.loop_thread import LoopThread
from tailscale.threads.loopback import TailnetListener
from tailscale.threads.loopback import TailnetSocket as TailnetSocket
from tailscale.threads.udp_sync import UdpSocket

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
    from tailscale.mesh.sync_face import Mesh as Mesh
    from tailscale.nodes import Node
    from tailscale.proxy.sync_face import Exits as Exits
    from tailscale.proxy.sync_face import serve as serve
    from tailscale.status import ExitNode
    from tailscale.threads.taking import TakenDials as TakenDials
    from tailscale.threads.tls_listeners import TlsSockets
    from tailscale.tun_options import TunOptions

P = ParamSpec("P")
T = TypeVar("T")
X = TypeVar("X")


class Device(DeviceFace, WithOnly):
    """A node of the tailnet, for programs without an event loop. Takes what `tailscale.Device` takes.

    Use it in a `with` block, or call `open()` and `close()`. A Device is used once; it may be shared by threads.
    What is not told here does what it does in `tailscale.Device`: `resolve`, `whois`, `ping`, `status`, `set`, `login`,
    `logout`, `netcheck`, `peers` and so on.
    """

    @takes_options_of(TrioDevice.__init__)
    def __init__(self, hostname: str | None = None, **options: Unpack[DeviceOptions]) -> None:
        on_flow = options.get("on_flow")
        if on_flow is not None:
            from tailscale.threads.taken_flows import on_flow_in_threads  # few take flows

            options["on_flow"] = on_flow_in_threads(lambda: self._thread, on_flow)
        thread = LoopThread(partial(TrioDevice, hostname, **options), options.get("handle_sigterm", True))
        super().__init__(hostname, options, thread)

    # Lifecycle

    def open(self) -> Self:
        """Join the tailnet; returns when the device is usable. One that is open already stays as it is.

        In a notebook the device of the same name or state that an earlier cell has opened leaves first.
        """
        if self._is_open_already():
            return self
        for other in self._forerunners():
            leave_now(other)
        self._start()
        try:
            self._thread.ready.result()
        except TailscaleError as error:
            self._leave()
            raise error.with_traceback(None) from error.__cause__
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
    def lock(self) -> LockStatus:
        """The tailnet's lock as this device knows it; `sign` vouches for a node, and returns when that is done."""
        return self._inside().lock.waiting_by(self._await)

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
        local_port: int = 0,
        via: str | Node | None = None,
        dns: Literal["exit", "tailnet"] = "exit",
    ) -> socket.socket:
        """A connected socket, as `socket.create_connection` makes them: `timeout` also becomes the socket's own."""
        dial = partial(self._inside().tcp_connect, host, port, timeout=timeout, local_port=local_port, via=via, dns=dns)

        async def cross() -> Crossing:
            return Crossing.take(await dial(), self._thread)

        sock = DirectSocket(self._await(cross, Crossing.abort), self._thread)
        sock.settimeout(timeout)
        return sock

    def tcp_connect(
        self,
        host: str | tuple[str, int],
        port: int | None = None,
        *,
        timeout: float | None = None,
        local_port: int = 0,
        via: str | Node | None = None,
        dns: Literal["exit", "tailnet"] = "exit",
    ) -> socket.socket:
        """`connect` by the name it has in `tailscale.Device`."""
        return self.connect(host, port, timeout=timeout, local_port=local_port, via=via, dns=dns)

    def connect_anywhere(
        self, host: str, port: int, *, timeout: float | None = None, via: str | Node | None = None
    ) -> socket.socket:
        """`connect` for what the tailnet knows or routes (all, with an exit node), else the machine's own way."""
        is_tailnet, destination, via = self.way_by(host, via)
        if is_tailnet:
            return self.connect(destination, port, timeout=timeout, via=via)
        try:
            return socket.create_connection((destination, port), timeout)
        except socket.gaierror as error:
            raise nor_here(host, self.peers) or error from error

    def listen(
        self, port: int, *, host: str | None = None, backlog: int = DEFAULT_BACKLOG, announce: str = ""
    ) -> TailnetListener:
        """A listening socket: `accept()` returns `(socket, (address, port))`, iterating gives one after the other.

        `whois(address)` says who that is.
        """
        taking, where = self._await(lambda: accepting(self._thread, port, host, backlog, announce), discard)
        return DirectListener(self._thread, taking, where, backlog)

    def listen_service(self, service: str, port: int) -> TailnetListener:
        """A listening socket for a TCP port of a Service that this device hosts, to be used as `listen`'s."""
        return self._await(lambda: bridges.listen_service(self._thread, service, port), TailnetListener.close)

    def listen_funnel(
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
        return self._await(lambda: bridges.listen_funnel(self._thread, port, **how), TailnetListener.close)

    certificate = blocking(TrioDevice.certificate)
    tls_context = blocking(TrioDevice.tls_context)

    def listen_tls(
        self,
        port: int = 443,
        *,
        host: str | None = None,
        tls: SSLContext | None = None,
        backlog: int = DEFAULT_BACKLOG,
        announce: str = "",
    ) -> TlsSockets:
        """`listen` with TLS, by this device's certificate unless `tls` is another context."""
        from tailscale.threads.tls_listeners import TlsSockets

        context = tls if tls is not None else self.tls_context()
        return TlsSockets(self.listen(port, host=host, backlog=backlog, announce=announce), context)

    def forward(
        self, host: str, port: int, *, local_port: int = 0, path: str | os.PathLike[str] | None = None
    ) -> Forward:
        """Let programs and libraries that dial by themselves reach `host`: over loopback, or a private Unix socket."""
        return self._await(lambda: bridges.forward(self._thread, host, port, local_port, path), Forward.close)

    def expose(
        self, port: int, host: str = "127.0.0.1", local_port: int | None = None, *, proxy_protocol: int = 0
    ) -> Exposure:
        """Let the tailnet reach a server of this machine under `port`.

        `proxy_protocol` 1 or 2 tells it each caller's address first; a server in this process may ask `caller_at`.
        """
        target = port if local_port is None else local_port
        return self._await(lambda: bridges.expose(self._thread, port, host, target, proxy_protocol), Exposure.close)

    def name_server(self, host: str = "127.0.0.1", port: int = 0) -> NameServer:
        """Be a DNS server on an address of this machine, UDP and TCP: `with device.name_server() as server:`."""
        return self._await(lambda: bridges.name_server(self._thread, host, port), NameServer.close)

    def udp(self, port: int = 0, *, host: str | None = None, via: str | Node | None = None) -> UdpSocket:
        """A UDP socket on the tailnet."""
        return UdpSocket(self._await(lambda: self._inside().udp(port, host=host, via=via)), self._thread)

    def tun_up(self, options: TunOptions | None = None) -> None:
        """Give the kernel's own sockets the tailnet, by `tailscale.tun(...)`. TunFailed says what to set."""
        self._await(lambda: self._inside().tun_up(options))

    def tun_down(self) -> None:
        """Take the TUN device away again; this machine's routes, rules and addresses are as they were before."""
        self._await(lambda: self._inside().tun_down())

    def tun_ended(self) -> None:
        """Wait until there is no TUN device. TunFailed where nobody asked for its end: somebody removed it."""
        self._await(lambda: self._inside().tun_ended())

    def take_dials(self) -> TakenDials:
        """Carry what this program dials in the tailnet, by whatever library: `with device.take_dials():`.

        What `connect_anywhere` sends over the tailnet is reached by this device wherever the program uses Python's
        sockets, blocking or in asyncio; everything else goes as before, and so does all of it after `close()` or the
        block. One device at a time takes a program's dials; datagrams to the tailnet are refused.
        """
        from tailscale.threads.taking import TakenDials  # few do

        return TakenDials(self)

    # Names and identities

    way_to = blocking(TrioDevice.way_to)
    way_by = blocking(TrioDevice.way_by)
    resolve = blocking(TrioDevice.resolve)
    resolve_all = blocking(TrioDevice.resolve_all)
    dns_query = blocking(TrioDevice.dns_query)
    whois = blocking(TrioDevice.whois)

    # Diagnosis

    ping = blocking(TrioDevice.ping)
    bench = blocking(TrioDevice.bench)
    explain = blocking(TrioDevice.explain)
    netcheck = blocking(TrioDevice.netcheck)
    status = blocking(as_work(TrioDevice.status))
    flows = blocking(as_work(TrioDevice.flows))
    peer_status = blocking(as_work(TrioDevice.peer_status))
    paths = blocking(as_work(TrioDevice.paths))

    def capture(
        self,
        file: str | os.PathLike[str] | Sink,
        peer: str | Node | None = None,
        *,
        snaplen: int = 65_535,
        max_packets: int | None = None,
        max_bytes: int | None = None,
    ) -> Capture:
        """Write the packets inside the tunnel to a pcapng file: `with device.capture("x.pcapng") as capture:`."""

        async def begin() -> TrioCapture:
            opening = self._inside().capture(file, peer, snaplen=snaplen, max_packets=max_packets, max_bytes=max_bytes)
            return await opening

        return Capture(self._await(begin), self._thread)

    def events(self) -> Iterator[Event]:
        """What happens from now on, as it happens; ends when the device is closed."""
        return events_of(self._thread, self._await(as_work(self._inside().events)))

    # Changing our mind

    set = blocking(TrioDevice.set)
    set_uplink = blocking(TrioDevice.set_uplink)
    login = blocking(TrioDevice.login)
    logout = blocking(TrioDevice.logout)
    id_token = blocking(TrioDevice.id_token)


class Capture(CaptureFace):
    """`tailscale.Capture` for plain threads: the same verbs, blocking."""

    def wait(self) -> None:
        """Until a limit is reached, or nothing more can be written."""
        self._thread.submit(self._capture.wait).wait()

    def close(self) -> None:
        """No more packets; returns when the file is whole."""
        if not self._thread.ended.done():
            self._thread.submit(self._capture.aclose).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# What stands on a Device: whoever needs none of it loads nothing of it.
__getattr__ = lazily(
    __name__,
    names_of(
        {
            "tailscale.mesh.sync_face": ("Mesh",),
            "tailscale.proxy.sync_face": ("Exits", "serve"),
            "tailscale.taildrop.sync_face": ("taildrop",),
            "tailscale.threads.taking": ("TakenDials",),
        }
    ),
)

__all__ = [
    *("Capture", "Device", "Exits", "Exposure", "Forward", "Mesh", "TailnetListener", "TailnetSocket", "TakenDials"),
    *("UdpSocket", "serve", "taildrop"),
]
