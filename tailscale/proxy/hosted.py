"""A proxy for programs without a trio loop of their own: it runs in the Device's thread, and is held from outside.

Owns its start and its end across the border. What the faces wait with is their own; who runs the task is handed in.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from tailscale._causes import sole_cause
from tailscale._faces import ClosedByLeaving
from tailscale.errors import TailscaleError
from tailscale.proxy.server import Proxy, serve
from tailscale.proxy.service import ProxyStatistics

if TYPE_CHECKING:
    from tailscale.device import Device

log = logging.getLogger("tailscale.proxy")


class HostedProxy(ClosedByLeaving):
    """A proxy that is being served. Close it, or use it in a `with` or `async with` block.

    Closing it lets nobody in any more, and gives what is open `limits.grace`.
    """

    def __init__(self, inside: Proxy, shutdown: trio.Event, call_soon: Callable[..., object]) -> None:
        self._inside = inside
        self._shutdown = shutdown
        self._call_soon = call_soon
        self.address = inside.address
        """Where it listens: an address and a port, or "tailnet" and a port."""

    @property
    def host(self) -> str:
        """The address, or "tailnet"."""
        return self.address[0]

    @property
    def port(self) -> int:
        """The port, also when 0 was asked for."""
        return self.address[1]

    def statistics(self) -> ProxyStatistics:
        """Clients, requests, failures and bytes so far."""
        return self._inside.statistics()

    def close(self) -> None:
        """Let nobody in any more."""
        with contextlib.suppress(TailscaleError):  # the loop has ended: so has the proxy
            self._call_soon(self._shutdown.set)

    def __repr__(self) -> str:
        return repr(self._inside)


async def open_proxy(
    spawn: Callable[..., object], call_soon: Callable[..., object], device: Device, *arguments: Any, **options: Any
) -> HostedProxy:
    """`serve(device, *arguments, **options)` as a task of the device's loop; returns once it listens."""
    began = trio.Event()
    made: list[Proxy] = []
    problems: list[BaseException] = []
    shutdown = trio.Event()

    async def host() -> None:
        try:
            async with trio.open_nursery() as nursery:
                run = partial(serve, **options, shutdown=shutdown)
                made.append(await nursery.start(run, device, *arguments))
                began.set()
        except* Exception as group:
            problems.append(sole_cause(group))
            if began.is_set():
                log.exception("a proxy failed")
        began.set()

    spawn(host)
    try:
        await began.wait()
    except BaseException:
        shutdown.set()
        raise
    if not made:
        raise problems[0]
    return HostedProxy(made[0], shutdown, call_soon)
