"""Nodes as users see them: who a peer is, made from the netmap and never stale."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tailscale.errors import NoSuchPeer
from tailscale.foreign_text import for_terminal

if TYPE_CHECKING:
    from ts_control import wire
    from ts_control.netmap import NetMap

MOST_NAMES = 20  # in one line for people


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the tailnet.

    ```python
    db = device.peers["db"]
    print(db.name, db.ipv4, db.online, db.tags)
    ```
    """

    id: int
    stable_id: str
    name: str
    """The full MagicDNS name, without a trailing dot."""
    hostname: str
    """The first label of the name: what `tcp_connect` takes."""
    addresses: tuple[str, ...]
    online: bool | None
    """None when the control server does not say."""
    last_seen: datetime | None
    os: str
    user: str
    """The owner's login name; "tagged-devices" for tagged nodes."""
    tags: tuple[str, ...]
    expired: bool
    """Nobody can talk to it: its key has expired, or the tailnet's lock does not vouch for it (`locked_out`)."""
    key_expiry: datetime | None
    routes: tuple[str, ...]
    """Subnets this node routes for others."""
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    """Capabilities granted to the node (or, from `whois`, granted to the caller towards us)."""
    announced: Mapping[str, int] = field(default_factory=dict)
    """TCP ports that programs on the node announce, by the word they chose (`listen(announce=)`)."""
    locked_out: str = ""
    """Why the tailnet's lock does not vouch for this node; "" when it does, or there is no lock."""

    @property
    def ipv4(self) -> str | None:
        """The first IPv4 address, if there is one."""
        return next((a for a in self.addresses if ":" not in a), None)

    @property
    def ipv6(self) -> str | None:
        """The first IPv6 address, if there is one."""
        return next((a for a in self.addresses if ":" in a), None)

    @property
    def presence(self) -> str:
        """online, offline, key expired, locked out, or "" where the control server does not say."""
        if self.locked_out:
            return "locked out"
        if self.expired:
            return "key expired"
        return "" if self.online is None else "online" if self.online else "offline"

    def __repr__(self) -> str:
        return for_terminal(f"<Node {' '.join(filter(None, (self.hostname, self.ipv4 or self.ipv6, self.presence)))}>")

    def _repr_html_(self) -> str:
        from tailscale.as_html import page

        return page(self.name, self.facts())

    def facts(self) -> dict[str, str]:
        """What there is to say of it, in words, by title; "" for what is not known."""
        seen = f" since {self.last_seen:%Y-%m-%d %H:%M}" if self.online is False and self.last_seen else ""
        return {
            "addresses": ", ".join(self.addresses),
            "state": self.presence + seen,
            "tailnet lock": self.locked_out,
            "user": ", ".join(self.tags) or self.user,
            "os": self.os,
            "routes": ", ".join(self.routes),
            "announces": ", ".join(f"{word} at {port}" for word, port in self.announced.items()),
            "key expires": f"{self.key_expiry:%Y-%m-%d}" if self.key_expiry else "",
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "id": self.stable_id,
            "name": self.name,
            "hostname": self.hostname,
            "ipv4": self.ipv4,
            "ipv6": self.ipv6,
            "addresses": list(self.addresses),
            "online": self.online,
            "last_seen": self.last_seen.isoformat() if self.last_seen else None,
            "os": self.os,
            "user": self.user,
            "tags": list(self.tags),
            "expired": self.expired,
            "key_expiry": self.key_expiry.isoformat() if self.key_expiry else None,
            "routes": list(self.routes),
            "capabilities": sorted(self.capabilities),
            "announced": dict(self.announced),
            "locked_out": self.locked_out,
        }


def node_from_wire(wire_node: wire.Node, netmap: NetMap) -> Node:
    """Translate what control sent into what users see."""
    own = set(wire_node.addresses or ())
    profile = netmap.user_profiles.get(wire_node.user)
    hostinfo = wire_node.hostinfo
    name = wire_node.name.rstrip(".")
    return Node(
        id=wire_node.id,
        stable_id=wire_node.stable_id,
        name=name,
        hostname=name.split(".")[0],
        addresses=tuple(a.partition("/")[0] for a in wire_node.addresses or ()),
        online=wire_node.online,
        last_seen=_time(wire_node.last_seen),
        os=hostinfo.os if hostinfo else "",
        user=profile.login_name if profile else "",
        tags=tuple(wire_node.tags or ()),
        expired=wire_node.expired,
        key_expiry=_time(wire_node.key_expiry),
        routes=tuple(p for p in wire_node.allowed_ips or () if p not in own),
        capabilities=dict(wire_node.cap_map or {}),
        announced={s.description: s.port for s in hostinfo.services if s.proto == "tcp"} if hostinfo else {},
        locked_out=netmap.unvouched.get(wire_node.id, ""),
    )


def clean_name(name: str) -> str:
    """A DNS name as names are compared."""
    return name.strip().rstrip(".").lower()


def named(wanted: str, nodes: Iterable[wire.Node]) -> wire.Node | None:
    """The node that a person means by a full name, else by a short one, an address or a stable id."""
    name, found = clean_name(wanted), None
    for node in nodes:
        full = clean_name(node.name)
        if name == full:
            return node
        if found is None and (
            name == full.partition(".")[0]
            or wanted == node.stable_id
            or any(name == address.partition("/")[0] for address in node.addresses)
        ):
            found = node
    return found


def peerapi_of(peer: wire.Node) -> tuple[str, int] | None:
    """The address and port of its peer API, as it announces them; by IPv4 where it has both."""
    ports = {service.proto: service.port for service in peer.hostinfo.services}
    for kind, is_six in (("peerapi4", False), ("peerapi6", True)):
        for prefix in peer.addresses:
            address = prefix.partition("/")[0]
            if ports.get(kind) and (":" in address) == is_six:
                return address, ports[kind]
    return None


def no_such_peer(what: str, name: object, close_to: Callable[[str], list[str]]) -> NoSuchPeer:
    """The error for a name that nobody has, with those that may have been meant."""
    close = close_to(name) if isinstance(name, str) else []
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    return NoSuchPeer(f"no {what} is called {name!r}{hint}")


def close_names(name: str, names: Iterable[str]) -> list[str]:
    """Those that somebody who wrote `name` may have meant."""
    return difflib.get_close_matches(clean_name(name).partition(".")[0], list(names), n=3)


def counted(number: int, what: str) -> str:
    """1 peer, 2 peers."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _time(moment: datetime | None) -> datetime | None:
    return None if moment is None or moment.year <= 1 else moment


class OwnNode:
    """Who a device is itself; the trio Device and its faces differ only in how they find `node`."""

    @property
    def node(self) -> Node:
        """Ourselves, as the tailnet sees us right now."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """Our full MagicDNS name."""
        return self.node.name

    @property
    def hostname(self) -> str:
        """Our short name: what peers connect to."""
        return self.node.hostname

    @property
    def ipv4(self) -> str | None:
        """Our IPv4 address in the tailnet; None in a tailnet without."""
        return self.node.ipv4

    @property
    def ipv6(self) -> str | None:
        """Our IPv6 address in the tailnet; None in a tailnet without."""
        return self.node.ipv6


class Peers(Mapping[str, Node]):
    """A snapshot of the peers: iterate over full names, or look a node up by name, id or address.

    ```python
    if "db" in device.peers:
        print(device.peers["db"].ipv4)
    for node in device.peers.values():
        print(node.name)
    ```
    """

    def __init__(self, netmap: NetMap | None) -> None:
        self._netmap = netmap
        self._nodes: dict[str, Node] | None = None

    def _by_name(self) -> dict[str, Node]:
        if self._nodes is None:
            netmap = self._netmap
            nodes = [node_from_wire(p, netmap) for p in netmap.peers.values()] if netmap else []
            self._nodes = {n.name: n for n in sorted(nodes, key=lambda n: n.name)}
        return self._nodes

    def __getitem__(self, key: str) -> Node:
        nodes = self._by_name()
        if key in nodes:
            return nodes[key]
        node = named(key, self._netmap.peers.values()) if self._netmap is not None and key else None
        if node is None or self._netmap is None:
            raise no_such_peer("peer", key, self.close_to)
        return node_from_wire(node, self._netmap)

    def close_to(self, name: str) -> list[str]:
        """Short names that somebody who wrote `name` may have meant."""
        return close_names(name, (node.hostname for node in self._by_name().values()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name())

    def __len__(self) -> int:
        return len(self._netmap.peers) if self._netmap else 0

    def __repr__(self) -> str:
        return for_terminal(f"<Peers {listed([node.hostname for node in self._by_name().values()]) or 'none'}>")

    def _repr_html_(self) -> str:
        from tailscale.as_html import page, table

        rows = [
            (node.hostname, node.ipv4 or node.ipv6 or "", node.presence, ", ".join(node.tags) or node.user, node.os)
            for node in self._by_name().values()
        ]
        return page(counted(len(rows), "peer"), {}, table(("name", "address", "state", "user", "os"), rows))
