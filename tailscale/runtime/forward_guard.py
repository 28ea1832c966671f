"""Where nothing is forwarded, however it is spelled: the last word before anything is sent into the host's network.

Owns the prefixes in force, what this machine's own networks are, and the judgement on one address. Refuses to know
peers and sockets. RFC 6890 (special addresses), 6052 and 8215 (NAT64), 3056 (6to4), 4380 (Teredo), 5214 (ISATAP).
"""

# Theory of operation
#
# A destination is covered when an approved prefix holds it. That says what control and the user agree on, and a default
# route holds nearly everything; so each destination is judged once more. Two questions, in this order:
#
# Is it a place that no route leads to? This machine itself, its links, a tailnet, whatever no host has. Only a host
# route (/32, /128) of that very address opens a link-local address or a cloud's metadata service: who advertises
# 169.254.169.254/32 means it.
#
# Does only a default route hold it? Then it must be a public address outside the networks of this machine's interfaces.
#
# Some IPv6 addresses are another spelling of an IPv4 address: a NAT64 or a tunnel behind us would send there. Whatever
# such an address holds is judged as well, and policy never saw it: so it has to be public, unless the spelling itself
# is what was advertised. A 4via6 address is for us to undo; there private networks are the purpose.

from __future__ import annotations

from collections.abc import Collection, Iterable

from ts_base.ip import (
    VIA,
    Prefix,
    is_link_local,
    is_loopback,
    is_martian_source,
    is_multicast,
    is_private,
    is_tailscale_address,
    parse_prefix,
    prefix_contains,
)
from ts_dataplane.tables import local_table_of

LOOPBACK, MULTICAST, LINK_LOCAL = "forward.loopback", "forward.multicast", "forward.link_local"
METADATA, TAILNET, NO_HOST = "forward.metadata", "forward.tailnet_address", "forward.no_host"
PRIVATE, OWN_NETWORK, NO_ROUTE = "forward.private", "forward.own_network", "forward.no_route"

MAPPED, COMPATIBLE = bytes(10) + b"\xff\xff", bytes(12)
TRANSLATED = bytes(8) + b"\xff\xff\0\0"  # SIIT's, of RFC 2765
NAT64, LOCAL_NAT64 = bytes.fromhex("0064ff9b") + bytes(8), bytes.fromhex("0064ff9b0001")
SIX_TO_FOUR, TEREDO = b"\x20\x02", b"\x20\x01\0\0"
ISATAP = (bytes.fromhex("00005efe"), bytes.fromhex("02005efe"))
# Where clouds answer about the machine that asks, beside 169.254.169.254: Azure, Alibaba, Oracle's old one, AWS, GCP.
METADATA_SERVICES = frozenset(
    parse_prefix(text)[0]
    for text in ("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254")
)
# Nobody's on the internet, beside what the filter knows already: sites, IETF protocols, IPv6 sites of old.
NOT_PUBLIC = tuple(map(parse_prefix, ("fc00::/7", "192.0.0.0/24", "fec0::/10", "100::/64")))


class Destinations:
    """What we forward for: these prefixes, on a machine whose interfaces are in these networks."""

    def __init__(self, prefixes: Collection[Prefix], interfaces: Iterable[Prefix] = ()) -> None:
        self._interfaces = tuple(interfaces)
        self._table = local_table_of((), prefixes, near(self._interfaces))
        self._named = local_table_of((), [prefix for prefix in prefixes if prefix[1]])
        self._hosts = {address for address, length in prefixes if length == 8 * len(address)}

    def covers(self, address: bytes) -> bool:
        """Whether a packet to `address` is for us. A default route means public addresses only, as in the filter."""
        return self._table.lookup(address) is True

    def why_not(self, address: bytes) -> str | None:
        """Why nothing is sent to `address`; None where it may be."""
        if (inner := inside_via(address)) is not None:
            return never(inner) if self.covers(address) else NO_ROUTE
        is_named = self._named.lookup(address) is True
        word = never(address)
        if word is not None:
            return None if word in (LINK_LOCAL, METADATA) and address in self._hosts else word
        for held in embedded(address):
            word = never(held) or (None if is_named else self._not_public(held))
            if word is not None:
                return word
        if not self.covers(address):
            return NO_ROUTE
        return None if is_named else self._not_public(address)

    def target_of(self, address: bytes) -> bytes:
        """Where what is said to `address` goes on this machine's network."""
        return inside_via(address) or address

    def _not_public(self, address: bytes) -> str | None:
        """Why a default route does not lead to `address`."""
        if any(prefix_contains(prefix, address) for prefix in self._interfaces):
            return OWN_NETWORK
        if is_private(address) or any(prefix_contains(prefix, address) for prefix in NOT_PUBLIC):
            return PRIVATE
        return None


def near(interfaces: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """What a default route does not hold: these networks of ours, and whatever else is not the internet."""
    return (*interfaces, *NOT_PUBLIC)


def inside_via(address: bytes) -> bytes | None:
    """The IPv4 address behind a 4via6 address; None for any other."""
    return address[12:] if prefix_contains(VIA, address) else None


def never(address: bytes) -> str | None:
    """Why no route however wide leads to `address`; None where one may."""
    if address in METADATA_SERVICES:
        return METADATA
    if is_loopback(address):
        return LOOPBACK
    if is_multicast(address):
        return MULTICAST
    if is_link_local(address):
        return LINK_LOCAL
    if is_tailscale_address(address):
        return TAILNET
    return NO_HOST if is_martian_source(address) else None


def embedded(address: bytes) -> tuple[bytes, ...]:
    """The IPv4 addresses that an IPv6 address is another spelling of, for a translator or a tunnel on its way."""
    if len(address) == 4:
        return ()
    if address[:12] in (MAPPED, COMPATIBLE, TRANSLATED, NAT64):
        return (address[12:],)
    if address[:6] == LOCAL_NAT64:  # a /48 in which its owner chooses: RFC 6052 section 2.2 has two places for it
        return address[6:8] + address[9:11], address[12:]
    if address[:2] == SIX_TO_FOUR:
        return (address[2:6],)
    if address[:4] == TEREDO:
        return address[4:8], bytes(byte ^ 0xFF for byte in address[12:])
    return (address[12:],) if address[8:12] in ISATAP else ()
