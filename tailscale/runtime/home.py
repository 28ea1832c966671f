"""What sockets, names, dialling and diagnosis ask of the device they live in: peers, routes, paths, traffic.

Answers from the current netmap and tables, never from copies of its own. Refuses to know how a connection is made.
"""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from tailscale._config import Config, Preferences
from tailscale.dial import failures
from tailscale.dns.names import literal_address
from tailscale.dns.resolvers import NameResolver
from tailscale.errors import DeviceNotReady, NameNotFound
from tailscale.nodes import Node, node_from_wire
from tailscale.runtime.awaited_answers import Replies
from tailscale.runtime.bus import Bus
from tailscale.runtime.dataplane import Dataplane
from tailscale.runtime.messages import (
    ControlStateChanged,
    EndpointsChanged,
    NetInfoChanged,
    PreferencesChanged,
    TablesChanged,
)
from tailscale.runtime.network import Network
from ts_base.ip import format_address
from ts_base.who import host_of
from ts_control import wire
from ts_control.netmap import NetMap
from ts_netstack.stack import Stack
from ts_tunnel.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Traffic:
    """What WireGuard counted with one peer."""

    bytes_received: int = 0
    bytes_sent: int = 0
    handshake_age: float | None = None


class Home:
    """One per device; everything here is a question."""

    resolver: NameResolver
    """Given by the assembly: it dials its servers, and dialling needs all of this."""

    def __init__(
        self, config: Config, network: Network, bus: Bus, stack: Stack, endpoint: Endpoint, dataplane: Dataplane
    ) -> None:
        self.config = config
        self.bus = bus
        self.stack = stack
        self.network = network
        self.replies = Replies(self, dataplane)
        self._endpoint = endpoint
        self._dataplane = dataplane

    # Time

    def now(self) -> float:
        return trio.current_time()

    def wall_clock(self) -> float:
        return self.network.wall_clock()

    def kick(self) -> None:
        self._dataplane.kick()

    # Who

    @property
    def netmap(self) -> NetMap | None:
        """The one that packets go by."""
        message = self.bus.latest(TablesChanged)
        return message.netmap if message is not None else None

    @property
    def preferences(self) -> Preferences:
        message = self.bus.latest(PreferencesChanged)
        return message.preferences if message is not None else self.config.preferences

    @property
    def state(self) -> str:
        message = self.bus.latest(ControlStateChanged)
        return message.state if message is not None else "starting"

    @property
    def standing(self) -> str:
        """The state, but an expired key stays one while control cannot be reached."""
        netmap = self.netmap
        is_expired = netmap is not None and netmap.self_node.expired
        return "expired" if is_expired and self.state in ("offline", "connecting") else self.state

    def self_node(self) -> Node:
        netmap = self.netmap
        if netmap is None:
            raise DeviceNotReady("the control server has not said yet who we are")
        return node_from_wire(netmap.self_node, netmap)

    def _wire_node(self, address: bytes) -> wire.Node | None:
        """The node that has this address, or routes it."""
        netmap, tables = self.netmap, self._dataplane.engine.tables
        if netmap is None:
            return None
        if address in tables.own:
            return netmap.self_node
        peer = tables.owner_of(address)
        if peer is not None:
            return netmap.peers.get(peer)
        text = format_address(address)  # nobody may be sent packets there; whose it is matters to an error's sentence
        return next((n for n in netmap.peers.values() if any(a.partition("/")[0] == text for a in n.addresses)), None)

    def identify(self, address: bytes) -> Node | None:
        node, netmap = self._wire_node(address), self.netmap
        return node_from_wire(node, netmap) if node is not None and netmap is not None else None

    def find_node(self, host: str) -> Node | None:
        """The node a user meant by `host`, if the netmap alone can say."""
        literal = literal_address(host)
        addresses = [literal] if literal else self.resolver.names.addresses(host)
        return self.identify(addresses[0]) if addresses else None

    def capabilities_of(self, address: bytes) -> dict[str, Any]:
        """What the policy grants `address` towards us."""
        granted: dict[str, Any] = {}
        for own in self._dataplane.engine.tables.own:
            if len(own) == len(address):
                for name, texts in self._dataplane.engine.tables.capabilities(address, own).items():
                    granted[name] = [msgspec.json.decode(text) for text in texts]
        return granted

    # Where

    def peer_for(self, address: bytes) -> int | None:
        """The peer that packets to `address` go to."""
        return self._dataplane.engine.tables.peer_for(address)

    def routes_to(self, address: bytes) -> bool:
        return self.peer_for(address) is not None

    async def destinations(self, host: str) -> list[bytes]:
        """The addresses of a host that we may try, or the error that says why none."""
        literal = literal_address(host)
        try:
            addresses = [literal] if literal else await self.resolver.address_bytes(host)
        except NameNotFound as problem:
            raise failures.unknown_name(problem, self.standing) from None
        own = self._dataplane.engine.tables.own
        usable = [a for a in addresses if a in own or self.routes_to(a)]
        if not usable:
            raise failures.no_way_to(self.identify(addresses[0]), host, addresses[0], self.standing)
        return usable

    def own_address(self, host: str | None) -> bytes | None:
        """One of our addresses in raw form; None for all of them."""
        if host is None or host in ("", "0.0.0.0", "::"):
            return None
        address = literal_address(host)
        if address is None or address not in self._dataplane.engine.tables.own:
            raise OSError(errno.EADDRNOTAVAIL, f"{host} is not an address of this device: leave host out for all")
        return address

    async def resolve_address(self, host: str, family_of: bytes | None = None) -> bytes:
        """The first address of `host` that has a route, in the family of one of our own addresses if asked."""
        fitting = [a for a in await self.destinations(host) if family_of is None or len(a) == len(family_of)]
        if not fitting:
            family = "IPv4" if family_of is not None and len(family_of) == 4 else "IPv6"
            raise OSError(
                errno.EAFNOSUPPORT, f"{host} has no {family} address, and this socket is bound to one of ours"
            )
        return fitting[0]

    def describe_path(self, address: bytes) -> str:
        node = self._wire_node(address)
        return self.describe_peer_path(node.id) if node is not None else ""

    def describe_peer_path(self, peer: int) -> str:
        report = self._dataplane.finder.report(peer, self.now())
        if report.best is not None and report.is_trusted:
            return self.path_text(report.best)
        return self.path_text(report.relay)

    def path_text(self, path: tuple[Any, ...] | None) -> str:
        """`direct 192.0.2.7:41641`, `relay fra`, `peer relay 192.0.2.9:7777`."""
        if path is None:
            return ""
        if type(path[0]) is int:
            return f"relay {self.region_code(path[0])}"
        host = f"[{host_of(path)}]" if ":" in path[0] else host_of(path)
        return f"{'direct' if len(path) == 2 else 'peer relay'} {host}:{path[1]}"

    def region_code(self, number: int) -> str:
        netmap = self.netmap
        region = netmap.derp_map.live_regions().get(number) if netmap is not None else None
        return region.region_code if region is not None and region.region_code else str(number)

    def home_relay(self) -> str:
        message = self.bus.latest(NetInfoChanged)
        return self.region_code(message.home_region) if message is not None and message.home_region else ""

    def endpoints(self) -> tuple[str, ...]:
        message = self.bus.latest(EndpointsChanged)
        return tuple(text for text, _ in message.endpoints) if message is not None else ()

    # How well

    @property
    def udp_port(self) -> int:
        udp = self._dataplane.underlay.udp
        return udp.local_port if udp is not None else 0

    def has_session(self, peer: int) -> bool:
        return self.traffic_with(peer).handshake_age is not None

    def traffic_with(self, peer: int) -> Traffic:
        counted = self._endpoint.peer_statistics(peer)
        if counted is None:
            return Traffic()
        age = None if counted.handshake_at is None else max(0.0, self.now() - counted.handshake_at)
        return Traffic(counted.bytes_in, counted.bytes_out, age)

    def latency_to(self, peer: int) -> float | None:
        report = self._dataplane.finder.report(peer, self.now())
        return report.latency if report.best is not None and math.isfinite(report.latency) else None

    def drops(self) -> dict[str, int]:
        """Everything that was dropped anywhere, by reason."""
        dataplane = self._dataplane
        merged: dict[str, int] = {}
        for counters in (dataplane.engine.drops, self._endpoint.drops, self.stack.drops, dataplane.finder.drops):
            for reason, count in counters.items():
                merged[reason] = merged.get(reason, 0) + count
        return merged

    def close(self) -> None:
        """The device ends: close every socket, and let whoever waits on one hear of it."""
        for socket in self.stack.sockets():
            if socket.owner is not None:
                socket.owner.shut()
