"""Questions about a running device, who is this, how are we doing; and one that needs none: is control there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tailscale.dns.names import literal_address
from tailscale.errors import NameNotFound
from tailscale.forwarding import Forwarding
from tailscale.nodes import Node, Peers, no_such_peer, node_from_wire
from tailscale.runtime.network import HostNetwork
from tailscale.runtime.translate_tables import served_routes
from tailscale.status import Counters, ExitNode, HealthWarning, Identity, PeerStatus, Status
from ts_base.ip import format_address
from ts_base.keys import MachinePrivate
from ts_control.client import ControlClient
from ts_control.wire import Hostinfo, Location

if TYPE_CHECKING:
    from tailscale.runtime import forward_flows
    from tailscale.runtime.directory import Directory
    from tailscale.runtime.reach import Reach
    from tailscale.runtime.traffic import Traffic


def whois(directory: Directory, address: str | tuple[str, int]) -> Identity:
    """The node behind an address, and what the policy grants it towards us."""
    host = address[0] if isinstance(address, tuple) else address
    raw = literal_address(host) or literal_address(host.rpartition(":")[0])
    if raw is None:
        raise ValueError(f"whois wants an IP address, alone or with a port, not {address!r}")
    node = directory.identify(raw)
    if node is None:
        raise NameNotFound(format_address(raw), detail="no node of this tailnet has that address")
    profile = directory.profile_of(raw)
    grants = directory.capabilities_of(raw)
    return Identity(node, node.user, grants, profile.display_name, profile.profile_pic_url, profile.groups)


def caller(directory: Directory, address: tuple[str, int]) -> Identity | None:
    """The node that has an address itself; None for a host behind a subnet router, which is nobody's identity."""
    try:
        identity = whois(directory, address)
    except NameNotFound:
        return None
    return identity if address[0] in identity.node.addresses else None


def granted(directory: Directory, node: Node) -> dict[str, Any]:
    """What the policy grants a node towards us, whichever of its addresses it is granted to."""
    found: dict[str, Any] = {}
    for address in node.addresses:
        raw = literal_address(address)
        found |= directory.capabilities_of(raw) if raw is not None else {}
    return found


def exit_nodes(directory: Directory, reach: Reach) -> tuple[ExitNode, ...]:
    """Everybody who offers a default route, where they are and how well they do."""
    netmap = directory.netmap
    if netmap is None:
        return ()
    return tuple(
        _exit_node(node_from_wire(peer, netmap), peer.hostinfo, reach)
        for peer in sorted(netmap.peers.values(), key=lambda peer: peer.name)
        if reach.is_exit(peer.id)
    )


def _exit_node(node: Node, hostinfo: Hostinfo | None, reach: Reach) -> ExitNode:
    place = (hostinfo.location if hostinfo is not None else None) or Location()
    return ExitNode(
        node=node,
        country=place.country,
        country_code=place.country_code,
        city=place.city,
        city_code=place.city_code,
        priority=place.priority,
        online=node.online,
        path=reach.path_of(node.id),
        latency=reach.latency_to(node.id),
    )


def status(
    directory: Directory, reach: Reach, traffic: Traffic, counters: Counters, health: tuple[HealthWarning, ...]
) -> Status:
    """Everything at this moment."""
    netmap = directory.netmap
    peers: list[PeerStatus] = []
    if netmap is not None:
        peers = [_peer_status(node_from_wire(peer, netmap), reach, traffic) for peer in netmap.peers.values()]
    node = directory.self_node() if netmap is not None else None
    advertised, approved = routes(directory)
    return Status(
        state=directory.state.value,
        node=node,
        tailnet=netmap.domain if netmap is not None else "",
        control_url=directory.control_url,
        relay=directory.home_relay(),
        udp_port=traffic.udp_port,
        endpoints=directory.endpoints(),
        peers=tuple(sorted(peers, key=lambda p: p.node.name)),
        health=health,
        counters=counters,
        advertised_routes=advertised,
        approved_routes=approved,
    )


def routes(directory: Directory) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What we advertise, and what of it control approves."""
    advertised, netmap = directory.preferences.offered_routes, directory.netmap
    allowed = served_routes(netmap.self_node) if netmap is not None else ()
    return advertised, tuple(route for route in advertised if route in allowed)


def forwarding(directory: Directory, carrying: forward_flows.Forwarding) -> Forwarding:
    """What we carry for others."""
    advertised, approved = routes(directory)
    counted = carrying.statistics()
    return Forwarding(
        advertised=advertised,
        approved=approved,
        tcp=counted.connections,
        udp=counted.flows,
        dials=counted.dials,
        refused=counted.drops,
        bytes_in=counted.bytes_in,
        bytes_out=counted.bytes_out,
    )


def node_of(directory: Directory, peer: str | Node) -> Node:
    """The peer of that name, address or id; NoSuchPeer for a stranger."""
    wanted = peer.id if isinstance(peer, Node) else directory.peer_named(peer)
    node = directory.node(wanted) if wanted is not None else None
    if node is None:
        raise no_such_peer("peer", peer.hostname if isinstance(peer, Node) else peer, Peers(directory.netmap).close_to)
    return node


def peer_status(directory: Directory, reach: Reach, traffic: Traffic, peer: str | Node) -> PeerStatus:
    """The same of one peer."""
    node = node_of(directory, peer)
    return _peer_status(node, reach, traffic)


def _peer_status(node: Node, reach: Reach, traffic: Traffic) -> PeerStatus:
    counted = traffic.with_peer(node.id)
    return PeerStatus(
        node=node,
        path=reach.path_of(node.id),
        latency=reach.latency_to(node.id),
        bytes_received=counted.bytes_received,
        bytes_sent=counted.bytes_sent,
        handshake_age=counted.handshake_age,
        unanswered_for=counted.unanswered_for,
    )


async def greet_control(url: str) -> None:
    """Dial, TLS, key, upgrade and Noise handshake, with a key nobody knows: all but saying who we are."""
    network = HostNetwork()
    client = ControlClient(url, network, MachinePrivate.generate(network.entropy(32)), environment=os.environ)
    async with client.connect():
        pass
