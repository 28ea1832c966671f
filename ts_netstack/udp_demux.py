"""Which UDP port a datagram or a report is for, and which ports are taken.

Owns the table of bound ports and the checks every datagram must pass. Refuses to know our addresses: the stack answers
what found no port. RFC 768, 6056.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from ts_netstack.icmp import UNREACHABLE, Report
from ts_netstack.ledger import Ledger
from ts_netstack.ports import free_port
from ts_netstack.udp import UdpPort
from ts_netstack.wire import UDP_FIXED, UDP_HEADER, Packet, Unroutable, is_transport_checksum_right

if TYPE_CHECKING:
    from ts_netstack.stack import Stack


class UdpSockets:
    """`ports` by number and own address, None for every address."""

    __slots__ = ("_entropy", "_ledger", "_stack", "ports")

    def __init__(self, stack: Stack, ledger: Ledger, entropy: Callable[[int], bytes]) -> None:
        self._stack, self._ledger, self._entropy = stack, ledger, entropy
        self.ports: dict[tuple[int, bytes | None], UdpPort] = {}

    def bind(self, port: int, host: bytes | None) -> UdpPort:
        """Port 0 asks for any that is free; OSError when it is taken."""
        if not port:
            port = self._free_port(host)
        elif self._is_bound(port, host):
            raise OSError(errno.EADDRINUSE, f"UDP port {port} is already bound")
        bound = self.ports[(port, host)] = UdpPort(self._stack, self._ledger, port, host)
        return bound

    def forget(self, bound: UdpPort) -> None:
        if self.ports.get((bound.port, bound.host)) is bound:
            del self.ports[(bound.port, bound.host)]

    def receive_untrusted(self, packet: Packet) -> bool:
        """Hand a datagram to its port; False when there is none, Unroutable when it is no datagram."""
        payload = packet.payload
        if len(payload) < UDP_HEADER:
            raise Unroutable("udp_truncated")
        source_port, port, length, _ = UDP_FIXED.unpack_from(payload)
        if not UDP_HEADER <= length <= len(payload):
            raise Unroutable("udp_length")
        if self._ledger.verify and not is_transport_checksum_right(packet):
            raise Unroutable("udp_checksum")
        if not port:
            raise Unroutable("udp_port_zero")
        bound = self.ports.get((port, packet.destination)) or self.ports.get((port, None))
        if bound is None:
            return False
        bound.deliver(payload[UDP_HEADER:length], (packet.source, source_port))
        return True

    def receive_report(self, report: Report) -> None:
        """An ICMP error about a datagram of ours; Unroutable when no port sent it."""
        port, remote_port = int.from_bytes(report.quoted[:2], "big"), int.from_bytes(report.quoted[2:4], "big")
        bound = self.ports.get((port, report.local)) or self.ports.get((port, None))
        if bound is None:
            raise Unroutable("icmp_no_port")
        if report.kind == UNREACHABLE:
            bound.report_unreachable((report.remote, remote_port))

    def _is_bound(self, port: int, host: bytes | None) -> bool:
        if (port, None) in self.ports or (port, host) in self.ports:
            return True
        return host is None and any(taken == port for taken, _ in self.ports)

    def _free_port(self, host: bytes | None) -> int:
        start = int.from_bytes(self._entropy(2), "big")
        port = free_port(start, lambda port: not self._is_bound(port, host))
        if not port:
            raise OSError(errno.EADDRINUSE, "every UDP port is bound")
        return port
