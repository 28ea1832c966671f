"""Questions about a running device: who is this, how far is it, how are we doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tailscale.dial import failures
from tailscale.dns.names import literal_address
from tailscale.errors import NameNotFound
from tailscale.nodes import node_from_wire
from tailscale.status import HealthWarning, Identity, PeerStatus, PingResult, Status
from ts_base.ip import format_address

if TYPE_CHECKING:
    from tailscale.runtime.home import Home

PING_KINDS = ("disco", "tsmp", "icmp")


def whois(home: Home, address: str | tuple[str, int]) -> Identity:
    """The node behind an address, and what the policy grants it towards us."""
    host = address[0] if isinstance(address, tuple) else address
    raw = literal_address(host) or literal_address(host.rpartition(":")[0])
    if raw is None:
        raise ValueError(f"whois wants an IP address, alone or with a port, not {address!r}")
    node = home.identify(raw)
    if node is None:
        raise NameNotFound(format_address(raw), detail="no node of this tailnet has that address")
    return Identity(node, node.user, home.capabilities_of(raw))


async def ping(home: Home, host: str, kind: str, size: int, timeout: float) -> PingResult:
    """One ping, and the way it travelled."""
    if kind not in PING_KINDS:
        raise ValueError(f"ping kind {kind!r} is not one of {', '.join(PING_KINDS)}")
    with trio.move_on_after(timeout):
        address = (await home.destinations(host))[0]
        latency, path = await home.replies.ping(address, kind, size)
        return PingResult(latency, path, kind, home.identify(address))
    raise failures.ping_silence(host, kind, timeout, home.standing)


def status(home: Home, health: tuple[HealthWarning, ...]) -> Status:
    """Everything at this moment."""
    netmap = home.netmap
    peers = []
    if netmap is not None:
        for peer in netmap.peers.values():
            traffic = home.traffic_with(peer.id)
            peers.append(
                PeerStatus(
                    node=node_from_wire(peer, netmap),
                    path=home.describe_peer_path(peer.id),
                    latency=home.latency_to(peer.id),
                    bytes_received=traffic.bytes_received,
                    bytes_sent=traffic.bytes_sent,
                    handshake_age=traffic.handshake_age,
                )
            )
    return Status(
        state=home.state,
        node=home.self_node() if netmap is not None else None,
        tailnet=netmap.domain if netmap is not None else "",
        control_url=home.config.control_url,
        relay=home.home_relay(),
        udp_port=home.udp_port,
        endpoints=home.endpoints(),
        peers=tuple(sorted(peers, key=lambda p: p.node.name)),
        health=health,
        drops=home.drops(),
    )
