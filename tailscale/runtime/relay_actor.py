"""The relay connections of a Device: home always, other regions while somebody there is being talked to.

Owns one link per region, its reconnecting and the route by which a peer was last heard. Refuses to know what is inside
a datagram and which region should be home: that is told by NetInfoChanged. Policy: wgengine/magicsock/derp.go.
"""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable

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
from tailscale.runtime.relay_link import RelayLink
from ts_base.keys import NodePrivate
from ts_control.wire import DERPMap
from ts_derp.frames import Run
from ts_derp.machine import DerpMessage, PeerGone, ServerHealth
from ts_derp.regions import HomeChooser, RelayMap, RelayNode, RelayRegion
from ts_derp.trust import Trust

RelayPath = tuple[int, bytes]
RelayRuns = list[tuple[RelayPath, list[bytes]]]

HEARD_LIMIT = 16_384  # peers whose last relay is remembered
LINK_LIMIT = 128

NO_SUCH_REGION = "no such relay region"
TOO_MANY_LINKS = "too many relay regions in use"


class Relays:
    """Every relay connection of one Device, and the one way to send through them."""

    def __init__(
        self,
        network: Network,
        private: NodePrivate,
        *,
        tls: ssl.SSLContext | None = None,
        over_http: bool = False,
        allow_insecure: bool = False,
    ) -> None:
        self.network = network
        self.private = private
        self.trust = Trust(tls, allow_insecure=allow_insecure)
        self.over_http = over_http
        self.home = 0
        self.drops: Counter[str] = Counter()
        self._map = RelayMap()
        self._links: dict[int, RelayLink] = {}
        self._heard_at: dict[bytes, int] = {}
        self._nursery: trio.Nursery | None = None
        self._bus: Bus | None = None
        self.health = Health(Bus())  # nobody's, until the actor runs
        self._deliver: Callable[[RelayRuns], object] = lambda runs: None

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

    def deliver_from(self, region: int, inbound: list[Run]) -> None:
        heard_at = self._heard_at
        for key, _ in inbound:
            if heard_at.get(key) != region:
                heard_at.pop(key, None)
                heard_at[key] = region
                if len(heard_at) > HEARD_LIMIT:
                    del heard_at[next(iter(heard_at))]
        self._deliver([((region, key), packets) for key, packets in inbound])

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

    def statistics(self) -> dict[int, dict[str, object]]:
        return {region: link.statistics() for region, link in self._links.items()}

    # --- the actor's side

    def attach(self, nursery: trio.Nursery, bus: Bus, deliver: Callable[[RelayRuns], object]) -> None:
        self._nursery = nursery
        self._bus = bus
        self.health = Health(bus)
        self._deliver = deliver

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
        if region is None or self._nursery is None:
            if number:
                self.drops[NO_SUCH_REGION] += 1
            return None
        if len(self._links) >= LINK_LIMIT:
            self.drops[TOO_MANY_LINKS] += 1
            return None
        link = self._links[number] = RelayLink(self, region, is_home=number == self.home)
        self._nursery.start_soon(link.keep)
        return link

    def _close(self, link: RelayLink) -> None:
        link.close()
        self.forget(link)

    def forget(self, link: RelayLink) -> None:
        """The link is over and will not come back by itself."""
        if self._links.get(link.region.id) is link:
            del self._links[link.region.id]
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
        if self._bus is not None:
            self._bus.publish(message)

    def say_changed(self) -> None:
        connected = self.connected
        self.say(RelaysChanged(connected, self.home in connected))


@trio.lowlevel.enable_ki_protection
async def run_relays(
    bus: Bus,
    relays: Relays,
    deliver: Callable[[RelayRuns], object],
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
            relays.attach(nursery, bus, deliver)
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


def translate_map(wire: DERPMap) -> RelayMap:
    """Control's DERP map in the relay room's own words."""
    scores = wire.home_params.region_score if wire.home_params is not None else None
    return RelayMap(
        regions={
            number: RelayRegion(
                id=number,
                code=region.region_code,
                name=region.region_name,
                no_measure_no_home=region.no_measure_no_home,
                nodes=tuple(
                    RelayNode(
                        name=node.name,
                        host_name=node.host_name,
                        cert_name=node.cert_name,
                        ipv4=node.ipv4,
                        ipv6=node.ipv6,
                        stun_port=node.stun_port,
                        stun_only=node.stun_only,
                        derp_port=node.derp_port,
                        insecure_for_tests=node.insecure_for_tests,
                        stun_test_ip=node.stun_test_ip,
                    )
                    for node in region.nodes
                ),
            )
            for number, region in wire.live_regions().items()
        },
        scores=dict(scores or {}),
    )
