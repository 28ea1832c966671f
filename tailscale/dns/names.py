"""Names the tailnet itself knows: nodes by short and full name, extra records, reverse lookups.

Built once per netmap and only read afterwards. Knows no resolver and sends nothing: that is `resolvers.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tailscale.nodes import clean_name
from ts_base.errors import BadPacket
from ts_base.ip import format_address, maybe_address, parse_address, parse_prefix
from ts_control.netmap import NetMap
from ts_control.wire import Node as WireNode

ADDRESS_TYPES = {"A": 4, "AAAA": 16}


class TailnetNames:
    """One netmap's answers."""

    def __init__(self, netmap: NetMap) -> None:
        dns = netmap.dns
        self.own_suffix = clean_name(netmap.self_node.name).partition(".")[2]
        searched = (clean_name(domain) for domain in (dns.domains if dns else None) or ())
        self.suffixes = tuple(dict.fromkeys(s for s in (*searched, self.own_suffix) if s))
        """What may be left out of a name, in the order it is tried."""
        self._addresses: dict[str, list[bytes]] = {}
        self._records: dict[tuple[str, str], list[str]] = {}
        self._reverse: dict[bytes, str] = {}
        for node in (netmap.self_node, *netmap.peers.values()):
            self._add_node(node)
        for record in (dns.extra_records if dns else None) or ():
            self._add_record(record.name, record.type, record.value)

    def _add_node(self, node: WireNode) -> None:
        name = clean_name(node.name)
        if not name:
            return
        addresses = self._addresses.setdefault(name, [])
        for prefix in node.addresses or ():
            try:
                address = parse_prefix(prefix)[0]
            except BadPacket:
                continue
            addresses.append(address)
            self._reverse[address] = name

    def _add_record(self, name: str, kind: str, value: str) -> None:
        name, kind = clean_name(name), kind.upper()
        if kind in ("", "A", "AAAA"):
            try:
                address = parse_address(value)
            except BadPacket:
                return
            if not kind or ADDRESS_TYPES[kind] == len(address):
                self._addresses.setdefault(name, []).append(address)
        else:
            self._records.setdefault((name, kind), []).append(value)

    def full_name(self, name: str) -> str | None:
        """The full form of a short or full name that the tailnet knows, or None."""
        name = clean_name(name)
        if name in self._addresses:
            return name
        for suffix in self.suffixes:
            if f"{name}.{suffix}" in self._addresses:
                return f"{name}.{suffix}"
        return None

    def addresses(self, name: str) -> list[bytes]:
        """Every address of a name, IPv4 first; empty if the tailnet does not know it."""
        full = self.full_name(name)
        return sorted(self._addresses[full], key=len) if full else []

    def records(self, name: str, kind: str) -> list[str] | None:
        """Answers of one record type in text; None if the name is not ours to answer."""
        full, kind = self.full_name(name), kind.upper()
        if kind in ADDRESS_TYPES and full:
            return [format_address(a) for a in self._addresses[full] if len(a) == ADDRESS_TYPES[kind]]
        values = self._records.get((clean_name(name), kind))
        if values is not None:
            return list(values)
        return [] if full else None

    def name_of(self, address: bytes) -> str | None:
        """The reverse lookup."""
        return self._reverse.get(address)

    def owns(self, name: str) -> bool:
        """Whether only the tailnet may know this name, so that no outside resolver may ever see it."""
        name = clean_name(name)
        return "." not in name or (bool(self.own_suffix) and f".{name}".endswith(f".{self.own_suffix}"))

    def close_to(self, name: str) -> list[str]:
        """Names the user may have meant, short where that is enough."""
        wanted = clean_name(name).split(".")[0]
        shorts = {full.split(".")[0]: full for full in self._addresses}
        return difflib.get_close_matches(wanted, shorts, n=3, cutoff=0.6)


def literal_address(host: str) -> bytes | None:
    """An IP address written out, brackets allowed; None if `host` is a name."""
    text = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return maybe_address(text)


def address_texts(addresses: Iterable[bytes]) -> list[str]:
    return [format_address(a) for a in addresses]


def arpa_name(address: bytes) -> str:
    """The name under which an address is looked up backwards."""
    if len(address) == 4:
        return ".".join(str(b) for b in reversed(address)) + ".in-addr.arpa"
    return ".".join(reversed(address.hex())) + ".ip6.arpa"


def address_of_arpa(name: str) -> bytes | None:
    labels = clean_name(name).split(".")
    if (
        labels[-2:] == ["in-addr", "arpa"]
        and len(labels) == 6
        and all(p.isdigit() and int(p) < 256 for p in labels[:4])
    ):
        return bytes(int(p) for p in reversed(labels[:4]))
    if labels[-2:] == ["ip6", "arpa"] and len(labels) == 34 and all(len(p) == 1 for p in labels[:32]):
        try:
            return bytes.fromhex("".join(reversed(labels[:32])))
        except ValueError:
            return None
    return None
