"""Who is in the tailnet, and how we stand in it: the netmap that packets go by, and what control says of us.

Answers from the newest facts on the bus, never from copies of its own. Refuses to know paths, and names that only a
resolver knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tailscale._config import Config, Preferences
from tailscale.errors import DeviceNotReady
from tailscale.nodes import Node, named, node_from_wire
from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import (
    ControlStateChanged,
    EndpointsChanged,
    NetInfoChanged,
    PreferencesChanged,
    RelaysChanged,
    TablesChanged,
)
from ts_base.errors import BadPacket
from ts_base.ip import format_address, parse_prefix, prefix_contains
from ts_base.who import PeerId
from ts_control import wire
from ts_control.netmap import NetMap
from ts_control.session import Phase
from ts_dataplane.engine import Engine


class Directory:
    """One per device; everything here is a question."""

    def __init__(self, config: Config, bus: Bus, engine: Engine, wall_clock: Callable[[], float]) -> None:
        self.control_url = config.control_url
        self.wall_clock = wall_clock
        self._first_preferences = config.preferences
        self._bus = bus
        self._engine = engine

    @property
    def netmap(self) -> NetMap | None:
        """The one that packets go by."""
        message = self._bus.latest(TablesChanged)
        return message.netmap if message is not None else None

    @property
    def preferences(self) -> Preferences:
        message = self._bus.latest(PreferencesChanged)
        return message.preferences if message is not None else self._first_preferences

    # Ourselves

    @property
    def state(self) -> Phase:
        """Where the control session stands."""
        message = self._bus.latest(ControlStateChanged)
        return message.state if message is not None else Phase.STARTING

    @property
    def standing(self) -> Phase:
        """The state, but an expired key stays one while control cannot be reached."""
        netmap = self.netmap
        is_expired = netmap is not None and netmap.self_node.expired
        return Phase.EXPIRED if is_expired and self.state in (Phase.OFFLINE, Phase.CONNECTING) else self.state

    def known_netmap(self) -> NetMap:
        """What control has said; DeviceNotReady before it has said anything."""
        netmap = self.netmap
        if netmap is None:
            raise DeviceNotReady("the control server has not said yet who we are")
        return netmap

    def self_node(self) -> Node:
        netmap = self.known_netmap()
        return node_from_wire(netmap.self_node, netmap)

    @property
    def own_addresses(self) -> tuple[bytes, ...]:
        return self._engine.tables.own

    def is_ours(self, address: bytes) -> bool:
        return address in self._engine.tables.own

    def home_relay(self) -> str:
        """The code of our home relay's region; empty while there is none."""
        message = self._bus.latest(NetInfoChanged)
        return self.region_code(message.home_region) if message is not None and message.home_region else ""

    @property
    def has_relay(self) -> bool:
        """Whether our home relay is connected."""
        message = self._bus.latest(RelaysChanged)
        return message is not None and message.home_connected

    @property
    def clock_behind(self) -> float:
        """Seconds that our clock is behind control's, negative where it is ahead; 0 where they agree to the minute."""
        netmap = self.netmap
        return netmap.clock_offset if netmap is not None else 0.0

    def endpoints(self) -> tuple[str, ...]:
        """Where we can be reached directly."""
        message = self._bus.latest(EndpointsChanged)
        return tuple(text for text, _ in message.endpoints) if message is not None else ()

    # Others

    def node(self, peer: PeerId) -> Node | None:
        """The peer with this number, while it is in the tailnet."""
        netmap = self.netmap
        known = netmap.peers.get(peer) if netmap is not None else None
        return node_from_wire(known, netmap) if known is not None and netmap is not None else None

    def peers(self) -> list[Node]:
        """Everybody else."""
        netmap = self.netmap
        return [node_from_wire(peer, netmap) for peer in netmap.peers.values()] if netmap is not None else []

    def peer_named(self, wanted: str) -> PeerId | None:
        """The peer that a person means by a name, an address or a stable id."""
        netmap = self.netmap
        found = named(wanted, netmap.peers.values()) if netmap is not None else None
        return found.id if found is not None else None

    def wire_node(self, address: bytes) -> wire.Node | None:
        """The node that has this address, or routes it, in control's own words."""
        netmap, tables = self.netmap, self._engine.tables
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
        """The node that has this address, or routes it."""
        node, netmap = self.wire_node(address), self.netmap
        return node_from_wire(node, netmap) if node is not None and netmap is not None else None

    def profile_of(self, address: bytes) -> wire.UserProfile:
        """What control says of the user of the node at this address; a tagged node has none."""
        node, netmap = self.wire_node(address), self.netmap
        if netmap is None or node is None or node.tags:
            return wire.UserProfile()
        known = netmap.user_profiles.get(node.user)
        return known if known is not None else wire.UserProfile()

    def offer_of(self, address: bytes) -> tuple[Node, str, bool] | None:
        """A peer that would route `address`, by which route, and whether that is approved: the narrowest there is."""
        netmap, found = self.netmap, None
        for peer in netmap.peers.values() if netmap is not None else ():
            approved = set(peer.allowed_ips or ())
            for text in (*approved, *peer.hostinfo.routable_ips):
                length = _length_around(text, address)
                if length and (found is None or length > found[0]):
                    found = length, peer, text, text in approved
        if found is None or netmap is None:
            return None
        return node_from_wire(found[1], netmap), found[2], found[3]

    def capabilities_of(self, address: bytes) -> dict[str, Any]:
        """What the policy grants `address` towards us."""
        granted: dict[str, Any] = {}
        for own in self._engine.tables.own:
            if len(own) == len(address):
                for name, texts in self._engine.tables.capabilities(address, own).items():
                    granted[name] = [msgspec.json.decode(text) for text in texts]
        return granted

    def region_code(self, number: int) -> str:
        """A relay region as people call it."""
        netmap = self.netmap
        region = netmap.derp_map.live_regions().get(number) if netmap is not None else None
        return region.region_code if region is not None and region.region_code else str(number)


def _length_around(text: str, address: bytes) -> int:
    """The length of a prefix that holds `address`; 0 for one that does not, and for a default route."""
    try:
        prefix = parse_prefix(text)
    except BadPacket:
        return 0
    return prefix[1] if len(prefix[0]) == len(address) and prefix_contains(prefix, address) else 0
