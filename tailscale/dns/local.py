"""What the tailnet itself answers on the wire, and for which names nobody else may be asked.

Answers as upstream's resolver does, so that programs find the same whatever client they use: the first IPv4 address,
IPv6 only where there is no other or control wants it. Built once per netmap. Sends nothing; `names.py` knows the same
names for the device itself, with all their addresses. RFC 2308, 7686.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tailscale.dns.names import address_of_arpa
from tailscale.dns.wire import (
    AAAA,
    ANY,
    AXFR,
    HINFO,
    INTERNET,
    NAME_ERROR,
    NO_ERROR,
    NOT_IMPLEMENTED,
    NS,
    PTR,
    SOA,
    A,
    Question,
    encode_name,
)
from tailscale.nodes import clean_name
from ts_base.errors import BadPacket
from ts_base.ip import parse_address, parse_prefix
from ts_control.netmap import NetMap

SERVICE_ADDRESSES = parse_address("100.100.100.100"), parse_address("fd7a:115c:a1e0::53")
SERVICE_NAME = "magicdns.localhost-tailscale-daemon"
VIA_PREFIX = parse_address("fd7a:115c:a1e0:b1a::")[:8]
VIA_DOMAINS = ("ts.net", "tailscale.net")
WITH_IPV6, SUBDOMAINS = "magicdns-aaaa", "dns-subdomain-resolve"  # node attributes
BONJOUR = tuple(f"{word}._dns-sd._udp" for word in ("b", "db", "r", "dr", "lb"))
SIZES = {A: 4, AAAA: 16}


class LocalAnswer(NamedTuple):
    """What the tailnet says. `zone` stands under a negative answer."""

    code: int
    records: tuple[tuple[int, bytes], ...] = ()
    zone: str | None = None


class LocalZone:
    """One netmap's answers."""

    def __init__(self, netmap: NetMap) -> None:
        self._hosts: dict[str, list[bytes]] = {}
        self._reverse: dict[bytes, str] = dict.fromkeys(SERVICE_ADDRESSES, SERVICE_NAME)
        self._open: set[str] = set()  # hosts whose subdomains are theirs as well
        self.suffix = clean_name(netmap.self_node.name).partition(".")[2]
        empty = (clean_name(suffix) for suffix, servers in netmap.dns.routes.items() if not servers)
        self.domains = tuple(sorted({d for d in (self.suffix, *empty) if d}, key=len, reverse=True))
        own = [_address(prefix) for prefix in netmap.self_node.addresses]
        with_ipv6 = WITH_IPV6 in netmap.self_node.cap_map
        for node in (netmap.self_node, *netmap.peers.values()):
            self._add(clean_name(node.name), [_address(prefix) for prefix in node.addresses], own, with_ipv6)
            if SUBDOMAINS in node.cap_map:
                self._open.add(clean_name(node.name))
        for record in netmap.dns.extra_records:
            if record.type.upper() in ("", "A", "AAAA"):
                try:
                    address = parse_address(record.value)
                except BadPacket:
                    continue
                self._hosts.setdefault(clean_name(record.name), []).append(address)

    def _add(self, name: str, found: Iterable[bytes | None], own: list[bytes | None], with_ipv6: bool) -> None:
        addresses = [address for address in found if address is not None]
        if not name or not addresses:
            return
        for address in addresses:
            self._reverse[address] = name
        if not any(one is not None and len(one) == 4 for one in own):
            self._hosts[name] = [address for address in addresses if len(address) == 16]
        else:
            is_both = any(len(address) == 4 for address in addresses) and not with_ipv6
            self._hosts[name] = [address for address in addresses if not (is_both and len(address) == 16)]

    def answer(self, question: Question) -> LocalAnswer | None:
        """None for what others are to be asked."""
        name = question.name
        if question.klass != INTERNET or "\\" in name:
            return None
        if question.kind == PTR and name.endswith(".arpa"):
            return self._answer_reverse(name)
        if name == "onion" or name.endswith(".onion"):
            return LocalAnswer(NAME_ERROR)
        if name == SERVICE_NAME and question.kind in SIZES:
            fitting = [address for address in SERVICE_ADDRESSES if len(address) == SIZES[question.kind]]
            return LocalAnswer(NO_ERROR, tuple((question.kind, address) for address in fitting))
        if question.kind in (A, AAAA, ANY) and (via := self._via_address(name)) is not None:
            return self._found([via], question.kind, name)
        addresses = self._addresses_of(name)
        if addresses is None:
            zone = self.zone_of(name)
            return LocalAnswer(NAME_ERROR, zone=zone) if zone is not None else None
        return self._found(addresses, question.kind, name)

    def _found(self, addresses: list[bytes], kind: int, name: str) -> LocalAnswer:
        if kind in (NS, SOA, AXFR, HINFO):
            return LocalAnswer(NOT_IMPLEMENTED)
        fitting = [address for address in addresses if kind == ANY or len(address) == SIZES.get(kind)]
        if not fitting:
            return LocalAnswer(NO_ERROR, zone=self.zone_of(name))
        if kind == ANY:
            fitting = fitting[:1]
        return LocalAnswer(NO_ERROR, tuple((A if len(address) == 4 else AAAA, address) for address in fitting))

    def _addresses_of(self, name: str) -> list[bytes] | None:
        if name in self._hosts:
            return self._hosts[name]
        if "." not in name:
            return self._hosts.get(f"{name}.{self.suffix}")
        parent = name.partition(".")[2]
        while parent:
            if parent in self._open:
                return self._hosts.get(parent)
            parent = parent.partition(".")[2]
        return None

    def _via_address(self, name: str) -> bytes | None:
        """`10-1-2-3-via-7`: an IPv4 address behind site 7, as one IPv6 address. Alone, or in a domain for nodes."""
        label, _, domain = name.partition(".")
        hyphens, word, site = label.partition("-via-")
        if not word or not (not domain or self._is_for_nodes(domain)):
            return None
        try:
            address, number = parse_address(hyphens.replace("-", ".")), int(site, 0)
        except (BadPacket, ValueError):
            return None
        if len(address) != 4 or number >= 1 << 32 or "_" in site or not site[0].isdigit():
            return None
        return VIA_PREFIX + number.to_bytes(4, "big") + address

    def _is_for_nodes(self, domain: str) -> bool:
        known = (*VIA_DOMAINS, self.suffix)
        return any(domain == one or domain.endswith(f".{one}") for one in known if one)

    def zone_of(self, name: str) -> str | None:
        """The domain of ours that a name is in: whoever is not known there is not known at all."""
        return next((zone for zone in self.domains if name == zone or name.endswith(f".{zone}")), None)

    def is_ours(self, name: str) -> bool:
        """Whether a name is of the tailnet's own domain, so that nobody outside may hear of it."""
        return bool(self.suffix) and (name == self.suffix or name.endswith(f".{self.suffix}"))

    def _answer_reverse(self, name: str) -> LocalAnswer | None:
        address = address_of_arpa(name)
        known = self._reverse.get(address) if address is not None else None
        if known is not None:
            return LocalAnswer(NO_ERROR, ((PTR, encode_name(known)),))
        zone = self.zone_of(name)
        if zone is not None and not name.startswith(BONJOUR):
            return LocalAnswer(NAME_ERROR, zone=zone)
        return None


def _address(prefix: str) -> bytes | None:
    try:
        return parse_prefix(prefix)[0]
    except BadPacket:
        return None
