"""The one table of metrics: name, kind, help, labels, and how each is read off a status.

Names of tailscaled stand where the meaning is equal, so that its dashboards work; the rest is `pytailscale_*`. The page
docs/metrics.md and the dashboard are made from this table. Knows no Device, no text format and no library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, Protocol

from tailscale.status import PathTraffic, PeerStatus, Status

Kind = Literal["counter", "gauge"]
Sample = tuple[tuple[str, ...], float]  # the values of the labels, in their order, and the number
Read = Callable[[Status], Iterable[Sample]]
PEER_LABELS = ("peer", "id")  # names of two peers may be shown alike, ids never are
RUNNING = "running"

# Which of our drops mean what tailscaled counts under each reason. What it has no word for is only in ours.
INBOUND_REASONS: dict[str, tuple[str, ...]] = {
    "acl": ("filter.no_rule", "filter.not_local"),
    "multicast": ("filter.multicast",),
    "link_local_unicast": ("filter.link_local",),
    "too_short": ("ip.runt", "ip.truncated", "engine.malformed"),
    "fragment": ("ip.fragment_tiny", "ip.fragment_overlap", "ip.fragment_misaligned"),
    "unknown_protocol": ("filter.unknown_protocol",),
}
NOT_SENT = ("underlay.send_", "underlay.backlog_full", "underlay.no_socket", "relay.", "derp.queue_full")
TCP_TABLES = {f"stack.tcp.{word}": word for word in ("half_open", "listeners", "waiting", "time_wait")}
FORWARDED_FLOWS = {"forward.connections": "tcp", "forward.flows": "udp"}
PROXY_OPEN = {"proxy.open": "clients", "proxy.carried": "connections", "proxy.associations": "associations"}
INGRESS_OPEN = {"ingress.open": "clients", "ingress.carried": "connections"}
INGRESS_BYTES = {"ingress.bytes_received": "in", "ingress.bytes_sent": "out"}
PROXY_BYTES = {"proxy.bytes_received": "in", "proxy.bytes_sent": "out"}
MESH_MESSAGES = {"mesh.received": "in", "mesh.sent": "out"}
MESH_BYTES = {"mesh.bytes_received": "in", "mesh.bytes_sent": "out"}
TUN_PACKETS = {"tun.read": "out", "tun.written": "in"}
FORWARDED_BYTES = {"forward.bytes_in": "in", "forward.bytes_out": "out"}


class HasStatus(Protocol):
    """A Device, or its twin of `tailscale.sync`."""

    def status(self) -> Status: ...


class Metric(NamedTuple):
    """One row."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Read
    panel: str
    """The panel of the dashboard that shows it."""
    is_per_peer: bool
    """Told only where it is asked for: a tailnet may have thousands of peers, and their names are nobody's business."""

    @property
    def unit(self) -> str:
        """What it is counted in; "" for things."""
        words = self.name.removesuffix("_total").rpartition("_")
        return words[2] if words[2] in ("bytes", "seconds") else ""


# --- ways to read ---------------------------------------------------------------------------------


def _level(name: str) -> Read:
    """One level of the status; nothing where the device has no such part."""
    return lambda status: [((), status.counters.levels[name])] if name in status.counters.levels else []


def _levels(words: Mapping[str, str]) -> Read:
    """Several, told apart by one label."""

    def read(status: Status) -> Iterable[Sample]:
        levels = status.counters.levels
        return [((word,), levels[name]) for name, word in words.items() if name in levels]

    return read


def _below(prefix: str) -> Read:
    """Every level whose name begins so, told apart by what follows."""

    def read(status: Status) -> Iterable[Sample]:
        levels = sorted(status.counters.levels.items())
        return [((name.removeprefix(prefix),), level) for name, level in levels if name.startswith(prefix)]

    return read


def _of_ports(field: str) -> Read:
    """One count of every port that is published."""
    begins, ends = "serve.ports.", f".{field}"

    def read(status: Status) -> Iterable[Sample]:
        levels = sorted(status.counters.levels.items())
        named = [(name, level) for name, level in levels if name.startswith(begins) and name.endswith(ends)]
        return [((name.removeprefix(begins).removesuffix(ends),), level) for name, level in named]

    return read


def _links(field: str) -> Read:
    """Of every relay connection; regions are named by their numbers, as tailscaled names them."""

    def read(status: Status) -> Iterable[Sample]:
        for name, level in status.counters.levels.items():
            if name.startswith("relays.links.") and name.endswith(field):
                yield (name.removeprefix("relays.links.").removesuffix(field),), level

    return read


def _uplinks(*fields: str) -> Read:
    """Of every uplink; more fields than one are told apart by the label behind its name."""

    def read(status: Status) -> Iterable[Sample]:
        for name, level in status.counters.levels.items():
            uplink, _, field = name.removeprefix("uplinks.each.").rpartition(".")
            if name.startswith("uplinks.each.") and field in fields and not uplink.endswith(".paths"):
                yield ((uplink, field) if len(fields) > 1 else (uplink,)), level

    return read


def _uplink_paths(status: Status) -> Iterable[Sample]:
    for name, level in status.counters.levels.items():
        uplink, is_of_paths, state = name.removeprefix("uplinks.each.").rpartition(".paths.")
        if name.startswith("uplinks.each.") and is_of_paths:
            yield (uplink, state), level


def _millionths(read: Read) -> Read:
    return lambda status: [(labels, number / 1_000_000) for labels, number in read(status)]


def _drop(name: str) -> Read:
    """One reason alone."""
    return lambda status: [((), status.drops.get(name, 0))]


def _silent(status: Status) -> Iterable[Sample]:
    return [((), status.counters.levels["uplinks.silent"] / 1000)]


def _home_region(status: Status) -> Iterable[Sample]:
    homes = [int(region) for (region,), is_home in _links(".is_home")(status) if is_home]
    return [((), homes[0] if homes else 0)]


def _drops(status: Status) -> Iterable[Sample]:
    return [((name,), count) for name, count in sorted(status.drops.items())]


def _received(count: Callable[[PathTraffic], int]) -> Read:
    return lambda status: [((path,), count(one)) for path, one in status.counters.received.items()]


def _sent(count: Callable[[PathTraffic], int]) -> Read:
    return lambda status: [((path,), count(one)) for path, one in status.counters.sent.items()]


def _bytes(traffic: PathTraffic) -> int:
    return traffic.bytes


def _datagrams(traffic: PathTraffic) -> int:
    return traffic.datagrams


def _inbound_drops(status: Status) -> Iterable[Sample]:
    drops = status.drops
    return [((reason,), sum(drops.get(name, 0) for name in names)) for reason, names in INBOUND_REASONS.items()]


def _outbound_drops(status: Status) -> Iterable[Sample]:
    return [(("error",), sum(count for name, count in status.drops.items() if name.startswith(NOT_SENT)))]


def _presence(status: Status) -> Iterable[Sample]:
    seen = Counter(_presence_of(peer) for peer in status.peers)
    return [((word,), seen[word]) for word in ("online", "offline", "unknown", "expired")]


def _presence_of(peer: PeerStatus) -> str:
    if peer.node.expired:
        return "expired"
    return {True: "online", False: "offline", None: "unknown"}[peer.node.online]


def _paths(status: Status) -> Iterable[Sample]:
    """Of those peers that were spoken with: to the others there is only an idea of a path."""
    seen = Counter(peer.path.kind for peer in status.peers if peer.handshake_age is not None)
    return [((kind,), seen[kind]) for kind in ("direct", "relay", "peer relay")]


def _info(status: Status) -> Iterable[Sample]:
    from tailscale import __version__

    node = status.node
    return [((__version__, node.name if node else "", status.tailnet), 1)]


def _is_running(status: Status) -> Iterable[Sample]:
    return [((), float(status.state == RUNNING))]


def _warnings(status: Status) -> Iterable[Sample]:
    return [(("warning",), len(status.health))]


def _each_warning(status: Status) -> Iterable[Sample]:
    return [((warning.code,), 1) for warning in status.health]


def _routes(read: Callable[[Status], tuple[str, ...]]) -> Read:
    """As tailscaled counts them: without those of an exit node."""
    return lambda status: [((), sum(not route.endswith("/0") for route in read(status)))]


def _key_expiry(status: Status) -> Iterable[Sample]:
    expiry = status.node.key_expiry if status.node is not None else None
    return [((), expiry.timestamp())] if expiry is not None else []


def _of_peers(read: Callable[[PeerStatus], float | None]) -> Read:
    def read_all(status: Status) -> Iterable[Sample]:
        values = (((peer.node.name, peer.node.stable_id), read(peer)) for peer in status.peers)
        return [(labels, value) for labels, value in values if value is not None]

    return read_all


def _online(peer: PeerStatus) -> float:
    return float(bool(peer.node.online))


def _peer_paths(status: Status) -> Iterable[Sample]:
    spoken = [peer for peer in status.peers if peer.handshake_age is not None and peer.path.kind]
    return [((peer.node.name, peer.node.stable_id, peer.path.kind), 1) for peer in spoken]


# --- the table ------------------------------------------------------------------------------------


def _counter(name: str, panel: str, help: str, read: Read, *labels: str, each_peer: bool = False) -> Metric:
    return Metric(name, "counter", help, labels, read, panel, each_peer)


def _gauge(name: str, panel: str, help: str, read: Read, *labels: str, each_peer: bool = False) -> Metric:
    return Metric(name, "gauge", help, labels, read, panel, each_peer)


# fmt: off
METRICS: tuple[Metric, ...] = (
    _counter("tailscaled_inbound_bytes_total", "Bytes received",
             "WireGuard bytes received, by path.", _received(_bytes), "path"),
    _counter("tailscaled_outbound_bytes_total", "Bytes sent",
             "WireGuard bytes sent, by path.", _sent(_bytes), "path"),
    _counter("tailscaled_inbound_packets_total", "Datagrams",
             "WireGuard datagrams received, by path.", _received(_datagrams), "path"),
    _counter("tailscaled_outbound_packets_total", "Datagrams",
             "WireGuard datagrams sent, by path.", _sent(_datagrams), "path"),
    _counter("tailscaled_inbound_dropped_packets_total", "Drops",
             "Packets from peers that were dropped.", _inbound_drops, "reason"),
    _counter("tailscaled_outbound_dropped_packets_total", "Drops",
             "Datagrams to peers that could not be sent.", _outbound_drops, "reason"),
    _counter("pytailscale_drops_total", "Drops",
             "Everything dropped anywhere, by the names of docs/drops.md.", _drops, "reason"),

    _gauge("pytailscale_info", "Device",
           "Always 1; what runs here is in the labels.", _info, "version", "name", "tailnet"),
    _gauge("pytailscale_running", "Device",
           "1 while the device is joined and control answers, else 0.", _is_running),
    _gauge("pytailscale_key_expiry_timestamp_seconds", "Device",
           "When our node key expires, in Unix time; missing where it does not.", _key_expiry),
    _gauge("pytailscale_event_readers", "Device",
           "Readers of `device.events()`.", _level("events.readers")),
    _gauge("tailscaled_health_messages", "Health",
           "Warnings that are active.", _warnings, "type"),
    _gauge("pytailscale_health_warning", "Health",
           "1 for each warning that is active, by its code.", _each_warning, "code"),

    _gauge("pytailscale_peers", "Peers",
           "Peers in the netmap.", _presence, "presence"),
    _gauge("pytailscale_lock_hidden_peers", "Peers",
           "Nodes that are no peers: nobody whom the tailnet's lock trusts signed them.",
           _level("control.lock.hidden_peers")),
    _gauge("pytailscale_tunnel_sessions", "Peers",
           "WireGuard sessions.", _level("tunnel.sessions")),
    _gauge("pytailscale_peer_paths", "Paths",
           "Peers that were spoken with, by kind of path.", _paths, "kind"),
    _gauge("pytailscale_uplink_up", "Paths",
           "1 for an uplink that is there and wanted, by its name.", _uplinks("up"), "uplink"),
    _counter("pytailscale_uplink_bytes_total", "Paths",
             "The tunnel's bytes by each uplink; what relays carry is not among them.",
             _uplinks("sent", "received"), "uplink", "direction"),
    _gauge("pytailscale_path_state", "Paths",
           "Paths to peers in use, by uplink and state.", _uplink_paths, "uplink", "state"),
    _gauge("pytailscale_path_rtt_seconds", "Path round trips",
           "The mean smoothed round trip of the paths by each uplink; 0 before one was measured.",
           _millionths(_uplinks("rtt")), "uplink"),
    _gauge("pytailscale_path_loss_ratio", "Path losses",
           "The mean share that was lost lately on the paths by each uplink.",
           _millionths(_uplinks("loss")), "uplink"),
    _counter("pytailscale_path_switches_total", "Paths",
             "Changes of the path in use, where there are uplinks, by reason.", _below("uplinks.switches."), "reason"),
    _counter("pytailscale_path_gap_seconds_total", "Paths",
             "Seconds without a word of a peer before the path to it changed.", _silent),
    _counter("pytailscale_duplicates_total", "Paths",
             "Datagrams that were sent once more, by another path.", _level("uplinks.copies")),
    _counter("pytailscale_replay_drops_total", "Paths",
             "Datagrams that had come before, by another path or as copies.", _drop("tunnel.replayed")),
    _counter("pytailscale_tcp_retransmits_total", "Paths",
             "Segments of TCP that were sent again.", _level("stack.tcp.retransmitted")),
    _counter("pytailscale_stripe_fallbacks_total", "Paths",
             "Times that streams were no longer divided, by reason.", _below("uplinks.fallbacks."), "reason"),
    _gauge("pytailscale_hard_nat_sockets", "Hard NATs",
           "UDP sockets open beside the first, while a hard NAT of ours is being opened and where one was.",
           _level("paths.hard_nats.sockets")),
    _counter("pytailscale_hard_nat_probes_total", "Hard NATs",
             "Datagrams sent to open a hard NAT, ours or a peer's.", _level("paths.hard_nats.probes")),
    _counter("pytailscale_hard_nat_attempts_total", "Hard NATs",
             "Attempts to open one, by how they ended.",
             _levels({"paths.hard_nats.opened": "opened", "paths.hard_nats.failed": "failed"}), "outcome"),
    _counter("pytailscale_path_mtu_changes_total", "Path MTU",
             "Direct paths found to carry larger packets, or no more.",
             _levels({"paths.mtus.raised": "raised", "paths.mtus.withdrawn": "withdrawn"}), "change"),
    _gauge("tailscaled_home_derp_region_id", "Relays",
           "Number of the home relay's region; 0 for none.", _home_region),
    _gauge("pytailscale_relay_connected", "Relays",
           "1 for a relay connection that stands, by region.", _links(".connected"), "region"),
    _gauge("pytailscale_relay_queued_bytes", "Relays",
           "Bytes that wait for a relay, by region.", _links(".queued_bytes"), "region"),

    _gauge("pytailscale_tcp_connections", "Sockets",
           "TCP connections that are open.", _level("stack.tcp.connections")),
    _gauge("pytailscale_tcp_tables", "Sockets",
           "Entries of TCP's other tables.", _levels(TCP_TABLES), "table"),
    _gauge("pytailscale_udp_sockets", "Sockets",
           "UDP sockets that are open on the tailnet.", _level("stack.udp.ports")),
    _gauge("pytailscale_tun_up", "TUN device",
           "1 while there is a TUN device for other programs, else 0.", _level("tun.up")),
    _counter("pytailscale_tun_packets_total", "TUN device",
             "Packets of other programs: `out` read from the TUN device, `in` written to it.",
             _levels(TUN_PACKETS), "direction"),
    _gauge("tailscaled_advertised_routes", "Forwarding for others",
           "Subnets that we offer to forward.", _routes(lambda status: status.advertised_routes)),
    _gauge("tailscaled_approved_routes", "Forwarding for others",
           "Of those, the ones that control has approved.", _routes(lambda status: status.approved_routes)),
    _gauge("pytailscale_forwarded_flows", "Forwarding for others",
           "Open flows carried for others.", _levels(FORWARDED_FLOWS), "protocol"),
    _counter("pytailscale_forwarded_bytes_total", "Forwarding for others",
             "Bytes carried for others, into the tailnet and out of it.", _levels(FORWARDED_BYTES), "direction"),

    _counter("pytailscale_peerapi_requests_total", "Peer API and names",
             "Requests of peers to the peer API.", _level("peerapi.requests")),
    _gauge("pytailscale_peerapi_connections", "Peer API and names",
           "Connections of peers to the peer API.", _level("peerapi.connections")),
    _counter("pytailscale_funnel_arrived_total", "Peer API and names",
             "Connections from the internet that Funnel relays brought.", _level("funnel.arrived")),
    _gauge("pytailscale_funnel_connections", "Peer API and names",
           "Connections from the internet that are open.", _level("funnel.connections")),
    _counter("pytailscale_dns_queries_total", "Peer API and names",
             "Questions to this device as a DNS server.", _level("dns.queries")),

    _gauge("pytailscale_certificates", "Certificates",
           "Certificates that are held and renewed.", _level("certificates.held")),
    _gauge("pytailscale_certificates_failing", "Certificates",
           "Of those, the ones whose renewal fails.", _level("certificates.failing")),
    _gauge("pytailscale_certificate_expiry_timestamp_seconds", "Certificates",
           "Unix time at which the first of them expires.", _level("certificates.soonest_expiry")),

    _gauge("pytailscale_proxy_open", "Proxies",
           "What is open on all proxies together.", _levels(PROXY_OPEN), "what"),
    _counter("pytailscale_proxy_requests_total", "Proxies",
             "Requests of proxies' clients.", _below("proxy.requests."), "kind"),
    _counter("pytailscale_proxy_failures_total", "Proxies",
             "Requests that failed, by the error types of RFC 9209.", _below("proxy.failures."), "error"),
    _counter("pytailscale_proxy_bytes_total", "Proxies",
             "Bytes carried for proxies' clients, from destinations and to them.", _levels(PROXY_BYTES), "direction"),

    _gauge("pytailscale_ingress_open", "Funnel relays",
           "What is open on Funnel relays of this device.", _levels(INGRESS_OPEN), "what"),
    _gauge("pytailscale_ingress_names", "Funnel relays",
           "Connections that are carried, by the name that clients wanted.", _below("ingress.names."), "name"),
    _counter("pytailscale_ingress_clients_total", "Funnel relays",
             "Clients that came to Funnel relays.", _level("ingress.clients")),
    _counter("pytailscale_ingress_bytes_total", "Funnel relays",
             "Bytes carried for clients, towards targets and back.", _levels(INGRESS_BYTES), "direction"),

    _gauge("pytailscale_mesh_members", "Meshes",
           "Members of meshes, ourselves apart.", _level("mesh.members")),
    _gauge("pytailscale_mesh_sessions", "Meshes",
           "Members that are connected.", _level("mesh.sessions")),
    _counter("pytailscale_mesh_messages_total", "Messages of meshes",
             "Messages of meshes, answers included.", _levels(MESH_MESSAGES), "direction"),
    _counter("pytailscale_mesh_message_bytes_total", "Messages of meshes",
             "Bytes of their payloads.", _levels(MESH_BYTES), "direction"),
    _counter("pytailscale_mesh_resent_total", "Messages of meshes",
             "Messages that were sent again after a connection broke.", _level("mesh.resent")),
    _counter("pytailscale_mesh_waits_total", "Messages of meshes",
             "Messages that had to wait for a slow subscriber, or for acknowledgements.", _level("mesh.waits")),
    _gauge("pytailscale_mesh_transfers", "Meshes",
           "Transfers of files under way, whoever began them.", _below("mesh.files.open."), "direction"),
    _counter("pytailscale_mesh_file_bytes_total", "Files of meshes",
             "Bytes of files, sent and received.", _below("mesh.files.bytes."), "direction"),

    _gauge("pytailscale_taildrop_transfers", "Taildrop",
           "Files on their way here, and transfers on their way from here.", _below("taildrop.open."), "direction"),
    _gauge("pytailscale_taildrop_waiting_files", "Taildrop",
           "Files that have arrived and that nobody has taken.", _level("taildrop.waiting")),
    _counter("pytailscale_taildrop_files_total", "Files of Taildrop",
             "Files that have arrived.", _level("taildrop.files")),
    _counter("pytailscale_taildrop_file_bytes_total", "Files of Taildrop",
             "Bytes of files, sent and received.", _below("taildrop.bytes."), "direction"),

    _counter("pytailscale_serve_connections_total", "Published ports",
             "Connections to a port that is published by serve.", _of_ports("connections"), "port"),
    _gauge("pytailscale_serve_open", "Published ports",
           "Of those, still open.", _of_ports("open"), "port"),
    _counter("pytailscale_serve_refused_total", "Published ports",
             "Turned away: too many were open, or they may not come in.", _of_ports("refused"), "port"),
    _counter("pytailscale_serve_sent_bytes_total", "Published ports",
             "Bytes sent by a published TCP port.", _of_ports("bytes_sent"), "port"),
    _counter("pytailscale_serve_received_bytes_total", "Published ports",
             "Bytes received by a published TCP port.", _of_ports("bytes_received"), "port"),

    _gauge("pytailscale_ssh_connections", "SSH",
           "Connections of the SSH server, those included that are logging in.", _level("ssh.connections")),
    _gauge("pytailscale_ssh_sessions", "SSH",
           "Sessions of the SSH server.", _level("ssh.sessions")),

    _counter("pytailscale_peer_received_bytes_total", "Bytes received, by peer",
             "Bytes received from a peer.", _of_peers(lambda peer: peer.bytes_received), *PEER_LABELS, each_peer=True),
    _counter("pytailscale_peer_sent_bytes_total", "Bytes sent, by peer",
             "Bytes sent to a peer.", _of_peers(lambda peer: peer.bytes_sent), *PEER_LABELS, each_peer=True),
    _gauge("pytailscale_peer_online", "Peers, one by one",
           "1 for a peer that control says is online, else 0.", _of_peers(_online), *PEER_LABELS, each_peer=True),
    _gauge("pytailscale_peer_path", "Peers, one by one",
           "1 for the kind of path that packets to a peer take.", _peer_paths, *PEER_LABELS, "kind", each_peer=True),
    _gauge("pytailscale_peer_latency_seconds", "Latency, by peer",
           "There and back on the direct path; missing without one.",
           _of_peers(lambda peer: peer.latency), *PEER_LABELS, each_peer=True),
    _gauge("pytailscale_peer_handshake_age_seconds", "Handshakes, by peer",
           "Since the last WireGuard handshake; missing without one.",
           _of_peers(lambda peer: peer.handshake_age), *PEER_LABELS, each_peer=True),
)
# fmt: on


def chosen(peers: bool) -> tuple[Metric, ...]:
    """The rows that are told, with those of single peers or without."""
    return tuple(metric for metric in METRICS if peers or not metric.is_per_peer)
