"""The slow packet filter that `ts_dataplane.filter` must agree with: every rule, every entry, read anew each time.

Written from the decision table alone, on `ipaddress` and text; it shares nothing with the fast one but the bytes.
"""

from __future__ import annotations

import ipaddress
from typing import Any

USUAL = (6, 17, 1, 58)


def _contains(entry: str, address: Any) -> bool:
    if entry == "*":
        return True
    if entry.startswith("cap:"):
        return False
    try:
        if "/" in entry:
            return address in ipaddress.ip_network(entry)
        if "-" in entry:
            first, last = (ipaddress.ip_address(end) for end in entry.split("-"))
            return first.version == address.version == last.version and first <= address <= last
        return address == ipaddress.ip_address(entry)
    except ValueError:
        return False


def _has_family(entry: str, version: int) -> bool:
    return any(_contains(entry, probe) for probe in _probes(entry) if probe.version == version)


def _probes(entry: str) -> list[Any]:
    if entry == "*":
        return [ipaddress.ip_address("1.1.1.1"), ipaddress.ip_address("1::1")]
    try:
        return [ipaddress.ip_address(entry.split("/")[0].split("-")[0])]
    except ValueError:
        return []


class SlowFilter:
    """`rules` as in ts_dataplane.filter.Rule; `local` prefixes as text."""

    def __init__(self, rules: list[Any], local: list[str]) -> None:
        self.rules = rules
        self.local = [ipaddress.ip_network(text) for text in local]
        self.sent: list[tuple[Any, ...]] = []

    def outbound(self, packet: bytes) -> None:
        kind, source, destination, sport, dport = self._read(packet)[:5]
        if kind in (17, 132) and not destination.is_multicast and not self._is_link_local(destination):
            self.sent.append((kind, destination, dport, source, sport))

    def inbound(self, packet: bytes, held: frozenset[str]) -> bool:
        if not packet:
            return True
        kind, source, destination, sport, dport, flags, body = self._read(packet)
        if kind == 0 or destination.is_multicast:
            return False
        if self._is_link_local(destination):
            return False
        if kind == 255:
            return True
        if not any(destination in network for network in self.local):
            return False
        if kind == (1 if destination.version == 4 else 58):
            if len(body) >= 8:
                if destination.version == 4 and (body[0] in (3, 11, 18) or body[:2] == b"\0\0"):
                    return True
                if destination.version == 6 and (body[0] in (1, 2, 3, 4) or body[:2] == b"\x81\0"):
                    return True
            for rule in self._rules(destination.version):
                if any(_contains(entry, source) for entry in rule[0]):
                    if any(_contains(entry, destination) for entry, _, _ in rule[1]):
                        return True
                if any(entry[:4] == "cap:" and entry[4:] in held for entry in rule[0]):
                    return True
            return False
        if kind == 6:
            return flags & 0x12 != 0x02 or self._match(kind, source, destination, dport, held)
        if kind in (17, 132):
            if (kind, source, sport, destination, dport) in self.sent:
                return True
            return self._match(kind, source, destination, dport, held)
        if kind == 99:
            return True
        for rule in self._rules(destination.version):
            if kind in (rule[2] or USUAL) and any(_contains(entry, source) for entry in rule[0]):
                if any((low, high) == (0, 65535) and _contains(e, destination) for e, low, high in rule[1]):
                    return True
        return False

    @staticmethod
    def _is_link_local(address: Any) -> bool:
        return address.is_link_local and str(address) != "169.254.169.254"

    def _rules(self, version: int) -> list[Any]:
        return [rule for rule in self.rules if any(_has_family(entry, version) for entry, _, _ in rule[1])]

    def _match(self, kind: int, source: Any, destination: Any, port: int, held: frozenset[str]) -> bool:
        for rule in self._rules(destination.version):
            if kind not in (rule[2] or USUAL):
                continue
            if not any(_contains(e, source) or (e[:4] == "cap:" and e[4:] in held) for e in rule[0]):
                continue
            if any(low <= port <= high and _contains(e, destination) for e, low, high in rule[1]):
                return True
        return False

    @staticmethod
    def _read(packet: bytes) -> tuple[Any, ...]:
        nothing = (0, None, None, 0, 0, 0, b"")
        version = packet[0] >> 4 if packet else 0
        need = {1: 4, 58: 4, 2: 8, 6: 20, 17: 8, 132: 12, 99: 7}
        more, offset = False, 0
        if version == 4 and len(packet) >= 20:
            size, header = int.from_bytes(packet[2:4], "big"), packet[0] % 16 * 4
            if size > len(packet) or header > size or header < 20:
                return nothing
            source, destination = ipaddress.ip_address(packet[12:16]), ipaddress.ip_address(packet[16:20])
            kind, body = packet[9], packet[header:size]
            field = int.from_bytes(packet[6:8], "big")
            more, offset = bool(field & 0x2000), field & 0x1FFF
            need.pop(58)
            if kind == 99 and more and not offset:
                return nothing
        elif version == 6 and len(packet) >= 40:
            size = int.from_bytes(packet[4:6], "big") + 40
            if size > len(packet):
                return nothing
            source, destination = ipaddress.ip_address(packet[8:24]), ipaddress.ip_address(packet[24:40])
            kind, body = packet[6], packet[40:size]
            need.pop(1)
            need.pop(2)
            if kind == 44:
                if len(body) < 8:
                    return nothing
                kind, offset, body = body[0], int.from_bytes(body[2:4], "big") >> 3, body[8:]
        else:
            return nothing
        if offset:
            return (255 if offset >= 10 else 0, source, destination, 0, 0, 0, body)
        if kind == 255 or len(body) < need.get(kind, 0):
            return nothing
        if kind in (6, 17, 132):
            sport, dport = int.from_bytes(body[:2], "big"), int.from_bytes(body[2:4], "big")
            return (kind, source, destination, sport, dport, body[13] if kind == 6 else 0, body)
        return (kind, source, destination, 0, 0, 0, body)
