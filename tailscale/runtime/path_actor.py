"""Feeds the path finder with what control, the probes and the relays say, and keeps our addresses fresh while in use.

The packet loop drives the finder directly (`dataplane.py`); this room only translates facts. `announce` is the way
back, for whoever takes the finder's messages: what it says, in the bus's words.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Callable, Iterable, Iterator

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
from ts_base.ip import Prefix, parse_prefix, prefix_contains
from ts_base.who import PeerId
from ts_control.netmap import NetMap, peers_changed
from ts_control.wire import Node
from ts_dataplane.candidates import parse_endpoint_untrusted
from ts_dataplane.path_messages import BestPathChanged, FinderMessage, NeedStun
from ts_dataplane.paths import PathFinder
from ts_dataplane.peer_paths import PeerPaths
from ts_derp.machine import PeerGone
from ts_tunnel.messages import PeerSilence

RELAY_TARGET = "tailscale.com/cap/relay-target"
RELAYS_SINCE = 121  # capability version
WATCH_INTERVAL = 5.0
PEERS_PER_STEP = 500  # of a large netmap, before other tasks get a turn
RESTUN_LEAST, RESTUN_SPREAD = 20, 6  # seconds; below the 30 after which Linux routers forget a mapping


def restun_delay() -> float:
    return RESTUN_LEAST + secrets.randbelow(RESTUN_SPREAD * 1000) / 1000


class PeerTranslator:
    """Control's nodes as the finder's facts; follows snapshots, so that a delta costs what changed."""

    def __init__(self) -> None:
        self._netmap = NetMap.empty()
        self._servers = RelayServers(self._netmap)

    def follow(self, netmap: NetMap) -> tuple[list[int], list[int]]:
        """Which peers must be told to the finder anew, and which are gone."""
        before, self._netmap = self._netmap, netmap
        if netmap.packet_filters is before.packet_filters and netmap.self_node.addresses == before.self_node.addresses:
            return peers_changed(before, netmap)
        old, self._servers = self._servers, RelayServers(netmap)
        if old == self._servers:
            return peers_changed(before, netmap)
        return list(netmap.peers), [peer for peer in before.peers if peer not in netmap.peers]

    def facts(self, peers: Iterable[int]) -> dict[int, PeerPaths]:
        nodes, servers = self._netmap.peers, self._servers
        return {peer: peer_paths(nodes[peer], serves_relay=servers.include(nodes[peer])) for peer in peers}


class RelayServers:
    """Whom control allows us to use as a relay: who holds the capability towards us."""

    def __init__(self, netmap: NetMap) -> None:
        own = _addresses(netmap.self_node.addresses)
        self._texts: set[str] = set()
        for rule in netmap.packet_filters:
            for grant in rule.cap_grant:
                if RELAY_TARGET not in grant.cap_map and RELAY_TARGET not in grant.caps:
                    continue
                towards = _Sources(grant.dsts)
                if any(towards.hold(address) for address in own):
                    self._texts.update(rule.src_ips)
        self._sources = _Sources(self._texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RelayServers) and self._texts == other._texts

    __hash__ = None  # type: ignore[assignment]

    def include(self, node: Node) -> bool:
        if not self._texts or node.cap < RELAYS_SINCE:
            return False
        return any(self._sources.hold(address) for address in _addresses(node.addresses))


class _Sources:
    """Addresses as a filter rule names them: `*`, single ones, prefixes. What cannot be read names nobody."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._everybody = False
        self._hosts: set[bytes] = set()
        self._prefixes: list[Prefix] = []
        for text in texts:
            if text == "*":
                self._everybody = True
                continue
            with contextlib.suppress(BadPacket):
                address, length = parse_prefix(text)
                if length == 8 * len(address):
                    self._hosts.add(address)
                else:
                    self._prefixes.append((address, length))

    def hold(self, address: bytes) -> bool:
        if self._everybody or address in self._hosts:
            return True
        return any(prefix_contains(prefix, address) for prefix in self._prefixes)


def _addresses(texts: Iterable[str]) -> list[bytes]:
    found = []
    for text in texts:
        with contextlib.suppress(BadPacket):
            found.append(parse_prefix(text)[0])
    return found


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


def batched(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def announce(bus: Bus, message: FinderMessage) -> None:
    """Tell the bus what the finder said; pings are between the finder and whoever asked for them."""
    if isinstance(message, BestPathChanged):
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


@trio.lowlevel.enable_ki_protection
async def run_paths(
    bus: Bus,
    finder: PathFinder,
    flush: Callable[[float], None],
    *,
    silence_of: Callable[[PeerId], PeerSilence] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep the finder's facts current.

    Owns: the translation, the re-STUN clock. Hears: NetMapChanged, EndpointsChanged, EndpointsConfirmed,
    NetworkChanged, RelayFrameArrived. Says: ProbeRequested. What the finder then wants sent and said leaves by
    `flush`; `silence_of` tells what a peer owes the tunnel.
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
                    changed, removed = translator.follow(netmap)
                    finder.change_peers({}, removed, now)
                    for few in batched(changed, PEERS_PER_STEP):
                        finder.change_peers(translator.facts(few), (), trio.current_time())
                        if len(few) == PEERS_PER_STEP:
                            await trio.lowlevel.checkpoint()
                    if netmap.peers:
                        restun_at = min(restun_at, now + RESTUN_LEAST)
                        watch_at = min(watch_at, now + WATCH_INTERVAL) if silence_of is not None else math.inf
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
            if silence_of is not None and now >= watch_at:
                watch_at = now + WATCH_INTERVAL
                for peer in finder.trusted_peers(now):
                    finder.judge_silence(peer, silence_of(peer), now)
            flush(now)
