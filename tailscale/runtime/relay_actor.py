"""The relay connections of a Device: home always, other regions while somebody there is being talked to.

Owns one link per region, its reconnecting and the route by which a peer was last heard. Refuses to know what is inside
a datagram and which region should be home: that is told by NetInfoChanged. Policy: wgengine/magicsock/derp.go.
"""

from __future__ import annotations

import ssl
from collections import Counter, deque
from typing import NamedTuple

import trio

from tailscale.runtime.bus import Bus, Message
from tailscale.runtime.health import Health
from tailscale.runtime.messages import (
    NetInfoChanged,
    NetMapChanged,
    NetworkChanged,
    RelayFrameArrived,
    RelaysChanged,
    RelaysRemembered,
)
from tailscale.runtime.network import Network
from tailscale.runtime.relay_link import Deliver, RelayLink, RelayLinkStatistics, RelayRuns
from tailscale.runtime.supervision import Supervision
from tailscale.runtime.translate_relays import translate_map
from ts_base.keys import NodePrivate
from ts_control.wire import DERPMap
from ts_derp.frames import Run
from ts_derp.machine import DerpMessage, PeerGone, ServerHealth
from ts_derp.regions import HomeChooser, RelayMap
from ts_derp.trust import Trust

HEARD_LIMIT = 16_384  # peers whose last relay is remembered
LINK_LIMIT = 128

NO_SUCH_REGION = "relay.no_such_region"
TOO_MANY_LINKS = "relay.too_many_links"
LINK_CLOSED = "relay.link_closed"


class RelaysStatistics(NamedTuple):
    """`drops` are those of no link, and of links that are gone."""

    links: dict[int, RelayLinkStatistics]
    drops: dict[str, int]


class Relays:
    """Every relay connection of one Device, and the one way to send through them."""

    def __init__(
        self,
        network: Network,
        private: NodePrivate,
        bus: Bus,
        *,
        tls: ssl.SSLContext | None = None,
        over_http: bool = False,
        allow_insecure: bool = False,
        supervision: Supervision | None = None,
    ) -> None:
        self.network = network
        self.supervision = supervision or Supervision(bus)
        self.private = private
        self.trust = Trust(tls, allow_insecure=allow_insecure)
        self.over_http = over_http
        self.home = 0
        self.drops: Counter[str] = Counter()
        self._map = RelayMap()
        self._links: dict[int, RelayLink] = {}
        self._heard_at: dict[bytes, int] = {}
        self.health = Health(bus)
        self._unstarted: deque[RelayLink] = deque()
        self._opened = trio.Event()
        self._bus = bus

    # --- the packet path

    def send(self, runs: RelayRuns) -> None:
        """[((region, node key), [datagram, ...]), ...]: never blocks; opens the region's link when there is none."""
        now = trio.current_time()
        by_link: dict[RelayLink, list[Run]] = {}
        for (region, key), datagrams in runs:
            link = self._link_towards(region, key)
            if link is not None:
                by_link.setdefault(link, []).append((key, datagrams))
        for link, outbound in by_link.items():
            link.send(outbound, now)

    def _link_towards(self, region: int, key: bytes) -> RelayLink | None:
        link = self._links.get(region)
        if link is not None and link.connected:
            return link
        # The peer's own region is not connected. Where we heard the peer it listens too, and that link may be open.
        heard = self._links.get(self._heard_at.get(key, 0))
        if heard is not None and heard.connected:
            return heard
        return link or self._open(region)

    def heard_from(self, region: int, inbound: list[Run]) -> RelayRuns:
        """The same runs under whole paths; where each peer was heard is remembered."""
        heard_at = self._heard_at
        for key, _ in inbound:
            if heard_at.get(key) != region:
                heard_at.pop(key, None)
                heard_at[key] = region
                if len(heard_at) > HEARD_LIMIT:
                    del heard_at[next(iter(heard_at))]
        return [((region, key), packets) for key, packets in inbound]

    # --- what the Device tells

    def set_private(self, private: NodePrivate) -> None:
        """Our node key changed: a relay knows us by it, so every connection is made anew."""
        if private != self.private:
            self.private = private
            for link in list(self._links.values()):
                self._close(link)
            self._open_home()

    @property
    def connected(self) -> tuple[int, ...]:
        return tuple(sorted(region for region, link in self._links.items() if link.connected))

    @property
    def queued_bytes(self) -> int:
        """What is accepted and not yet written."""
        return sum(link.machine.queued_bytes for link in self._links.values())

    def statistics(self) -> RelaysStatistics:
        links = {region: link.statistics() for region, link in self._links.items()}
        return RelaysStatistics(links, dict(self.drops))

    # --- the actor's side

    @trio.lowlevel.enable_ki_protection
    async def run_links(self, deliver: Deliver) -> None:
        """Keep every link that is opened, for as long as it lives."""
        async with trio.open_nursery() as nursery:
            while True:
                while self._unstarted:
                    nursery.start_soon(self._unstarted.popleft().keep, deliver)
                await self._opened.wait()
                self._opened = trio.Event()

    def set_map(self, relay_map: RelayMap) -> None:
        self._map = relay_map
        for number, link in list(self._links.items()):
            region = relay_map.regions.get(number)
            if region is None or region.nodes != link.region.nodes:
                self._close(link)
        self._open_home()

    def set_home(self, region: int) -> None:
        if region == self.home:
            return
        for number in (self.home, region):
            link = self._links.get(number)
            if link is not None:
                link.set_home(number == region)
        self.home = region
        self._open_home()
        self.say_changed()

    def _open_home(self) -> None:
        if self.home in self._map.regions:
            self._open(self.home)
        elif not self.home:
            # Nothing is measured yet. Where home would be in doubt is dialled meanwhile, to be usable at once.
            self._open(HomeChooser(self._map, seed=self.private.public.raw).fallback())

    def check_links(self) -> None:
        """The network under us changed: what is connected must prove it, what waits may try at once."""
        now = trio.current_time()
        for link in self._links.values():
            link.check(now)

    def _open(self, number: int) -> RelayLink | None:
        region = self._map.regions.get(number)
        if number in self._links:
            return self._links[number]
        if region is None:
            if number:
                self.drops[NO_SUCH_REGION] += 1
            return None
        if len(self._links) >= LINK_LIMIT:
            self.drops[TOO_MANY_LINKS] += 1
            return None
        link = self._links[number] = RelayLink(self, region, is_home=number == self.home)
        self._unstarted.append(link)
        self._opened.set()
        return link

    def _close(self, link: RelayLink) -> None:
        link.close()
        self.forget(link)

    def forget(self, link: RelayLink) -> None:
        """The link is over and will not come back by itself."""
        if self._links.get(link.region.id) is link:
            del self._links[link.region.id]
            if unsent := sum(len(datagrams) for _, datagrams in link.machine.take_unsent()):
                self.drops[LINK_CLOSED] += unsent
            self.drops.update(link.drops + link.machine.drops)
            self.say_changed()

    def on_fact(self, region: int, fact: DerpMessage) -> None:
        if isinstance(fact, PeerGone):
            if self._heard_at.get(fact.peer) == region:
                del self._heard_at[fact.peer]
        elif isinstance(fact, ServerHealth):
            self._on_server_health(region, fact.problem)
        self.say(RelayFrameArrived(region, fact))

    def _on_server_health(self, region: int, problem: str) -> None:
        code = f"relay-{region}-unwell"
        if problem:
            self.health.show(code, f"relay region {region} reports: {problem}")
        else:
            self.health.clear(code)

    def say(self, message: Message) -> None:
        self._bus.publish(message)

    def say_changed(self) -> None:
        connected = self.connected
        self.say(RelaysChanged(connected, self.home in connected))


@trio.lowlevel.enable_ki_protection
async def run_relays(
    bus: Bus,
    relays: Relays,
    deliver: Deliver,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep home connected and the rest as needed.

    Owns: the links of `relays`. Hears: RelaysRemembered, NetMapChanged, NetInfoChanged, NetworkChanged.
    Says: RelaysChanged, RelayFrameArrived, health. Inbound runs go to `deliver`, never over the bus.
    """
    kinds = (RelaysRemembered, NetMapChanged, NetInfoChanged, NetworkChanged)
    with bus.subscribe(*kinds, name="relays") as inbox:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relays.run_links, deliver)
            task_status.started()
            wire_map: DERPMap | None = None
            while True:
                message = await inbox.receive()
                if isinstance(message, NetMapChanged):
                    if message.netmap.derp_map is not wire_map:
                        wire_map = message.netmap.derp_map
                        relays.set_map(translate_map(wire_map))
                elif isinstance(message, RelaysRemembered) and wire_map is None:
                    relays.set_home(message.home_region)
                    relays.set_map(translate_map(message.derp_map))
                elif isinstance(message, NetInfoChanged):
                    relays.set_home(message.home_region)
                elif isinstance(message, NetworkChanged):
                    relays.check_links()
