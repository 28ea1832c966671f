"""Questions about a running device: who is this, how far is it, how are we doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tailscale.errors import ConnectionTimedOut, NameNotFound
from tailscale.names import literal_address
from tailscale.nodes import node_from_wire
from tailscale.status import Identity, NetcheckReport, PeerStatus, PingResult, Status
from ts_base.ip import format_address

if TYPE_CHECKING:
    from tailscale.runtime.supervisor import Runtime

PING_KINDS = ("disco", "tsmp", "icmp")


def whois(runtime: Runtime, address: str | tuple[str, int]) -> Identity:
    """The node behind an address, and what the policy grants it towards us."""
    host = address[0] if isinstance(address, tuple) else address
    raw = literal_address(host) or literal_address(host.rpartition(":")[0])
    if raw is None:
        raise ValueError(f"whois wants an IP address, alone or with a port, not {address!r}")
    node = runtime.identify(raw)
    if node is None:
        raise NameNotFound(format_address(raw), detail="no node of this tailnet has that address")
    return Identity(node, node.user, runtime.capabilities_of(raw))


async def ping(runtime: Runtime, host: str, kind: str, size: int, timeout: float) -> PingResult:
    """One ping, and the way it travelled."""
    if kind not in PING_KINDS:
        raise ValueError(f"ping kind {kind!r} is not one of {', '.join(PING_KINDS)}")
    with trio.move_on_after(timeout):
        address = runtime.reachable(await runtime.resolver.address_bytes(host), host)[0]
        latency, path = await runtime.ping(address, kind, size)
        return PingResult(latency, path, kind, runtime.identify(address))
    raise ConnectionTimedOut(f"{host} did not answer a {kind} ping within {timeout:g} s")


def status(runtime: Runtime) -> Status:
    """Everything at this moment."""
    netmap = runtime.netmap
    peers = []
    if netmap is not None:
        for peer in netmap.peers.values():
            traffic = runtime.traffic_with(peer.id)
            peers.append(
                PeerStatus(
                    node=node_from_wire(peer, netmap),
                    path=runtime.describe_peer_path(peer.id),
                    latency=runtime.latency_to(peer.id),
                    bytes_received=traffic.bytes_received,
                    bytes_sent=traffic.bytes_sent,
                    handshake_age=traffic.handshake_age,
                )
            )
    return Status(
        state=runtime.state,
        node=runtime.self_node() if netmap is not None else None,
        tailnet=netmap.domain if netmap is not None else "",
        control_url=runtime.config.control_url,
        relay=runtime.home_relay(),
        udp_port=runtime.udp_port,
        endpoints=runtime.endpoints(),
        peers=tuple(sorted(peers, key=lambda p: p.node.name)),
        health=runtime.health.active,
        drops=runtime.drops(),
    )


async def netcheck(runtime: Runtime) -> NetcheckReport:
    """Probe now and report."""
    return await runtime.netcheck()
