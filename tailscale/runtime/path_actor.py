"""Feeds the path finder with what control, the probes and the relays say, and keeps our addresses fresh while in use.

The packet loop drives the finder directly (`dataplane.py`); this room only translates facts. `announce` is the way
back, for whoever takes the finder's messages: what it says, in the bus's words.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping

import trio

from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import (
    EndpointsChanged,
    EndpointsConfirmed,
    NetMapChanged,
    NetworkChanged,
    PeerPathChanged,
    ProbeRequested,
    RelayFrameArrived,
)
from ts_base.errors import BadPacket
from ts_base.ip import parse_address, parse_prefix, prefix_contains
from ts_control.netmap import NetMap
from ts_control.wire import Node
from ts_dataplane.candidates import parse_endpoint_untrusted
from ts_dataplane.paths import FinderMessage, NeedStun, PathChanged, PathFinder
from ts_dataplane.peer_paths import PeerPaths
from ts_derp.machine import PeerGone

RELAY_TARGET = "tailscale.com/cap/relay-target"
RELAYS_SINCE = 121  # capability version
WATCH_INTERVAL = 5.0
RESTUN_LEAST, RESTUN_SPREAD = 20, 6  # seconds; below the 30 after which Linux routers forget a mapping


def restun_delay() -> float:
    return RESTUN_LEAST + secrets.randbelow(RESTUN_SPREAD * 1000) / 1000


class PeerTranslator:
    """Control's nodes as the finder's facts. An unchanged node keeps its object, so a delta costs what changed."""

    def __init__(self) -> None:
        self._nodes: Mapping[int, Node] = {}
        self._facts: dict[int, PeerPaths] = {}

    def translate(self, netmap: NetMap) -> Mapping[int, PeerPaths]:
        nodes, old_nodes, old_facts = netmap.peers, self._nodes, self._facts
        servers = relay_servers(netmap)
        self._facts = {
            peer: old_facts[peer]
            if old_nodes.get(peer) is node and old_facts[peer].serves_relay == (peer in servers)
            else peer_paths(node, serves_relay=peer in servers)
            for peer, node in nodes.items()
        }
        self._nodes = nodes
        return self._facts


def relay_servers(netmap: NetMap) -> set[int]:
    """Peers that control allows us to use as relays: they hold the capability towards us."""
    sources: set[str] = set()
    for rule in netmap.packet_filters:
        if any(RELAY_TARGET in grant.cap_map or RELAY_TARGET in grant.caps for grant in rule.cap_grant):
            sources.update(rule.src_ips)
    if not sources:
        return set()
    return {
        peer
        for peer, node in netmap.peers.items()
        if node.cap >= RELAYS_SINCE and any(is_among(address, sources) for address in node.addresses)
    }


def is_among(address: str, sources: set[str]) -> bool:
    host = address.partition("/")[0]
    if "*" in sources or host in sources or address in sources:
        return True
    try:
        raw = parse_address(host)
        return any(prefix_contains(parse_prefix(text), raw) for text in sources if "/" in text)
    except BadPacket:
        return False


def peer_paths(node: Node, *, serves_relay: bool = False) -> PeerPaths:
    return PeerPaths(
        serves_relay=serves_relay,
        node_key=node.key.raw,
        disco_key=None if node.disco_key.is_zero else node.disco_key.raw,
        endpoints=tuple(node.endpoints or ()),
        home_region=node.home_derp,
        wireguard_only=node.is_wireguard_only,
        expired=node.expired,
    )


def announce(bus: Bus, message: FinderMessage) -> None:
    """Tell the bus what the finder said; pings are between the finder and whoever asked for them."""
    if isinstance(message, PathChanged):
        bus.publish(PeerPathChanged(message.peer, message.path, message.latency))
    elif isinstance(message, NeedStun):
        bus.publish(ProbeRequested(message.reason))


def direct_paths(endpoints: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """The addresses of an endpoint list whose entries are ("host:port", type)."""
    paths = []
    for text, _ in endpoints:
        try:
            paths.append(parse_endpoint_untrusted(text))
        except BadPacket:
            continue
    return paths


async def run_paths(
    bus: Bus,
    finder: PathFinder,
    flush: Callable[[float], None],
    *,
    traffic: Callable[[int], tuple[int, int]] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep the finder's facts current.

    Owns: the translation, the re-STUN clock. Hears: NetMapChanged, EndpointsChanged, EndpointsConfirmed,
    NetworkChanged, RelayFrameArrived. Says: ProbeRequested. What the finder then wants sent and said leaves by
    `flush`; `traffic` tells how many packets the tunnel has (received from, sent to) a peer.
    """
    kinds = (NetMapChanged, EndpointsChanged, EndpointsConfirmed, NetworkChanged, RelayFrameArrived)
    translator = PeerTranslator()
    with bus.subscribe(*kinds, name="paths") as inbox:
        task_status.started()
        restun_at = watch_at = math.inf
        while True:
            message = None
            with trio.move_on_at(min(restun_at, watch_at)):
                message = await inbox.receive()
            now = trio.current_time()
            match message:
                case NetMapChanged(netmap):
                    finder.set_peers(translator.translate(netmap), now)
                    if netmap.peers:
                        restun_at = min(restun_at, now + RESTUN_LEAST)
                        watch_at = min(watch_at, now + WATCH_INTERVAL) if traffic is not None else math.inf
                case EndpointsChanged(endpoints) | EndpointsConfirmed(endpoints):
                    finder.set_endpoints(direct_paths(endpoints), now)
                    restun_at = now + restun_delay()
                case NetworkChanged(rebound):
                    if rebound:
                        finder.on_network_changed(now)
                case RelayFrameArrived(region, PeerGone() as gone):
                    finder.on_relay_gone(region, gone.peer, now)
            if now >= restun_at:
                restun_at = now + restun_delay()
                if finder.is_active(now):
                    bus.publish(ProbeRequested("periodic"))
            if traffic is not None and now >= watch_at:
                watch_at = now + WATCH_INTERVAL
                for peer in finder.trusted_peers(now):
                    finder.on_traffic(peer, *traffic(peer), now)
            flush(now)
