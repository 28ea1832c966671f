"""Addresses a peer may be reached at: which are worth a ping, and what is known of each.

Owns the filter against foolish or hostile endpoints, the caps, and per-address stamps. Knows no disco and no
sockets. Lists come from control, from CallMeMaybe and from where pings were heard; each has its own cap and life.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ts_base.errors import BadPacket
from ts_base.ip import format_address, is_link_local, is_loopback, is_tailscale_address, parse_address
from ts_base.who import Direct, host_of, uplink_of

MAX_LISTED = 32
MAX_CALLED = 16
MAX_HEARD = 16
HEARD_LIFE = 45.0  # a candidate learnt from a ping dies this long after its last ping
HOPELESS_AFTER = 12  # unanswered pings to an address that never answered
HOPELESS_SPACING = 65.0  # lets a rewritten conntrack entry on our own host die
FIRST_PENALTY, MAX_PENALTY = 60.0, 600.0


def parse_endpoint_untrusted(text: str) -> Direct:
    """`192.0.2.7:41641` or `[2001:db8::7]:41641`, in the one spelling sockets use."""
    host, colon, port_text = text.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit() or len(port_text) > 5:
        raise BadPacket(f"not an endpoint: {text[:64]!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    port = int(port_text)
    if port > 0xFFFF:
        raise BadPacket(f"not a port: {port}")
    return format_address(parse_address(host)), port


def format_endpoint(endpoint: Direct) -> str:
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_worth_trying(endpoint: Direct, *, loopback: bool) -> bool:
    """May we send a ping there? `loopback`: we ourselves can only be reached on this machine."""
    if not 0 < endpoint[1] <= 0xFFFF:
        return False
    try:
        address = parse_address(host_of(endpoint))
    except BadPacket:
        return False
    if is_loopback(address):
        return loopback
    if len(address) == 4:
        if address[0] == 0 or address[0] >= 224:  # this network, multicast, reserved, broadcast
            return False
    elif address[0] == 0xFF or not any(address):
        return False
    return not is_link_local(address) and not is_tailscale_address(address)


class Candidate:
    """One address of one peer, and when what happened there."""

    __slots__ = (
        "blocked_until",
        "called",
        "has_answered",
        "heard_at",
        "latency",
        "listed",
        "penalty",
        "pinged_at",
        "pinged_back_at",
        "ponged_at",
        "unanswered",
    )

    def __init__(self) -> None:
        self.listed = self.called = self.has_answered = False
        self.heard_at = self.pinged_at = self.pinged_back_at = self.ponged_at = -math.inf
        self.latency = math.inf
        self.unanswered = 0
        self.blocked_until = -math.inf
        self.penalty = FIRST_PENALTY

    def block(self, now: float) -> None:
        """Pings pass here but the tunnel's datagrams do not: leave it alone, longer each time."""
        self.blocked_until = now + self.penalty
        self.penalty = min(2 * self.penalty, MAX_PENALTY)

    def relent(self, now: float) -> None:
        """The tunnel heard the peer on this address while we kept off it: half of what is left is enough."""
        if now < self.blocked_until:
            self.blocked_until = now + (self.blocked_until - now) / 2

    def pardon(self) -> None:
        """The tunnel works here: what was held against the address counts no more."""
        self.penalty = FIRST_PENALTY

    def due_at(self, spacing: float) -> float:
        """When the next ping may go there, `spacing` after the last one."""
        if self.unanswered >= HOPELESS_AFTER and not self.has_answered:
            spacing = max(spacing, HOPELESS_SPACING)
        return max(self.blocked_until, self.pinged_at + spacing)

    def is_due(self, now: float, spacing: float) -> bool:
        return now >= self.due_at(spacing) - 0.001  # a timer set for exactly then may be a rounding error early

    def refresh(self) -> None:
        """Something new speaks for this address: forget how often it was tried in vain."""
        self.unanswered = 0
        self.pinged_at = -math.inf


class Candidates(dict[Direct, Candidate]):
    """All candidates of one peer, each address once per uplink. At most MAX_LISTED + MAX_CALLED + MAX_HEARD of them."""

    __slots__ = ("_uplinks",)

    def __init__(self, uplinks: Sequence[str] = ()) -> None:
        super().__init__()
        self._uplinks = uplinks

    def _through_each(self, endpoint: Direct) -> list[Direct]:
        host, port = endpoint
        return [(f"{host}%{uplink}", port) for uplink in self._uplinks] or [endpoint]

    def set_listed(self, endpoints: Iterable[str], *, loopback: bool) -> None:
        """What control says now replaces what it said before."""
        wanted: list[Direct] = []
        for text in endpoints:
            if len(wanted) >= MAX_LISTED:
                break
            try:
                endpoint = parse_endpoint_untrusted(text)
            except BadPacket:
                continue
            if is_worth_trying(endpoint, loopback=loopback):
                wanted += self._through_each(endpoint)
        for candidate in self.values():
            candidate.listed = False
        for endpoint in wanted:
            self._entry(endpoint).listed = True
        self._drop_orphans()

    def set_called(self, endpoints: Iterable[Direct], *, loopback: bool) -> int:
        """The list of a CallMeMaybe replaces the list of the one before; returns how many were refused."""
        wanted: list[Direct] = []
        refused = 0
        for endpoint in endpoints:
            if len(wanted) >= MAX_CALLED or not is_worth_trying(endpoint, loopback=loopback):
                refused += 1
            else:
                wanted += [place for place in self._through_each(endpoint) if place not in wanted]
        for candidate in self.values():
            candidate.called = False
        for endpoint in wanted:
            if endpoint not in self:
                self._entry(endpoint).refresh()
            self[endpoint].called = True
        self._drop_orphans()
        return refused

    def hear(self, source: Direct, now: float) -> Candidate:
        """A proven ping came from `source`, so it is worth trying whatever it is."""
        candidate = self._entry(source)
        if now - candidate.heard_at > HEARD_LIFE:
            candidate.unanswered = 0
        candidate.heard_at = now
        only_heard = [key for key, entry in self.items() if not entry.listed and not entry.called]
        if len(only_heard) > MAX_HEARD:
            del self[min(only_heard, key=lambda key: (self[key].ponged_at, self[key].heard_at, key != source))]
        return candidate

    def keep_uplinks(self) -> None:
        """Uplinks are others than before: addresses through those that are gone are none any more."""
        for place in [place for place in self if uplink_of(place) not in self._uplinks]:
            del self[place]

    def of_uplink(self, uplink: str) -> list[tuple[Direct, Candidate]]:
        return [item for item in self.items() if uplink_of(item[0]) == uplink]

    def prune(self, now: float, keep: tuple[object, ...] | None) -> None:
        for endpoint, candidate in list(self.items()):
            is_alive = candidate.listed or candidate.called or now - candidate.heard_at <= HEARD_LIFE
            if not is_alive and endpoint != keep:
                del self[endpoint]

    def _entry(self, endpoint: Direct) -> Candidate:
        candidate = self.get(endpoint)
        if candidate is None:
            candidate = self[endpoint] = Candidate()
        return candidate

    def _drop_orphans(self) -> None:
        for endpoint, candidate in list(self.items()):
            if not candidate.listed and not candidate.called and candidate.heard_at == -math.inf:
                del self[endpoint]
