"""What a Device knows about itself, as plain values: `device.status().to_dict()` is JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from tailscale._spelling import PingKind as PingKind
from tailscale.foreign_text import for_terminal
from tailscale.nodes import Node, counted


@dataclass(frozen=True, slots=True)
class HealthWarning:
    """Something is wrong right now, what it means, and what helps."""

    code: str
    sentence: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return {"code": self.code, "sentence": self.sentence, "remedy": self.remedy}


PathKind = Literal["", "direct", "relay", "peer relay"]


@dataclass(frozen=True, eq=False, repr=False)
class PathInfo(str):
    """How packets travel to a peer: a sentence for people, with its parts as fields for programs.

    ```python
    path = (await device.ping("db")).path
    print(path, "-", path.kind, path.where)
    ```
    """

    kind: PathKind = ""
    """"" when nothing is known, and the text is empty then."""
    where: str = ""
    """The peer's (or the relaying peer's) address and port, or the relay's code."""
    uplink: str = ""
    """The interface that the path is bound to; "" where the system chooses."""

    def __new__(cls, kind: PathKind = "", where: str = "", uplink: str = "") -> Self:
        return super().__new__(cls, f"{kind} {where}".strip() + (f" via {uplink}" if uplink else ""))

    def __getnewargs__(self) -> tuple[PathKind, str, str]:  # type: ignore[override]
        return self.kind, self.where, self.uplink

    def _repr_html_(self) -> str:
        from tailscale.as_html import page

        return page(self or "no path is known", {})


def _milliseconds(seconds: float | None) -> str:
    """A latency in words; "" for none."""
    return f"{seconds * 1000:.1f} ms" if seconds is not None else ""


@dataclass(frozen=True, slots=True)
class ExitNode:
    """A peer that offers the way to everything outside the tailnet, and where it is if control says so."""

    node: Node
    country: str
    """The name; "" where control does not say, as for the other words of the place."""
    country_code: str
    """Two letters: "NL"."""
    city: str
    city_code: str
    priority: int
    """Among exit nodes of one city, control prefers the higher."""
    online: bool | None
    path: PathInfo
    latency: float | None
    """Seconds on the direct path."""

    def __repr__(self) -> str:
        place = ", ".join(filter(None, (self.city, self.country)))
        return for_terminal(f"<ExitNode {' '.join(filter(None, (self.node.hostname, place, self.node.presence)))}>")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "node": self.node.hostname,
            "country": self.country,
            "country_code": self.country_code,
            "city": self.city,
            "city_code": self.city_code,
            "priority": self.priority,
            "online": self.online,
            "path": str(self.path),
            "latency": self.latency,
        }


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """How traffic to one peer is doing."""

    node: Node
    path: PathInfo
    """`direct 192.0.2.7:41641`, `relay fra`, or "" when nothing is known."""
    latency: float | None
    """Seconds on the direct path."""
    bytes_received: int
    bytes_sent: int
    handshake_age: float | None
    """Seconds since the last WireGuard handshake; None without a session."""
    unanswered_for: float | None = None
    """Seconds since it was asked for a handshake that it has not answered; None when it owes none."""

    def __repr__(self) -> str:
        known = (self.node.hostname, self.node.presence, self.path, _milliseconds(self.latency))
        return for_terminal(f"<PeerStatus {' '.join(filter(None, known))}>")

    def _repr_html_(self) -> str:
        from tailscale.as_html import page

        facts = {"path": str(self.path), "latency": _milliseconds(self.latency)}
        traffic = f"{self.bytes_received} bytes received, {self.bytes_sent} sent"
        return page(self.node.name, self.node.facts() | facts | {"traffic": traffic})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self.node.to_dict() | {
            "path": str(self.path),
            "latency": self.latency,
            "bytes_received": self.bytes_received,
            "bytes_sent": self.bytes_sent,
            "handshake_age": self.handshake_age,
            "unanswered_for": self.unanswered_for,
        }


@dataclass(frozen=True, slots=True)
class Flow:
    """Who talks to whom: one TCP connection or UDP socket that is open on the tailnet.

    ```python
    for flow in device.flows():
        print(flow.protocol, flow.peer, flow.port, flow.bytes_received, flow.bytes_sent)
    ```
    """

    protocol: Literal["tcp", "udp"]
    local: tuple[str, int]
    """The ip is "" where a UDP socket has all of ours."""
    remote: tuple[str, int] | None
    """None for a UDP socket that speaks with anybody."""
    peer: str
    """Host name of the peer at the other end; "" where no peer has or routes that address."""
    via: str
    """Host name of the exit it was opened through; "" for none."""
    is_inbound: bool
    """The other end began it: it leads to a port that we listen on, or behind us."""
    is_forwarded: bool
    """We carry it for the peer, to an address behind us."""
    bytes_received: int | None
    """Payload so far; None for UDP, whose datagrams are not counted one by one."""
    bytes_sent: int | None

    @property
    def port(self) -> int:
        """The port of the service: ours if we were called, else theirs; 0 where there is none yet."""
        if self.is_inbound or self.remote is None:
            return self.local[1]
        return self.remote[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "protocol": self.protocol,
            "local": list(self.local),
            "remote": list(self.remote) if self.remote is not None else None,
            "peer": self.peer,
            "via": self.via,
            "port": self.port,
            "is_inbound": self.is_inbound,
            "is_forwarded": self.is_forwarded,
            "bytes_received": self.bytes_received,
            "bytes_sent": self.bytes_sent,
        }


@dataclass(frozen=True, slots=True)
class FileTransfer:
    """One file, or folder, that is on its way: what those who watch a device are shown of it."""

    name: str
    peer: str
    """Host name of the other end."""
    is_outgoing: bool
    done: int
    """Bytes that the receiver has."""
    total: int | None
    """None where nobody knows yet."""
    rate: float | None
    """Bytes a second."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "peer": self.peer,
            "is_outgoing": self.is_outgoing,
            "done": self.done,
            "total": self.total,
            "rate": self.rate,
        }


@dataclass(frozen=True, slots=True)
class PathTraffic:
    """What went by one kind of path, as WireGuard datagrams."""

    datagrams: int
    bytes: int
    """Without the headers of UDP, relays and peer relays around them."""

    def to_dict(self) -> dict[str, int]:
        """Plain values for JSON."""
        return {"datagrams": self.datagrams, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Counters:
    """Everything that a Device counts, at one moment: all that an exporter of metrics needs.

    `received`, `sent` and `drops` only ever grow while the device lives.

    ```python
    counters = device.status().counters
    print(counters.received["derp"].bytes, counters.levels["stack.tcp.connections"])
    ```
    """

    received: dict[str, PathTraffic]
    """By kind of path: direct_ipv4, direct_ipv6, derp, peer_relay_ipv4, peer_relay_ipv6."""
    sent: dict[str, PathTraffic]
    """Handed to the sockets and relays; what those could not send is in `drops` too."""
    drops: dict[str, int]
    """What was dropped, by reason; docs/drops.md says what each means."""
    levels: dict[str, int]
    """How full the tables are, what is connected and under way: whole numbers that rise and fall."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "received": {path: traffic.to_dict() for path, traffic in self.received.items()},
            "sent": {path: traffic.to_dict() for path, traffic in self.sent.items()},
            "drops": dict(self.drops),
            "levels": dict(self.levels),
        }


@dataclass(frozen=True, slots=True)
class Status:
    """One moment of a Device.

    ```python
    import json

    print(json.dumps(device.status().to_dict()))
    ```
    """

    state: str
    node: Node | None
    tailnet: str
    control_url: str
    relay: str
    """The home relay's code, "" while none is connected."""
    udp_port: int
    endpoints: tuple[str, ...]
    peers: tuple[PeerStatus, ...]
    health: tuple[HealthWarning, ...]
    counters: Counters
    advertised_routes: tuple[str, ...] = ()
    """What we offer to forward for others."""
    approved_routes: tuple[str, ...] = ()
    """Of those, what control has let us: what is really forwarded."""

    @property
    def drops(self) -> dict[str, int]:
        """What was dropped, by reason: the same as `counters.drops`."""
        return self.counters.drops

    @property
    def domain(self) -> str:
        """What the names of this tailnet end in; where it has no names, what control calls it."""
        return (self.node.name.partition(".")[2] if self.node is not None else "") or self.tailnet

    def __repr__(self) -> str:
        who = f" as {self.node.hostname} {self.node.ipv4 or self.node.ipv6}" if self.node is not None else ""
        known = f"{counted(len(self.peers), 'peer')}, relay {self.relay or 'none'}"
        wrong = f", {counted(len(self.health), 'warning')}" if self.health else ""
        return for_terminal(f"<Status {self.state}{who} in {self.domain or 'no tailnet'}, {known}{wrong}>")

    def _repr_html_(self) -> str:
        from tailscale.as_html import page, table

        facts = {
            "state": self.state,
            "tailnet": self.domain,
            "addresses": ", ".join(self.node.addresses) if self.node is not None else "",
            "control": self.control_url,
            "relay": self.relay or "none",
        }
        rows = [
            (
                peer.node.hostname,
                peer.node.ipv4 or peer.node.ipv6 or "",
                peer.node.presence,
                str(peer.path) if peer.handshake_age is not None else "",
                _milliseconds(peer.latency),
                ", ".join(peer.node.tags) or peer.node.user,
            )
            for peer in self.peers
        ]
        peers = table(("peer", "address", "state", "path", "latency", "user"), rows)
        warnings = table(("warning", "what helps"), [(each.sentence, each.remedy) for each in self.health])
        return page(self.node.name if self.node is not None else "not joined", facts, warnings, peers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "state": self.state,
            "self": self.node.to_dict() if self.node else None,
            "tailnet": self.tailnet,
            "control_url": self.control_url,
            "relay": self.relay,
            "udp_port": self.udp_port,
            "endpoints": list(self.endpoints),
            "advertised_routes": list(self.advertised_routes),
            "approved_routes": list(self.approved_routes),
            "peers": [p.to_dict() for p in self.peers],
            "health": [w.to_dict() for w in self.health],
            "drops": dict(self.drops),
            "counters": self.counters.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class PingResult:
    """One answered ping."""

    latency: float
    """Seconds, there and back."""
    path: PathInfo
    """The way it travelled."""
    kind: str
    node: Node | None

    def __str__(self) -> str:
        who = f"{self.node.hostname} answered" if self.node is not None else "answered"
        return for_terminal(f"{who} in {_milliseconds(self.latency)} by {self.path or 'an unknown path'}")

    def __repr__(self) -> str:
        return f"<PingResult {self}>"

    def _repr_html_(self) -> str:
        from tailscale.as_html import page

        return page(str(self), {})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "latency": self.latency,
            "path": str(self.path),
            "kind": self.kind,
            "node": self.node.hostname if self.node else None,
        }


@dataclass(frozen=True, slots=True)
class NetcheckReport:
    """What the network around us allows."""

    udp: bool
    ipv4: str | None
    """Our IPv4 address and port as the outside sees them."""
    ipv6: str | None
    mapping_varies_by_destination: bool | None
    """True behind a "hard" NAT, where direct paths need luck or a peer in the open."""
    port_mapping: str
    home: str
    latencies: dict[str, float]
    """Seconds to each relay region by its code."""

    def _repr_html_(self) -> str:
        from tailscale.as_html import page, table

        nat = {None: "", False: "easy", True: "hard: a new address for every peer"}
        facts = {
            "UDP": "works" if self.udp else "blocked",
            "IPv4": self.ipv4 or "",
            "IPv6": self.ipv6 or "",
            "NAT": nat[self.mapping_varies_by_destination],
            "port mapping": self.port_mapping,
            "home relay": self.home,
        }
        ranked = sorted(self.latencies.items(), key=lambda item: item[1])
        return page(
            "the network here",
            facts,
            table(("relay", "latency"), [(code, _milliseconds(took)) for code, took in ranked]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "udp": self.udp,
            "ipv4": self.ipv4,
            "ipv6": self.ipv6,
            "mapping_varies_by_destination": self.mapping_varies_by_destination,
            "port_mapping": self.port_mapping,
            "home": self.home,
            "latencies": dict(self.latencies),
        }


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is behind an address, as `whois` tells it."""

    node: Node
    user: str
    capabilities: dict[str, Any]
    """What the tailnet's policy grants this caller towards us, by capability name."""
    display_name: str = ""
    """The user's own name, where the control server tells it."""
    picture: str = ""
    """The address of a picture of the user's, likewise."""
    groups: tuple[str, ...] = ()
    """The user's groups, where the control server tells them."""

    def __repr__(self) -> str:
        return for_terminal(f"<Identity {self.node.hostname} of {self.user or 'nobody'}>")

    def _repr_html_(self) -> str:
        from tailscale.as_html import page

        return page(
            self.node.name,
            self.node.facts() | {"groups": ", ".join(self.groups), "grants": ", ".join(self.capabilities)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        known = {
            "node": self.node.to_dict(),
            "user": self.user,
            "display_name": self.display_name,
            "picture": self.picture,
            "capabilities": self.capabilities,
        }
        return known | ({"groups": list(self.groups)} if self.groups else {})
