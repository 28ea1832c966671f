"""One relay region's connection, made again for as long as it is wanted.

Owns the back-off, the idle deadline and what is carried from a dead connection to the next. Refuses to know other
regions: what arrives and what happens is handed to its owner. Policy: wgengine/magicsock/derp.go.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import trio

from tailscale.runtime.health import Health
from tailscale.runtime.network import Network
from tailscale.runtime.supervision import Supervision
from ts_base.keys import NodePrivate
from ts_base.who import Relayed
from ts_derp.client import DerpClient
from ts_derp.errors import RelayLost, RelayUnreachable
from ts_derp.frames import Run
from ts_derp.machine import DerpMachine, DerpMessage, Greeted, PongArrived, ServerRestarting
from ts_derp.regions import RelayRegion
from ts_derp.trust import Trust

IDLE_LIMIT = 60.0  # a link that is not home lives this long without a write
IDLE_CHECK = 15.0
FIRST_BACKOFF = 0.1
MAX_BACKOFF = 5.0
STEADY_AFTER = 5.0  # a connection that lived this long starts the back-off afresh
HOME_GRACE = 5.0  # how long home may be gone before the user is told
HOME_UNREACHABLE = "relay-home-unreachable"
PART = "relay-link"  # whichever it is: control chooses how many there are

log = logging.getLogger("tailscale.relay")


class RelayLinkStatistics(NamedTuple):
    """One region's link, over all its connections."""

    connected: bool
    is_home: bool
    queued_bytes: int
    round_trip: float | None
    drops: Mapping[str, int]


RelayRuns = list[tuple[Relayed, list[bytes]]]
Deliver = Callable[[RelayRuns], object]


class LinkOwner(Protocol):
    """What a link asks of the Relays it belongs to."""

    network: Network
    private: NodePrivate
    trust: Trust
    over_http: bool
    health: Health
    supervision: Supervision

    def heard_from(self, region: int, inbound: list[Run]) -> RelayRuns: ...
    def on_fact(self, region: int, fact: DerpMessage) -> None: ...
    def forget(self, link: RelayLink) -> None: ...
    def say_changed(self) -> None: ...


class RelayLink:
    """One region's connection, made again for as long as it is wanted."""

    def __init__(self, owner: LinkOwner, region: RelayRegion, *, is_home: bool) -> None:
        self.region = region
        self.connected = False
        self.drops: Counter[str] = Counter()
        self._owner = owner
        self._is_home = is_home
        self._scope = trio.CancelScope()
        self._client: DerpClient | None = None
        self._last_write = trio.current_time()
        self._down_since = trio.current_time()
        self._backoff = FIRST_BACKOFF
        self._announced_pause = 0.0
        self._try_now = trio.Event()
        self._round_trip: float | None = None
        self.machine = self._new_machine()

    def _new_machine(self) -> DerpMachine:
        entropy = self._owner.network.entropy
        return DerpMachine(self._owner.private, entropy=entropy, preferred=self._is_home)

    def send(self, runs: list[Run], now: float) -> None:
        self._last_write = now
        if self._client is not None:
            self._client.send(runs, now)
        else:
            self.machine.send(runs, now)

    def set_home(self, is_home: bool) -> None:
        self._is_home = is_home
        self._last_write = trio.current_time()  # an old home stays for a while: peers still send there
        self.machine.prefer(is_home)
        if self._client is not None:
            self._client.wake()

    def check(self, now: float) -> None:
        if self._client is not None and self.connected:
            self.machine.ping(now)
            self._client.wake()
        else:
            self._backoff = FIRST_BACKOFF
            self._try_now.set()

    def close(self) -> None:
        self._scope.cancel()

    def statistics(self) -> RelayLinkStatistics:
        return RelayLinkStatistics(
            connected=self.connected,
            is_home=self._is_home,
            queued_bytes=self.machine.queued_bytes,
            round_trip=self._round_trip,
            drops=dict(self.drops + self.machine.drops),
        )

    @trio.lowlevel.enable_ki_protection
    async def keep(self, deliver: Deliver) -> None:
        """Runs until closed or idle. What arrives goes to `deliver`."""
        try:
            with self._scope:
                while True:
                    with self._owner.supervision.contained(PART):
                        await self._connect_until_idle(deliver)
                    self._on_down(RelayLost("the link failed"))
                    await self._pause()
        finally:
            self.connected = False
            self._owner.forget(self)

    async def _connect_until_idle(self, deliver: Deliver) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_when_idle)
            while True:
                self._on_down(await self._connect_once(deliver))
                await self._pause()

    async def _connect_once(self, deliver: Deliver) -> RelayUnreachable | RelayLost:
        owner, region = self._owner, self.region

        def take(inbound: list[Run]) -> None:
            deliver(owner.heard_from(region.id, inbound))

        try:
            self._client = await DerpClient.dial(
                owner.network, region, self.machine, owner.trust, over_http=owner.over_http
            )
            await self._client.run(take, self._on_fact)
        except (RelayUnreachable, RelayLost) as error:
            return error
        finally:
            self._client = None

    def _on_fact(self, fact: DerpMessage) -> None:
        if isinstance(fact, Greeted):
            self._on_up()
        elif isinstance(fact, PongArrived):
            self._round_trip = fact.round_trip
        elif isinstance(fact, ServerRestarting):
            self._announced_pause = min(fact.reconnect_in, MAX_BACKOFF)
        self._owner.on_fact(self.region.id, fact)

    def _on_up(self) -> None:
        log.info("relay region %s connected%s", self.region.code or self.region.id, ", home" if self._is_home else "")
        self.connected = True
        self._down_since = trio.current_time()
        if self._is_home:
            self._owner.health.clear(HOME_UNREACHABLE)
        self._owner.say_changed()

    def _on_down(self, problem: Exception) -> None:
        now = trio.current_time()
        log.info("%s", problem)
        if self.connected:
            if now - self._down_since >= STEADY_AFTER:
                self._backoff = FIRST_BACKOFF
            self.connected = False
            self._down_since = now
            self._owner.say_changed()
        if self.machine.has_begun:
            spent, self.machine = self.machine, self._new_machine()
            self.drops.update(spent.drops)
            self.machine.send(spent.take_unsent(), now)
        if self._is_home and now - self._down_since >= HOME_GRACE:
            where = self.region.name or self.region.code or str(self.region.id)
            self._owner.health.show(
                HOME_UNREACHABLE,
                f"the home relay {where} cannot be reached: {problem}",
                "Peers that need the relay cannot reach this device. Check that TCP to the relay's port is allowed",
            )

    async def _pause(self) -> None:
        """Back off, at random between half and all of it; a restarting relay told us itself when to come back."""
        pause = self._announced_pause or self._backoff
        self._announced_pause = 0.0
        self._backoff = min(2 * self._backoff, MAX_BACKOFF)
        fraction = int.from_bytes(self._owner.network.entropy(2), "big") / 0xFFFF
        self._try_now = trio.Event()
        with trio.move_on_after(pause * (0.5 + 0.5 * fraction)):
            await self._try_now.wait()

    @trio.lowlevel.enable_ki_protection
    async def _close_when_idle(self) -> None:
        while True:
            left = self._last_write + IDLE_LIMIT - trio.current_time()
            if left <= 0 and not self._is_home:
                self._scope.cancel()
            await trio.sleep(left if left > 0 else IDLE_CHECK)
