"""A bound UDP port: a bounded queue of whole datagrams, and what ICMP said about the peer it is connected to.

Refuses to know IP, fragments and other sockets. RFC 768, RFC 1122 section 4.1.3.3.
"""

from __future__ import annotations

import errno
from collections import deque

from ts_base.ip import MAXIMUM_DATAGRAM, UDP
from ts_base.ip_headers import ip_packet
from ts_base.who import PeerId
from ts_netstack.ledger import Ledger, Socket
from ts_netstack.outbox import Outbox
from ts_netstack.own_addresses import OwnAddresses
from ts_netstack.ports import check_port
from ts_netstack.wire import Address, udp_payload

QUEUE_DATAGRAMS = 512
QUEUE_BYTES = 256 << 10


class UdpPort(Socket):
    """`host` None receives on every own address; `dropped` were from somebody else, or found no room.

    `via` is the peer that everything it sends leaves by and that it hears, 0 for whoever routes the other end.
    """

    __slots__ = (
        *("__weakref__", "_ledger", "_outbox", "_own", "_queue", "_queued"),
        *("dropped", "error", "host", "is_closed", "is_lost", "port", "remote", "via"),
    )
    limits = (QUEUE_DATAGRAMS, QUEUE_BYTES)

    def __init__(
        self, outbox: Outbox, own: OwnAddresses, ledger: Ledger, port: int, host: bytes | None, via: PeerId = 0
    ) -> None:
        super().__init__()
        self._outbox, self._own, self._ledger = outbox, own, ledger
        self.port, self.host, self.via = port, host, via
        self.remote: Address | None = None
        self.error: str | None = None  # "unreachable" after an ICMP report while connected
        self.dropped = 0
        self.is_closed = False
        self.is_lost = False  # its exit takes nothing there any more
        self._queue: deque[tuple[bytes, Address]] = deque()
        self._queued = 0

    @property
    def readable(self) -> bool:
        return bool(self._queue) or self.error is not None or self.is_lost

    def connect(self, remote: Address) -> None:
        """Hear only `remote` from now on, and of its unreachability."""
        self.remote = remote
        self.error = None

    def receive(self) -> tuple[bytes, Address] | None:
        """The oldest datagram and who sent it, or None."""
        if not self._queue:
            return None
        data, sender = self._queue.popleft()
        self._queued -= len(data)
        return data, sender

    def send(self, data: bytes, remote: Address, now: float) -> None:
        """Hand one datagram down; it leaves with the next transmit, in fragments where it must."""
        if self.is_closed:
            raise ValueError("the port is closed")
        if len(data) > MAXIMUM_DATAGRAM:
            raise ValueError(f"a datagram holds at most {MAXIMUM_DATAGRAM} bytes, not {len(data)}")
        check_port(remote[1], lowest=1)
        source = self.host or self._own.source_for(remote[0])
        if len(source) != len(remote[0]):
            raise OSError(errno.EAFNOSUPPORT, "the port is bound to an address of the other family")
        packet = ip_packet(source, remote[0], UDP, udp_payload((source, self.port), remote, bytes(data)))
        self._outbox.post(self._own.hop_to(remote[0], self.via), packet)

    def take_error(self) -> str | None:
        """What went wrong since last asked."""
        error, self.error = self.error, None
        return error

    def deliver(self, data: bytes, sender: Address) -> None:
        if self.remote is not None and sender != self.remote:
            self.dropped += 1
            self._ledger.drops["udp.not_connected_peer"] += 1
            return
        most_datagrams, most_bytes = self.limits
        if len(self._queue) >= most_datagrams or self._queued + len(data) > most_bytes:
            self.dropped += 1
            self._ledger.drops["udp.queue_full"] += 1
            return
        self._queue.append((data, sender))
        self._queued += len(data)
        self._ledger.changed[self] = None

    def report_unreachable(self, remote: Address) -> None:
        if self.remote == remote:
            self.error = "unreachable"
            self._ledger.changed[self] = None

    def lose(self) -> None:
        """The peer it is bound to takes its datagrams no more."""
        if not self.is_lost:
            self.is_lost = True
            self._ledger.changed[self] = None

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._queue.clear()
            self._queued = 0
            self._ledger.closed.append(self)

    def __repr__(self) -> str:
        return f"UdpPort({self.port})"
