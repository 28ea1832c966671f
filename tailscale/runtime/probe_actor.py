"""Finds out where we are: relay latencies, our addresses as others see them, and from both the home region.

Never in the way of a start: when nothing has answered soon, home is a deterministic guess and the answers follow.
Owns the netcheck machine, the home choice and the endpoint list. Knows no peers and no paths.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Mapping

import trio

from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import (
    EndpointsChanged,
    EndpointsConfirmed,
    NetInfoChanged,
    NetMapChanged,
    NetworkChanged,
    ProbeRequested,
    RelaysChanged,
    StunArrived,
)
from tailscale.runtime.network import Network
from tailscale.runtime.portmap_actor import PortMapping
from tailscale.runtime.supervision import Supervision
from tailscale.runtime.translate_relays import translate_map
from tailscale.runtime.underlay import Underlay
from tailscale.status import NetcheckReport
from ts_base.ip import format_address, maybe_address
from ts_base.who import Direct
from ts_control.wire import DERPMap
from ts_dataplane.candidates import format_endpoint
from ts_dataplane.endpoints import EndpointList
from ts_dataplane.netcheck import Netcheck, RegionTargets, Report
from ts_dataplane.uplink_checks import UplinkChecks
from ts_derp.regions import DEFAULT_PORT, DEFAULT_STUN_PORT, HomeChooser, RelayMap, RelayNode

START_PATIENCE = 0.3  # a home without measurements after this long
STUN_GRACE = 0.02  # ... and this long after a relay greeted us, where UDP seems to be blocked
TCP_TIMEOUT = 5.0
REPORT_TIMEOUT = 8.0
MAX_TCP_PROBES = 8


class Probes:
    """What is known of the network around one Device.

    `seed` picks the home where nothing can be measured: give what the relays dial by meanwhile, our node key.
    """

    def __init__(
        self,
        network: Network,
        underlay: Underlay,
        bus: Bus,
        *,
        seed: bytes = b"",
        supervision: Supervision | None = None,
        on_external: Callable[[str, str], object] = lambda uplink, endpoint: None,
    ) -> None:
        self.supervision = supervision or Supervision(bus)
        self.network = network
        self.underlay = underlay
        self.check = Netcheck(network.entropy)
        self.uplinks = UplinkChecks(network.entropy)  # through which others see us: of every uplink but the first
        self.on_external = on_external
        self.mapper = PortMapping(network.entropy, self.supervision)
        self.endpoints = EndpointList()
        self.map = RelayMap()
        self.home = HomeChooser(self.map, seed=seed)
        self.home_region = 0
        self.tcp_latencies: Mapping[int, float] = {}
        self._targets: list[RegionTargets] = []
        self._published: tuple[object, ...] = ()
        self._bus = bus
        self._reported = trio.Event()
        self.last_endpoints: tuple[tuple[str, int], ...] = ()

    async def report(self, region_code: Callable[[int], str]) -> NetcheckReport:
        """Check now, in full, and say what was found."""
        if self.underlay.udp is not None or self.map.regions:
            with trio.move_on_after(REPORT_TIMEOUT):
                reported = self._reported
                self._bus.publish(ProbeRequested("asked for", full=True))
                await reported.wait()
        last = self.check.last or Report()
        latencies = last.latencies or self.tcp_latencies
        return NetcheckReport(
            udp=bool(last.working_udp),
            ipv4=format_endpoint(last.mapped_ipv4[0]) if last.mapped_ipv4 else None,
            ipv6=format_endpoint(last.mapped_ipv6[0]) if last.mapped_ipv6 else None,
            mapping_varies_by_destination=last.mapping_varies,
            port_mapping=self.mapper.service,
            home=region_code(self.home_region) if self.home_region else "",
            latencies={region_code(region): latency for region, latency in sorted(latencies.items())},
        )

    # ---- the actor's side

    async def set_map(self, wire_map: DERPMap) -> None:
        self.map = translate_map(wire_map)
        self.home.set_map(self.map)
        self._targets = []
        for number, region in self.map.regions.items():
            if region.no_measure_no_home:
                continue
            ipv4: list[tuple[str, int]] = []
            ipv6: list[tuple[str, int]] = []
            for node in region.nodes:
                for address in await stun_addresses(node):
                    (ipv6 if ":" in address else ipv4).append((address, node.stun_port or DEFAULT_STUN_PORT))
            self._targets.append(RegionTargets(number, tuple(ipv4), tuple(ipv6)))

    def begin(self, now: float, *, full: bool = False) -> None:
        if self.underlay.udp is None:
            return
        self.check.begin(self._targets, now, home=self.home_region, full=full)
        self.uplinks.begin(self.underlay.udp.uplinks, self._targets, now)
        self.send(now)

    def send(self, now: float) -> None:
        runs = self.check.transmit(now) + self.uplinks.transmit(now)
        if runs:
            self.underlay.send(runs)

    def receive(self, batch: list[tuple[bytes, Direct]], now: float) -> None:
        """Each answer to the check that asked: that of the uplink by which it came."""
        self.check.receive(self.uplinks.receive(batch, now), now)
        if (last := self.check.last) is not None and self.uplinks.first and last.mapped_ipv4:
            self.on_external(self.uplinks.first, format_endpoint(last.mapped_ipv4[0]))

    def take_uplink_reports(self, now: float) -> None:
        """What was found through the other uplinks, told at once: peers must know all addresses to open them."""
        if found := self.uplinks.take_mapped():
            for uplink, endpoint in found:
                self.on_external(uplink, format_endpoint(endpoint))
            self.publish_endpoints(now)

    def choose_home(self, latencies: Mapping[int, float], now: float) -> None:
        self.home_region = self.home.choose(latencies, now)

    def publish_endpoints(self, now: float) -> None:
        udp = self.underlay.udp
        if udp is None:
            return
        found = self.endpoints.gather(
            now,
            local_port=udp.local_port,
            interfaces=self.network.interface_addresses(),
            report=self.check.last,
            port_mapped=self.mapper.external,
            others=self.uplinks.reports(),
        )
        texts = tuple((format_endpoint(endpoint), kind) for endpoint, kind in found)
        if set(texts) != set(self.last_endpoints):
            self.last_endpoints = texts
            self._bus.publish(EndpointsChanged(texts))
        else:
            self._bus.publish(EndpointsConfirmed(texts))

    def publish_net_info(self) -> None:
        last = self.check.last or Report()
        facts = (self.home_region, last.working_udp, last.working_ipv6, last.mapping_varies, self.mapper.service)
        if not self.home_region or (facts == self._published and not last.is_full):
            return
        self._published = facts
        wire = last.wire_latencies() or {f"{region}-v4": at for region, at in self.tcp_latencies.items()}
        self._bus.publish(
            NetInfoChanged(
                home_region=self.home_region,
                latencies=wire,
                working_udp=last.working_udp,
                working_ipv6=last.working_ipv6,
                mapping_varies_by_destination=last.mapping_varies,
                port_mapping=self.mapper.service,
            )
        )

    def finish(self, now: float) -> None:
        """A check is over: tell everybody and wake who waited for it."""
        self.publish_net_info()
        self.publish_endpoints(now)
        self._reported.set()
        self._reported = trio.Event()

    async def measure_by_tcp(self) -> None:
        """Where UDP is blocked: how long a relay takes to accept a connection. One round trip, like STUN."""
        found: dict[int, float] = {}

        @trio.lowlevel.enable_ki_protection
        async def measure(region: int, node: RelayNode) -> None:
            host = literal(node.ipv4) or literal(node.ipv6) or node.host_name
            began = trio.current_time()
            try:
                stream = await self.network.open_tcp(host, node.derp_port or DEFAULT_PORT)
            except OSError:
                return
            found[region] = trio.current_time() - began
            await trio.aclose_forcefully(stream)

        with trio.move_on_after(TCP_TIMEOUT):
            async with trio.open_nursery() as nursery:
                for region in self.map.home_candidates[:MAX_TCP_PROBES]:
                    nursery.start_soon(measure, region, self.map.regions[region].relays[0])
        self.tcp_latencies = found


async def stun_addresses(node: RelayNode) -> list[str]:
    """Where a relay's STUN server listens: the map's addresses, or DNS where it gives none."""
    if node.stun_port < 0:
        return []
    texts = [node.stun_test_ip] if node.stun_test_ip else [node.ipv4, node.ipv6]
    found = [address for text in texts if (address := literal(text))]
    if found or node.stun_test_ip:
        return found
    if address := literal(node.host_name):
        return [address]
    with trio.move_on_after(1.0):
        try:
            answers = await trio.socket.getaddrinfo(node.host_name, None, type=socket.SOCK_DGRAM)
        except OSError:
            return []
        return list(dict.fromkeys(address for answer in answers if (address := literal(str(answer[4][0])))))
    return []


def literal(text: str) -> str | None:
    address = maybe_address(text)
    return format_address(address) if address is not None else None


@trio.lowlevel.enable_ki_protection
async def run_probes(
    bus: Bus, probes: Probes, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Keep the picture of the network current.

    Owns: `probes`. Hears: NetMapChanged, NetworkChanged, ProbeRequested, StunArrived, RelaysChanged.
    Says: NetInfoChanged, EndpointsChanged, EndpointsConfirmed.
    """
    kinds = (NetMapChanged, NetworkChanged, ProbeRequested, StunArrived, RelaysChanged)
    with bus.subscribe(*kinds, name="probes") as inbox:
        async with trio.open_nursery() as nursery:
            task_status.started()
            loop = _ProbeLoop(bus, probes, nursery)
            while True:
                message = None
                with trio.move_on_at(min(probes.check.next_timer(), probes.uplinks.next_timer(), loop.guess_at)):
                    message = await inbox.receive()
                await loop.step(message, trio.current_time())


class _ProbeLoop:
    """One turn at a time of `run_probes`."""

    def __init__(self, bus: Bus, probes: Probes, nursery: trio.Nursery) -> None:
        self.bus, self.probes, self.nursery = bus, probes, nursery
        self.guess_at = math.inf
        self._map: DERPMap | None = None
        self._connected: tuple[int, ...] = ()
        self._is_measuring = self._is_mapping = False

    async def step(self, message: object, now: float) -> None:
        probes = self.probes
        match message:
            case NetMapChanged(netmap) if netmap.derp_map is not self._map:
                is_first, self._map = self._map is None, netmap.derp_map
                if is_first:
                    self.guess_at = now + START_PATIENCE
                self.nursery.start_soon(self._adopt_map, netmap.derp_map)
            case NetworkChanged():
                probes.endpoints.forget()
                probes.mapper.on_network_changed()
                self._begin(now, full=True)
            case ProbeRequested(_, full):
                self._begin(now, full=full)
            case StunArrived(batch):
                probes.receive(batch, now)
            case RelaysChanged(connected):
                self._connected = connected
                if connected and self.guess_at < math.inf and not probes.check.partial():
                    # A relay took three round trips to greet us and STUN, which takes one, has not answered.
                    self.guess_at = min(self.guess_at, now + STUN_GRACE)
        probes.check.handle_timer(now)
        probes.uplinks.handle_timer(now)
        probes.take_uplink_reports(now)
        probes.send(now)
        if now >= self.guess_at:
            self._guess(now)
        for region in self._connected:
            probes.home.heard(region, now)
        report = probes.check.take_report()
        if report is not None:
            self._take(report, now)

    @trio.lowlevel.enable_ki_protection
    async def _adopt_map(self, wire_map: DERPMap) -> None:
        """Names in the map may need DNS: beside the loop, so that a dead resolver delays nothing else."""
        await self.probes.set_map(wire_map)
        self.bus.publish(ProbeRequested("relay map changed", full=True))

    def _begin(self, now: float, *, full: bool) -> None:
        probes = self.probes
        probes.begin(now, full=full)
        if not probes.check.is_running and self._map is not None and probes.check.last is None:
            self._measure()
        if probes.underlay.udp is not None and not self._is_mapping:
            self._is_mapping = True
            port = probes.underlay.udp.local_port
            self.nursery.start_soon(probes.mapper.run, probes.network, port, self._on_mapping)

    def _on_mapping(self) -> None:
        self.probes.publish_endpoints(trio.current_time())
        self.probes.publish_net_info()

    def _guess(self, now: float) -> None:
        """Nothing final yet: be usable with what there is."""
        self.guess_at = math.inf
        probes = self.probes
        if not probes.home_region:
            probes.choose_home(probes.check.partial(), now)
        probes.publish_net_info()
        probes.publish_endpoints(now)

    def _take(self, report: Report, now: float) -> None:
        probes = self.probes
        if report.latencies:
            self.guess_at = math.inf
            probes.choose_home(report.latencies, now)
            probes.finish(now)
        elif report.is_full or not probes.tcp_latencies:
            self._measure()
        else:
            probes.finish(now)

    def _measure(self) -> None:
        if not self._is_measuring:
            self._is_measuring = True
            self.nursery.start_soon(self._measure_by_tcp)

    @trio.lowlevel.enable_ki_protection
    async def _measure_by_tcp(self) -> None:
        try:
            with self.probes.supervision.contained("relay-measurement"):
                await self.probes.measure_by_tcp()
        finally:
            self._is_measuring = False
        now = trio.current_time()
        self.probes.choose_home(self.probes.tcp_latencies, now)
        self.probes.finish(now)
