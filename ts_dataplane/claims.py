"""What each peer claims: the prefixes control gave it that we agree to use, read from text.

Owns which prefixes are eligible (dataplane notes H.2) and how a peer that knows us by another address is spoken to.
Refuses to know who else claims the same: that is tables.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.ip import CGNAT, TAILSCALE_ULA, Prefix, parse_prefix, prefix_contains
from ts_base.who import PeerId
from ts_dataplane.packets import with_destination, with_source

DEFAULTS: tuple[Prefix, ...] = ((bytes(4), 0), (bytes(16), 0))
_CHROME_OS: Prefix = (bytes([100, 115, 92, 0]), 23)  # inside CGNAT, but never a node's address


class PeerRoutes(NamedTuple):
    """What control says about one peer, as far as packets are concerned. Prefixes are text."""

    peer: PeerId
    addresses: tuple[str, ...]
    allowed: tuple[str, ...] | None = None  # None: the same as addresses
    capabilities: frozenset[str] = frozenset()  # node capabilities, for `cap:` sources
    expired: bool = False
    reachable: bool = True  # has a disco key or a home relay, or speaks plain WireGuard
    jailed: bool = False  # judged as if shields were up
    masquerade4: str = ""  # the address this peer knows us by, where it is not our own
    masquerade6: str = ""
    takes_adverts: bool = True  # understands TSMP disco key advertisements (capability version >= 144)
    unsigned: bool = False  # UnsignedPeerAPIOnly: a filter that names it as a source is not to be trusted


class PeerClaims(NamedTuple):
    """One peer, read."""

    routes: PeerRoutes
    addresses: tuple[bytes, ...]
    claims: tuple[Prefix, ...]  # eligible prefixes: where to send, and from where to accept
    masquerade: tuple[tuple[bytes, bytes], ...]  # (our address, what this peer calls it)
    defaults: tuple[int, ...] = ()  # address lengths it offers a default route for

    def addressed_to_us(self, packets: list[bytes]) -> list[bytes]:
        """What came from the peer, with our own address where it used the one it knows us by."""
        for ours, theirs in self.masquerade:
            packets = [with_destination(packet, theirs, ours) for packet in packets]
        return packets

    def as_it_knows_us(self, packets: list[bytes]) -> list[bytes]:
        """What goes to the peer, with the source it expects."""
        for ours, theirs in self.masquerade:
            packets = [with_source(packet, ours, theirs) for packet in packets]
        return packets


class Prefs(NamedTuple):
    """What we want of routes."""

    accept_routes: bool
    exit_node: PeerId | None
    shields_up: bool


def read_prefixes(
    texts: Iterable[str], whose: object, problems: list[str], known: dict[str, Prefix | None]
) -> list[Prefix]:
    """Those that are prefixes; the others are told as problems. `known` remembers what each text is."""
    found = []
    for text in texts:
        if text not in known:
            try:
                known[text] = parse_prefix(text)
            except BadPacket as problem:
                known[text] = None
                problems.append(f"prefix of {whose} skipped: {problem}")
        prefix = known[text]
        if prefix is not None:
            found.append(prefix)
    return found


class ClaimReader:
    """Turns PeerRoutes into Peer; the same text is parsed once."""

    def __init__(self, own: tuple[bytes, ...], prefs: Prefs, problems: list[str]) -> None:
        self._own, self._prefs = own, prefs
        self._problems = problems
        self._known: dict[str, Prefix | None] = {}

    def _prefixes(self, texts: Iterable[str], routes: PeerRoutes) -> list[Prefix]:
        return read_prefixes(texts, routes.peer, self._problems, self._known)

    def read(self, routes: PeerRoutes) -> PeerClaims:
        addresses = self._prefixes(routes.addresses, routes)
        allowed = addresses if routes.allowed is None else self._prefixes(routes.allowed, routes)
        usable = allowed if routes.reachable and not routes.expired else ()
        claims = [
            prefix
            for prefix in usable
            if prefix[0] not in self._own and self._is_eligible(prefix, routes.peer, addresses)
        ]
        masquerade = []
        for text in (routes.masquerade4, routes.masquerade6):
            for theirs, _ in self._prefixes([text] if text else [], routes):
                masquerade += [(ours, theirs) for ours in self._own if len(ours) == len(theirs)][:1]
        hosts = tuple(address for address, length in addresses if length == 8 * len(address))
        defaults = tuple(len(default[0]) for default in DEFAULTS if default in usable)
        return PeerClaims(routes, hosts, tuple(dict.fromkeys(claims)), tuple(masquerade), defaults)

    def _is_eligible(self, prefix: Prefix, peer: PeerId, addresses: Sequence[Prefix]) -> bool:
        if prefix in addresses or _is_node_address(prefix):
            return True
        return peer == self._prefs.exit_node if prefix in DEFAULTS else self._prefs.accept_routes


def _is_node_address(prefix: Prefix) -> bool:
    """A single address of Tailscale's ranges is a node or a service, never a subnet."""
    address, length = prefix
    if length != 8 * len(address):
        return False
    if length == 32:
        return prefix_contains(CGNAT, address) and not prefix_contains(_CHROME_OS, address)
    return address[:6] == TAILSCALE_ULA[0][:6]
