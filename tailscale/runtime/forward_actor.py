"""Which routes this device forwards for, and the actor that keeps them so.

Owns what is in force: what the user advertises and control approves, both, in which networks this machine is, and the
warning about what is not approved. Refuses to know flows (forward_flows.py) and how a destination is judged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection

import trio

from tailscale.forwarding import APPROVE
from tailscale.runtime.bus import Bus
from tailscale.runtime.forward_flows import Forwarding
from tailscale.runtime.health import Health
from tailscale.runtime.messages import InterfacesChanged, NetworkChanged, PreferencesChanged, TablesChanged
from tailscale.runtime.network import Network
from tailscale.runtime.translate_tables import served_routes
from ts_base.errors import BadPacket
from ts_base.ip import Prefix, format_prefix, parse_prefix

APPROVAL_PATIENCE = 5.0  # control approves some routes by itself: only what is still missing then is worth a warning
INTERFACES_LOOK = 10.0  # seconds between looks at this machine's networks, while a default route is in force
NOT_APPROVED = "routes-not-approved"

log = logging.getLogger("tailscale.forward")


def read_routes(texts: Collection[str]) -> set[Prefix]:
    """Those that are prefixes: control's are checked where they are used, the user's where they were given."""
    found = set()
    for text in texts:
        try:
            found.add(parse_prefix(text))
        except BadPacket:
            continue
    return found


class Routes:
    """What is in force: what the user advertises, what control approves, and which networks this machine is in."""

    def __init__(self, bus: Bus, network: Network, forwarding: Forwarding) -> None:
        self._bus, self._network, self._forwarding = bus, network, forwarding
        self._in_force: set[Prefix] = set()
        self._interfaces: frozenset[Prefix] = frozenset()
        self._missing: set[Prefix] = set()
        self.warn_at = self.look_at = math.inf
        forwarding.set_prefixes(())

    def follow(self) -> None:
        """The newest wishes and the newest netmap."""
        tables, wanted = self._bus.latest(TablesChanged), self._bus.latest(PreferencesChanged)
        if tables is None or wanted is None:
            return
        advertised = read_routes(wanted.preferences.offered_routes)
        approved = read_routes(served_routes(tables.netmap.self_node))
        if advertised & approved != self._in_force:
            self._in_force = advertised & approved
            self.look_at = math.inf if all(length for _, length in self._in_force) else -math.inf
            self.look(trio.current_time())
            self._forwarding.set_prefixes(self._in_force, self._interfaces)
        if advertised - approved != self._missing:
            self._missing = advertised - approved
            self.warn_at = trio.current_time() + APPROVAL_PATIENCE if self._missing else math.inf
            if not self._missing:
                Health(self._bus).clear(NOT_APPROVED)

    def look(self, now: float) -> None:
        """Read the networks of this machine anew, where a default route must not lead into them."""
        if self.look_at == math.inf:
            return
        self.look_at = now + INTERFACES_LOOK
        try:
            found = self._network.interface_prefixes()
        except OSError as problem:
            log.warning("the networks of this machine cannot be read (%s): those known are kept out of", problem)
            return
        if found != self._interfaces:
            self._interfaces = found
            self._bus.publish(InterfacesChanged(found))
            self._forwarding.set_prefixes(self._in_force, found)

    def wake(self, now: float) -> None:
        """Time has passed."""
        if self.warn_at <= now:
            self.warn_at = math.inf
            show_missing(Health(self._bus), self._missing)
        if self.look_at <= now:
            self.look(now)


@trio.lowlevel.enable_ki_protection
async def run_forward(
    bus: Bus, network: Network, forwarding: Forwarding, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Forward for what we advertise and control has approved. Owns: `Forwarding`'s sockets and tasks. Hears: tables,
    preferences, that the network changed. Says: health, and which networks this machine is in.
    """
    with bus.subscribe(TablesChanged, PreferencesChanged, NetworkChanged, name="forward") as inbox:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forwarding.run)
            task_status.started()
            routes = Routes(bus, network, forwarding)
            while True:
                with trio.move_on_at(min(routes.warn_at, routes.look_at)) as waiting:
                    message = await inbox.receive()
                if waiting.cancelled_caught:
                    routes.wake(trio.current_time())
                elif isinstance(message, NetworkChanged):
                    routes.look(trio.current_time())
                else:
                    routes.follow()


def show_missing(health: Health, missing: Collection[Prefix]) -> None:
    names = ", ".join(sorted(map(format_prefix, missing)))
    health.show(
        NOT_APPROVED,
        f"advertised, but not approved by the control server, so that nothing is forwarded there: {names}",
        APPROVE,
    )
