"""Which UDP port a datagram or a report is for, and which ports are taken.

Owns the table of bound ports and the checks every datagram must pass. Refuses to know which addresses are ours: the
stack answers what found no port. RFC 768, 6056.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

from ts_base.who import Hop, Origin, PeerId
from ts_netstack.arrivals import may_speak
from ts_netstack.icmp import UNREACHABLE, Report
from ts_netstack.ledger import Ledger
from ts_netstack.outbox import Outbox
from ts_netstack.own_addresses import OwnAddresses
from ts_netstack.ports import Bound, free_port, is_taken
from ts_netstack.udp import UdpPort
from ts_netstack.wire import UDP_FIXED, UDP_HEADER, Address, Packet, Unroutable, is_transport_checksum_right


class UdpStatistics(NamedTuple):
    """How many ports are bound."""

    ports: int


class Datagram(NamedTuple):
    """One that passed the checks every datagram must pass."""

    local: Address
    remote: Address
    data: bytes


def read_datagram_untrusted(packet: Packet, verify: bool) -> Datagram:
    """Unroutable when it is none."""
    payload = packet.payload
    if len(payload) < UDP_HEADER:
        raise Unroutable("udp.truncated")
    source_port, port, length, _ = UDP_FIXED.unpack_from(payload)
    if not UDP_HEADER <= length <= len(payload):
        raise Unroutable("udp.length")
    if verify and not is_transport_checksum_right(packet):
        raise Unroutable("udp.checksum")
    if not port:
        raise Unroutable("udp.port_zero")
    return Datagram((packet.destination, port), (packet.source, source_port), payload[UDP_HEADER:length])


class UdpSockets:
    """`ports` by number and own address, None for every address."""

    __slots__ = ("_entropy", "_ledger", "_outbox", "_own", "ports")

    def __init__(self, own: OwnAddresses, outbox: Outbox, ledger: Ledger, entropy: Callable[[int], bytes]) -> None:
        self._own, self._outbox, self._ledger, self._entropy = own, outbox, ledger, entropy
        self.ports: dict[Bound, UdpPort] = {}

    def bind(self, port: int, host: bytes | None, via: PeerId) -> UdpPort:
        """Port 0 asks for any that is free; OSError when it is taken."""
        if not port:
            port = self._free_port(host)
        elif is_taken(self.ports, port, host, self._own.apart):
            raise OSError(errno.EADDRINUSE, f"UDP port {port} is already bound")
        bound = self.ports[(port, host)] = UdpPort(self._outbox, self._own, self._ledger, port, host, via)
        self._ledger.enter_exit(via)
        return bound

    def forget(self, bound: UdpPort) -> None:
        if self.ports.get((bound.port, bound.host)) is bound:
            del self.ports[(bound.port, bound.host)]
            self._ledger.leave_exit(bound.via)

    def holds(self, local: bytes, port: int) -> bool:
        """Whether a port is bound there."""
        return self._find(port, local) is not None

    def _find(self, port: int, local: bytes) -> UdpPort | None:
        own = self.ports.get((port, local))
        return own or (self.ports.get((port, None)) if self._own.hears_all(local) else None)

    def receive_untrusted(self, packet: Packet, origin: Origin) -> bool:
        """Hand a datagram to its port; False when there is none, Unroutable when it is no datagram or not for it."""
        (host, port), remote, data = read_datagram_untrusted(packet, self._ledger.verify)
        bound = self._find(port, host)
        if not may_speak(origin, bound.via if bound is not None else 0):
            raise Unroutable("udp.wrong_peer")
        if bound is None:
            return False
        bound.deliver(data, remote)
        return True

    def receive_report(self, report: Report, origin: Origin) -> Hop:
        """An ICMP error about a datagram of ours; Unroutable when no port sent it."""
        port, remote_port = int.from_bytes(report.quoted[:2], "big"), int.from_bytes(report.quoted[2:4], "big")
        bound = self._find(port, report.local)
        if bound is None:
            raise Unroutable("icmp.no_port")
        if not may_speak(origin, bound.via):
            raise Unroutable("icmp.wrong_peer")
        if report.kind == UNREACHABLE:
            bound.report_unreachable((report.remote, remote_port))
        return (report.remote, bound.via)

    def statistics(self) -> UdpStatistics:
        return UdpStatistics(len(self.ports))

    def _free_port(self, host: bytes | None) -> int:
        start = int.from_bytes(self._entropy(2), "big")
        port = free_port(start, lambda port: not is_taken(self.ports, port, host, self._own.apart))
        if not port:
            raise OSError(errno.EADDRINUSE, "every UDP port is bound")
        return port
