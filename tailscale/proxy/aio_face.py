"""`tailscale.proxy` for asyncio: `Exits` and `serve` in the thread of a `tailscale.aio.Device`."""

from __future__ import annotations

import asyncio
import socket
import ssl as ssl_module
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from tailscale.local_ports import Opening
from tailscale.proxy.faces import ExitsFace, way_of
from tailscale.proxy.hosted import HostedProxy, open_proxy
from tailscale.threads import bridges
from tailscale.threads.awaiting import DEFAULT_STREAM_LIMIT, events_of, finished, in_loop
from tailscale.threads.face import as_work, thread_of
from tailscale.threads.loopback import TailnetSocket
from tailscale.threads.udp_aio import UdpSocket

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
    """`tailscale.proxy.Exits` for asyncio: the exits of an entered Device. Takes what that takes.

    A `where=` function is called in the device's own thread.
    """

    async def open_connection(
        self,
        host: str,
        port: int,
        *,
        timeout: float | None = None,
        session: str = "",
        limit: int = DEFAULT_STREAM_LIMIT,
        ssl: ssl_module.SSLContext | bool | None = None,
        server_hostname: str | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As `asyncio.open_connection`, by the exit of this moment."""
        sock = await self.socket(host, port, timeout=timeout, session=session)
        try:
            name = server_hostname or (host if ssl else None)
            return await asyncio.open_connection(sock=sock, limit=limit, ssl=ssl, server_hostname=name)
        except BaseException:
            sock.close()
            raise

    tcp_connect = open_connection

    async def socket(self, host: str, port: int, *, timeout: float | None = None, session: str = "") -> socket.socket:
        """A connected, non-blocking socket, for libraries that take one."""
        thread = self._thread

        async def dial() -> TailnetSocket:
            return bridges.as_socket(
                thread, await self._exits.tcp_connect(host, port, timeout=timeout, session=session)
            )

        sock = await finished(self._thread.submit(dial, TailnetSocket.close))
        sock.setblocking(False)
        return sock

    async def udp(self, *, session: str = "") -> UdpSocket:
        """A UDP socket through the exit of this moment."""
        udp = await finished(self._thread.submit(lambda: self._exits.udp(session=session)))
        return UdpSocket(udp, self._thread)

    async def candidates(self) -> tuple[ExitNode, ...]:
        """The exits that the policy lets in and that are not broken, best first."""
        return await finished(self._thread.submit(as_work(lambda: self._exits.candidates)))

    async def current(self) -> ExitNode | None:
        """The exit that the next connection without a session takes."""
        return await finished(self._thread.submit(as_work(lambda: self._exits.current)))

    async def status(self) -> ExitsStatus:
        """What is used, what could be, and why the others are not."""
        return await finished(self._thread.submit(as_work(self._exits.status)))

    async def pin(self, node: str | None) -> None:
        """Use this exit and nobody else from the next connection on; None goes back to the policy."""
        await finished(self._thread.submit(lambda: self._exits.pin(node)))

    def events(self) -> AsyncIterator[Event]:
        """What happens from now on; ends when the device is closed."""
        return events_of(self._thread, self._thread.submit(as_work(self._exits.events)))


def serve(
    device: DeviceFace,
    listen: str | None = "127.0.0.1:1080",
    exits: Exits | TrioExits | None = None,
    *,
    users: Users | None = None,
    allow: Allow | None = None,
    limits: ProxyLimits | None = None,
) -> Opening[HostedProxy]:
    """`tailscale.proxy.serve` in the device's thread: `await` it, or use it in `async with`.

    `users` and `allow` that are functions are called in this event loop, and may be async.

    ```python
    async with tailscale.aio.serve(device, "127.0.0.1:0") as proxy:
        print(proxy.address, proxy.statistics())
    ```
    """
    return Opening(_serve(device, listen, exits, users, allow, limits))


async def _serve(
    device: DeviceFace,
    listen: str | None,
    exits: Exits | TrioExits | None,
    users: Users | None,
    allow: Allow | None,
    limits: ProxyLimits | None,
) -> HostedProxy:
    loop, thread = asyncio.get_running_loop(), thread_of(device)
    way = way_of(exits)
    options = {
        "users": in_loop(loop, users) if callable(users) else users,
        "allow": in_loop(loop, allow) if allow is not None else None,
        "limits": limits,
    }
    opening = thread.submit(
        lambda: open_proxy(thread.spawn, thread.call_soon, thread.device, listen, way, **options), HostedProxy.close
    )
    return await finished(opening)
