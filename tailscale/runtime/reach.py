"""Which way leads where: routes, the path of each peer in words and fields, and how well it does.

Answers from the current tables and the path finder, never from copies of its own. Refuses to know names, and how a
connection is made.
"""

from __future__ import annotations

import math

import trio

from tailscale.runtime.dataplane import Dataplane
from tailscale.runtime.directory import Directory
from tailscale.status import PathInfo, PathKind
from ts_base.ip import TCP
from ts_base.who import Direct, Path, PeerId, PeerRelayed, host_of, is_direct, is_peer_relayed, is_relayed, uplink_of
from ts_dataplane.filter import ADMITTED
from ts_dataplane.packets import SYN, Parsed
from ts_tunnel.endpoint import Endpoint

NO_PATH = PathInfo()


class Reach:
    """One per device; everything here is a question."""

    def __init__(self, directory: Directory, dataplane: Dataplane, endpoint: Endpoint) -> None:
        self._directory = directory
        self._dataplane = dataplane
        self._endpoint = endpoint

    def peer_for(self, address: bytes, via: PeerId = 0) -> PeerId | None:
        """The peer that packets to `address` go to; None too where `via` is named and does not take them."""
        return self._dataplane.engine.tables.peer_for(address, via)

    def routes_to(self, address: bytes, via: PeerId = 0) -> bool:
        return self.peer_for(address, via) is not None

    def is_inside(self, address: bytes) -> bool:
        """Whether a node has `address`, or routes it as more than an exit."""
        return self._dataplane.engine.tables.is_inside(address)

    def is_exit(self, peer: PeerId) -> bool:
        """Whether a peer offers a default route, and can be reached."""
        return peer in self._dataplane.engine.tables.exits

    @property
    def exit_is_missing(self) -> bool:
        """Whether an exit node was chosen that cannot be used."""
        return self._dataplane.engine.tables.exit_is_missing

    def admits(self, source: bytes, destination: bytes, port: int) -> bool:
        """Whether the policy here lets `source` open `port` of our address `destination`."""
        tables = self._dataplane.engine.tables
        peer = tables.owner_of(source)
        opening = Parsed(TCP, source, destination, 0, port, SYN)
        return peer is not None and tables.judge(peer, b"", opening) == ADMITTED

    def left_paths(self, peer: PeerId) -> tuple[Direct, ...]:
        """Direct paths of a peer that are left alone: pings pass there, large packets or the tunnel's own do not."""
        return self._dataplane.finder.report(peer, trio.current_time()).blocked

    def about_hard_nats(self, peer: PeerId) -> str:
        """Whether a hard NAT keeps a peer on the relay, and what is done about it; "" where nothing is known of one."""
        found = self._dataplane.finder.report(peer, trio.current_time()).hard_nat
        if found.is_trying:
            return "a way through a hard NAT is being opened right now"
        ours = "our router uses another port for every destination (a hard NAT)"
        if not found.is_allowed:
            return f"{ours}, and hard_nats=False or several uplinks forbid to open a way" if found.is_ours_hard else ""
        if found.rest:
            whose = ours if found.is_ours_hard else "its router uses another port for every destination (a hard NAT)"
            return f"{whose}: an attempt to open a way has failed, the next may begin in {found.rest:.0f} s"
        return f"{ours}; a way through it is opened once there is traffic" if found.is_ours_hard else ""

    def path_to(self, address: bytes) -> PathInfo:
        """How packets travel to whoever has `address`, or routes it."""
        node = self._directory.wire_node(address)
        return self.path_of(node.id) if node is not None else NO_PATH

    def path_of(self, peer: PeerId) -> PathInfo:
        report = self._dataplane.finder.report(peer, trio.current_time())
        return self.describe(report.best if report.best is not None and report.is_trusted else report.relay)

    def describe(self, path: Path | None) -> PathInfo:
        """A path as people read it."""
        if path is None:
            return NO_PATH
        if is_relayed(path):
            return PathInfo("relay", self._directory.region_code(path[0]))
        if is_direct(path):
            return _by_udp("direct", path)
        return _by_udp("peer relay", path) if is_peer_relayed(path) else NO_PATH

    def has_session(self, peer: PeerId) -> bool:
        """Whether a WireGuard session was ever made with a peer."""
        return self._endpoint.peer_statistics(peer).handshake_at is not None

    def latency_to(self, peer: PeerId) -> float | None:
        """Seconds on the direct path, if there is one."""
        report = self._dataplane.finder.report(peer, trio.current_time())
        return report.latency if report.best is not None and math.isfinite(report.latency) else None


def _by_udp(kind: PathKind, path: Direct | PeerRelayed) -> PathInfo:
    host = host_of(path)
    where = f"[{host}]:{path[1]}" if ":" in host else f"{host}:{path[1]}"
    return PathInfo(kind, where, uplink_of(path))
