"""Who is answered by ICMP and how often, and the pings that wait for an answer.

Owns the budgets, and the table of outstanding echo requests. Refuses to know sockets: an error that a packet of ours
met is handed to the stack as a `Report`. RFC 792, 4443, 1812 section 4.3.2.8 (rate limits).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

from ts_base.budget import Budget
from ts_base.ip import ICMP
from ts_base.who import Origin, PeerId
from ts_netstack import icmp
from ts_netstack.arrivals import may_speak
from ts_netstack.ledger import Ledger, Socket
from ts_netstack.outbox import Outbox
from ts_netstack.own_addresses import OwnAddresses
from ts_netstack.wire import Packet, Unroutable

ECHO_PER_SECOND, ECHO_BURST = 1000.0, 50.0
ERRORS_PER_SECOND, ERROR_BURST = 100.0, 50.0
PINGS_LIMIT = 1024
PING_MAXIMUM = 65000  # bytes of payload


class IcmpStatistics(NamedTuple):
    """Echo requests of ours that nobody has answered yet."""

    pings: int


class Ping(Socket):
    """One echo request on its way. `round_trip` is set by the answer, `error` by a report or the deadline."""

    __slots__ = ("deadline", "destination", "error", "identifier", "round_trip", "sent_at", "size", "via")

    def __init__(self, destination: bytes, via: PeerId, identifier: int, size: int, now: float, timeout: float) -> None:
        super().__init__()
        self.destination, self.via, self.identifier, self.size = destination, via, identifier, size
        self.sent_at = now
        self.deadline = now + timeout
        self.round_trip: float | None = None
        self.error: str | None = None

    @property
    def is_done(self) -> bool:
        return self.round_trip is not None or self.error is not None


class IcmpSockets:
    """`outstanding` pings by identifier and sequence number, which are one number here."""

    __slots__ = ("_echoes", "_entropy", "_errors", "_ledger", "_outbox", "_own", "outstanding")

    def __init__(self, own: OwnAddresses, outbox: Outbox, ledger: Ledger, entropy: Callable[[int], bytes]) -> None:
        self._own, self._outbox, self._ledger, self._entropy = own, outbox, ledger, entropy
        self._echoes = Budget(ECHO_PER_SECOND, ECHO_BURST)
        self._errors = Budget(ERRORS_PER_SECOND, ERROR_BURST)
        self.outstanding: dict[int, Ping] = {}

    def statistics(self) -> IcmpStatistics:
        return IcmpStatistics(len(self.outstanding))

    def holds(self, packet: Packet) -> bool:
        """Whether a ping waits for this echo reply."""
        kind, _, rest, _ = icmp.parse_untrusted(packet)
        is_reply = kind == (icmp.ECHO_REPLY4 if packet.protocol == ICMP else icmp.ECHO_REPLY6)
        return is_reply and rest in self.outstanding

    # -- asking ----------------------------------------------------------------------------------------------------

    def ping(self, destination: bytes, via: PeerId, size: int, now: float, timeout: float) -> Ping:
        """A ping with an identifier nobody can guess; OSError when too many wait for an answer."""
        source = self._own.source_for(destination)
        if not 0 <= size <= PING_MAXIMUM:
            raise ValueError(f"a ping of {size} bytes is none")
        if len(self.outstanding) >= PINGS_LIMIT:
            raise OSError(errno.ENOBUFS, "too many pings are on their way")
        identifier = int.from_bytes(self._entropy(4), "big")
        while identifier in self.outstanding:
            identifier = identifier + 1 & 0xFFFFFFFF
        hop = self._own.hop_to(destination, via)
        ping = self.outstanding[identifier] = Ping(*hop, identifier, size, now, timeout)
        self._ledger.enter_exit(ping.via)
        self._outbox.post(hop, icmp.echo_request(source, destination, identifier, bytes(size)))
        return ping

    def timed_out(self, ping: Ping) -> None:
        if not ping.is_done:
            ping.error = "timed out"
            self._finish(ping)

    def receive_report(self, report: icmp.Report, origin: Origin) -> None:
        """An ICMP error about a ping of ours."""
        ping = self.outstanding.get(int.from_bytes(report.quoted[4:8], "big"))
        if ping is None or ping.destination != report.remote:
            raise Unroutable("icmp.no_ping")
        if not may_speak(origin, ping.via):
            raise Unroutable("icmp.wrong_peer")
        ping.error = report.kind
        self._finish(ping)

    def _answered(self, source: bytes, identifier: int, origin: Origin, now: float) -> None:
        ping = self.outstanding.get(identifier)
        if ping is None or ping.destination != source:
            raise Unroutable("icmp.echo_reply_unasked")
        if not may_speak(origin, ping.via):
            raise Unroutable("icmp.wrong_peer")
        ping.round_trip = max(now - ping.sent_at, 0.0)
        self._finish(ping)

    def _finish(self, ping: Ping) -> None:
        if self.outstanding.pop(ping.identifier, None) is not None:
            self._ledger.leave_exit(ping.via)
        self._ledger.changed[ping] = None

    # -- being told, and answering ---------------------------------------------------------------------------------

    def receive_untrusted(self, packet: Packet, origin: Origin, now: float) -> icmp.Report | Packet | None:
        """Answer an echo, note an answer; for the stack is an error, and the echo request to somebody else."""
        if not icmp.is_checksum_right(packet):
            raise Unroutable("icmp.checksum")
        kind, code, rest, body = icmp.parse_untrusted(packet)
        is_ip4 = packet.protocol == ICMP
        if kind == (icmp.ECHO4 if is_ip4 else icmp.ECHO6):
            if packet.destination not in self._own.all:
                return packet
            self._answer_echo(packet, origin, now)
        elif kind == (icmp.ECHO_REPLY4 if is_ip4 else icmp.ECHO_REPLY6):
            self._answered(packet.source, rest, origin, now)
        else:
            report = icmp.read_error_untrusted(packet, kind, code, rest, body)
            if report is None:
                raise Unroutable("icmp.ignored")
            return report
        return None

    def _answer_echo(self, packet: Packet, origin: Origin, now: float) -> None:
        if not may_speak(origin, 0):
            raise Unroutable("icmp.wrong_peer")
        if not self._echoes.take(now):
            raise Unroutable("icmp.echo_limit")
        self._outbox.post((packet.source, 0), icmp.reply_to_echo(packet))

    def say(
        self, build: Callable[[bytes, bytes, bytes], bytes], original: bytes, about: bytes, to: bytes, now: float
    ) -> None:
        """Tell `to` by one of icmp's builders what became of its packet to `about`, unless we have said too much."""
        if not self._errors.take(now):
            self._ledger.drops["icmp.error_limit"] += 1
            return
        self._outbox.answer((to, 0), build(original, about, to))
