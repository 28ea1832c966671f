"""The netmap that everybody hears: control's newest, or until it speaks that of the last run, less whom the lock hides.

Owns: both of them, their publication, and what of them is kept for the next run. Refuses to know: how control is heard
(`control_actor.py`) and why a peer is hidden (`lock_keeper.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import trio

from tailscale.runtime.bus import Bus
from tailscale.runtime.health import Health
from tailscale.runtime.lock_keeper import LockKeeper
from tailscale.runtime.messages import NetMapChanged
from tailscale.runtime.saved_netmap import SavedNetMap
from tailscale.runtime.saved_relays import keep_relays
from tailscale.runtime.saved_state import SavedState
from ts_base.keys import NodePublic
from ts_control.netmap import NetMap

if TYPE_CHECKING:
    from tailscale.runtime.network import Network
    from tailscale.runtime.self_report import SelfReport

log = logging.getLogger("tailscale.control")


class BelievedNetMap:
    """One device's."""

    def __init__(
        self,
        bus: Bus,
        health: Health,
        saved: SavedState,
        lock: LockKeeper,
        report: SelfReport,
        network: Network,
        node_key: Callable[[], NodePublic],
        environment: Mapping[str, str],
    ) -> None:
        self.told = NetMap.empty()  # before the lock has a say
        self.shown: NetMap | None = None
        self.is_remembered = False  # it is of the last run
        self.arrived = trio.Event()
        self.kept = SavedNetMap(saved, environment)
        self._bus = bus
        self._health = health
        self._saved = saved
        self._lock = lock
        self._report = report
        self._network = network
        self._node_key = node_key
        report.note_lock(lock.head)

    async def hear(self, told: NetMap) -> None:
        """Control says this."""
        self.told, self.is_remembered = told, False
        self.kept.note(told)
        await self.look_again()

    async def remember(self) -> None:
        """What control told in the last run, until it has spoken: it may be away for long."""
        told = await self.kept.remembered(self._node_key(), self._network.wall_clock())
        if told is not None and self.shown is None:
            log.info("until control answers, the netmap of the last run serves: %d peers", len(told.peers))
            self.told, self.is_remembered = told, True
            await self.look_again()

    async def look_again(self) -> None:
        """The lock may see it otherwise now."""
        netmap = await self._lock.follow(self.told, self._node_key(), is_live=not self.is_remembered)
        self._report.note_lock(self._lock.head)
        if self.shown is None or netmap.derp_map is not self.shown.derp_map:
            keep_relays(self._saved, netmap.derp_map)
        self.shown = netmap
        self.repeat()
        self._health.show_netmap(netmap)
        self._saved.change(stable_id=netmap.self_node.stable_id)
        self.arrived.set()

    def repeat(self) -> None:
        """Say it once more: by the calendar, an expiry may be near enough to be told."""
        if self.shown is not None:
            self._bus.publish(NetMapChanged(self.shown, self.is_remembered))

    def until_next_expiry(self) -> float:
        """Seconds until a key in it runs out."""
        return self.shown.next_expiry() - self._network.wall_clock() if self.shown is not None else float("inf")

    async def expire(self) -> None:
        """A key in it has run out."""
        self.told = self.told.expire(self._network.wall_clock())
        await self.look_again()
