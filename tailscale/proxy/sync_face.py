"""`tailscale.proxy` for plain threads: `Exits` and `serve` in the thread of a `tailscale.sync.Device`."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tailscale.proxy.faces import ExitsFace, way_of
from tailscale.proxy.hosted import HostedProxy, open_proxy
from tailscale.threads import bridges
from tailscale.threads.blocking import events_of
from tailscale.threads.face import as_work, thread_of
from tailscale.threads.loopback import TailnetSocket
from tailscale.threads.udp_sync import UdpSocket

if TYPE_CHECKING:
    from tailscale.events import Event
    from tailscale.proxy import ProxyLimits
    from tailscale.proxy.exits import Exits as TrioExits
    from tailscale.proxy.exits_status import ExitsStatus
    from tailscale.proxy.gate import Allow
    from tailscale.proxy.users import Users
    from tailscale.status import ExitNode
    from tailscale.threads.face import DeviceFace


class Exits(ExitsFace):
    """`tailscale.proxy.Exits` for plain threads: the exits of an open Device. Takes what that takes.

    A `where=` function is called in the device's own thread.
    """

    def connect(self, host: str, port: int, *, timeout: float | None = None, session: str = "") -> socket.socket:
        """A connected socket, by the exit of this moment: `timeout` also becomes the socket's own."""
        thread = self._thread

        async def dial() -> TailnetSocket:
            return bridges.as_socket(
                thread, await self._exits.tcp_connect(host, port, timeout=timeout, session=session)
            )

        sock = self._thread.submit(dial, TailnetSocket.close).wait()
        sock.settimeout(timeout)
        return sock

    tcp_connect = connect

    def udp(self, *, session: str = "") -> UdpSocket:
        """A UDP socket through the exit of this moment."""
        return UdpSocket(self._thread.submit(lambda: self._exits.udp(session=session)).wait(), self._thread)

    @property
    def candidates(self) -> tuple[ExitNode, ...]:
        """The exits that the policy lets in and that are not broken, best first."""
        return self._thread.submit(as_work(lambda: self._exits.candidates)).wait()

    @property
    def current(self) -> ExitNode | None:
        """The exit that the next connection without a session takes."""
        return self._thread.submit(as_work(lambda: self._exits.current)).wait()

    def status(self) -> ExitsStatus:
        """What is used, what could be, and why the others are not."""
        return self._thread.submit(as_work(self._exits.status)).wait()

    def pin(self, node: str | None) -> None:
        """Use this exit and nobody else from the next connection on; None goes back to the policy."""
        self._thread.submit(lambda: self._exits.pin(node)).wait()

    def events(self) -> Iterator[Event]:
        """What happens from now on; ends when the device is closed."""
        return events_of(self._thread, self._thread.submit(as_work(self._exits.events)).wait())


def serve(
    device: DeviceFace,
    listen: str | None = "127.0.0.1:1080",
    exits: Exits | TrioExits | None = None,
    *,
    users: Users | None = None,
    allow: Allow | None = None,
    limits: ProxyLimits | None = None,
) -> HostedProxy:
    """`tailscale.proxy.serve` in the device's thread, where `users` and `allow` are called: `with sync.serve(...)`.

    ```python
    with tailscale.sync.serve(device, "127.0.0.1:0") as proxy:
        print(f"socks5h://127.0.0.1:{proxy.port}", proxy.statistics())
    ```
    """
    way = way_of(exits)
    thread = thread_of(device)
    options = {"users": users, "allow": allow, "limits": limits}
    opening = thread.submit(
        lambda: open_proxy(thread.spawn, thread.call_soon, thread.device, listen, way, **options), HostedProxy.close
    )
    return opening.wait()
