"""The list of addresses at which peers may find us, in the order and with the types control expects.

Owns order, de-duplication and the memory of earlier mappings. Knows no sockets: what the probes, the router and the
interfaces said is handed in. Order and life times are magicsock's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ts_base.errors import BadPacket
from ts_base.ip import is_link_local, is_loopback, is_tailscale_address, parse_address
from ts_base.who import Direct
from ts_dataplane.netcheck import Report

LOCAL, STUN, PORT_MAPPED, STUN_WITH_LOCAL_PORT, EXPLICIT = 1, 2, 3, 4, 5
MEMORY_TIME = 310.0  # a mapping seen once is worth trying for this long
MEMORY_PER_HOST = 6
MAX_ENDPOINTS = 48


class EndpointList:
    """Gathers; remembers which STUN mappings were seen when."""

    def __init__(self) -> None:
        self._seen_at: dict[Direct, float] = {}

    def forget(self) -> None:
        """Our network is another one: old mappings were its."""
        self._seen_at.clear()

    def gather(
        self,
        now: float,
        *,
        local_port: int,
        interfaces: Sequence[str],
        report: Report | None = None,
        port_mapped: Direct | None = None,
        explicit: Iterable[Direct] = (),
        fixed_port: bool = False,
        others: Sequence[Report] = (),
    ) -> tuple[tuple[Direct, int], ...]:
        """The list as of now: ((host, port), type), best first. `others`: what was seen through further uplinks."""
        found: list[tuple[Direct, int]] = []
        if port_mapped is not None:
            found.append((port_mapped, PORT_MAPPED))
        if report is not None:
            for mapped in (report.mapped_ipv4, report.mapped_ipv6):
                found += [(seen, STUN) for seen in mapped]
                self._seen_at.update(dict.fromkeys(mapped, report.finished_at))
            if report.mapping_varies and fixed_port and report.mapped_ipv4:
                found.append(((report.mapped_ipv4[0][0], local_port), STUN_WITH_LOCAL_PORT))
        for other in others:
            for seen in (*other.mapped_ipv4, *other.mapped_ipv6):
                found.append((seen, STUN))
                self._seen_at[seen] = other.finished_at
        found += [(endpoint, EXPLICIT) for endpoint in explicit]
        found += [(endpoint, STUN) for endpoint in self._remembered(now)]
        found += [((host, local_port), LOCAL) for host in usable_interfaces(interfaces)]
        if not found:
            found = [((host, local_port), LOCAL) for host in interfaces if _is_loopback_text(host)]
        kinds: dict[Direct, int] = {}
        for endpoint, kind in found[:MAX_ENDPOINTS]:
            kinds.setdefault(endpoint, kind)
        return tuple(kinds.items())

    def _remembered(self, now: float) -> list[Direct]:
        recent = sorted(self._seen_at.items(), key=lambda item: -item[1])
        self._seen_at = {}
        per_host: dict[str, int] = {}
        for (host, port), at in recent:
            if now - at <= MEMORY_TIME and per_host.get(host, 0) < MEMORY_PER_HOST:
                per_host[host] = per_host.get(host, 0) + 1
                self._seen_at[host, port] = at
        return list(self._seen_at)


def usable_interfaces(interfaces: Iterable[str]) -> list[str]:
    """Of the host's own addresses those a peer could use."""
    usable: list[str] = []
    for text in interfaces:
        try:
            address = parse_address(text)
        except BadPacket:
            continue
        if not (is_loopback(address) or is_link_local(address) or is_tailscale_address(address)):
            usable.append(text)
    return usable


def _is_loopback_text(text: str) -> bool:
    try:
        return is_loopback(parse_address(text))
    except BadPacket:
        return False
