"""Keeps the peer API open as the wishes say, and announces it.

Owns the listener and what peers are told of it. Costs a listener until the first peer comes: only then is anything of
HTTP imported. Never opens anything on this machine's own network.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import trio

from tailscale.forwarding import EXIT_ROUTES
from tailscale.peerapi.paths import PeerPaths
from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import Offer, PreferencesChanged
from tailscale.runtime.offers import offer
from tailscale.sockets.tcp import TcpListener
from ts_control.wire import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailscale._config import Preferences
    from tailscale.peerapi.callers import PeerCaller
    from tailscale.peerapi.serving import Connections
    from tailscale.runtime.directory import Directory
    from tailscale.sockets.socket_device import SocketDevice
    from ts_netstack.stack import Stack

# Every device has the same, so that it is known before there are addresses and peers may remember it. Where upstream
# looks for one, from 32768 on.
PORT = 56_001
BACKLOG = 32
DNS_PROXY_VERSION = 1
WHO = "peerapi"


log = logging.getLogger("tailscale.peerapi")


class PeerApiStatistics(NamedTuple):
    """`connections` is how many are open, `requests` how many were read since the device started."""

    connections: int
    requests: int
    drops: dict[str, int]


class PeerApi:
    """One per device."""

    def __init__(
        self, directory: Directory, stack: Stack, device: SocketDevice, is_relay: Callable[[PeerCaller], bool]
    ) -> None:
        self.paths = PeerPaths()
        self._is_relay = is_relay
        self._directory, self._stack, self._device = directory, stack, device
        self._connections: Connections | None = None
        self.drops: Counter[str] = Counter()

    def statistics(self) -> PeerApiStatistics:
        made = self._connections
        return PeerApiStatistics(made.open if made else 0, made.requests if made else 0, dict(self.drops))

    def open(self) -> TcpListener:
        """OSError where the program listens on the port itself."""
        return TcpListener([self._stack.listen(PORT, None, BACKLOG)], self._device)

    async def serve(self, listener: TcpListener) -> None:
        """Answer until cancelled, or until the device closes its sockets."""
        async with listener:
            try:
                first = await listener.accept()
            except trio.ClosedResourceError:
                return
            if self._connections is None:
                from tailscale.peerapi.serving import Connections  # HTTP costs more than the rest of a device's start

                self._connections = Connections(self._directory, self.paths, self.drops, self._is_relay)
            await self._connections.serve(listener, first)


def offer_of(preferences: Preferences) -> Offer:
    """What peers are told: where it is, and whether it looks names up for those who use us as an exit."""
    services = [Service("peerapi4", PORT), Service("peerapi6", PORT)]
    if set(preferences.offered_routes) >= set(EXIT_ROUTES):
        services.append(Service("peerapi-dns-proxy", DNS_PROXY_VERSION))
    return Offer(services=tuple(services))


@trio.lowlevel.enable_ki_protection
async def run_peerapi(bus: Bus, api: PeerApi, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Owns: the listener, and everything peers open to it. Hears: preferences. Says: offers.

    Shields up means that nobody opens anything here, this neither.
    """
    with bus.subscribe(PreferencesChanged, name="peerapi") as inbox:
        async with trio.open_nursery() as nursery:
            task_status.started()
            serving: _Serving | None = None
            while True:
                latest = bus.latest(PreferencesChanged)
                wanted = latest.preferences if latest is not None else None
                if serving is not None and (wanted is None or wanted.shields_up):
                    serving.stop()
                    serving = None
                elif serving is None and wanted is not None and not wanted.shields_up:
                    serving = _begin(api, nursery)
                offer(bus, WHO, offer_of(wanted) if wanted is not None and serving is not None else None)
                await inbox.receive()


class _Serving(NamedTuple):
    """What is open at the moment."""

    listener: TcpListener
    scope: trio.CancelScope

    def stop(self) -> None:
        """At once, so that the port is free again."""
        self.listener.shut()
        self.scope.cancel()


def _begin(api: PeerApi, nursery: trio.Nursery) -> _Serving | None:
    """Open it; None where a program of ours has the port: that is its right, and no reason to end."""
    try:
        serving = _Serving(api.open(), trio.CancelScope())
    except OSError as problem:
        log.warning("there is no peer API: %s", problem)
        return None

    async def serve() -> None:
        with serving.scope:
            await api.serve(serving.listener)

    nursery.start_soon(serve)
    return serving
