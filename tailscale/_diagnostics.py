"""Questions about a running device, who is this, how are we doing; and one that needs none: is control there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tailscale.dns.names import literal_address
from tailscale.errors import NameNotFound
from tailscale.nodes import node_from_wire
from tailscale.runtime.network import HostNetwork
from tailscale.status import HealthWarning, Identity, PeerStatus, Status
from ts_base.ip import format_address
from ts_base.keys import MachinePrivate
from ts_control.client import ControlClient

if TYPE_CHECKING:
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
    return Identity(node, node.user, directory.capabilities_of(raw))


def status(directory: Directory, reach: Reach, traffic: Traffic, health: tuple[HealthWarning, ...]) -> Status:
    """Everything at this moment."""
    netmap = directory.netmap
    peers = []
    if netmap is not None:
        for peer in netmap.peers.values():
            counted = traffic.with_peer(peer.id)
            peers.append(
                PeerStatus(
                    node=node_from_wire(peer, netmap),
                    path=reach.path_of(peer.id),
                    latency=reach.latency_to(peer.id),
                    bytes_received=counted.bytes_received,
                    bytes_sent=counted.bytes_sent,
                    handshake_age=counted.handshake_age,
                )
            )
    return Status(
        state=directory.state.value,
        node=directory.self_node() if netmap is not None else None,
        tailnet=netmap.domain if netmap is not None else "",
        control_url=directory.control_url,
        relay=directory.home_relay(),
        udp_port=traffic.udp_port,
        endpoints=directory.endpoints(),
        peers=tuple(sorted(peers, key=lambda p: p.node.name)),
        health=health,
        drops=traffic.drops(),
    )


async def greet_control(url: str) -> None:
    """Dial, TLS, key, upgrade and Noise handshake, with a key nobody knows: all but saying who we are."""
    network = HostNetwork()
    client = ControlClient(url, network, MachinePrivate.generate(network.entropy(32)), environment=os.environ)
    async with client.connect():
        pass
