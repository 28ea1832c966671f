"""A bound UDP port: a bounded queue of whole datagrams, and what ICMP said about the peer it is connected to.

Refuses to know IP, fragments and sockets. RFC 768, RFC 1122 section 4.1.3.3.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ts_base.ip import MAXIMUM_DATAGRAM
from ts_netstack.ledger import Ledger
from ts_netstack.wire import Address

if TYPE_CHECKING:
    from ts_netstack.stack import Stack

QUEUE_DATAGRAMS = 512
QUEUE_BYTES = 256 << 10


class UdpPort:
    """`host` None receives on every own address. `owner` is the holder's slot; `drops` counts what found no room."""

    __slots__ = (
        "__weakref__",
        "_ledger",
        "_queue",
        "_queued",
        "_stack",
        "drops",
        "error",
        "host",
        "is_closed",
        "owner",
        "port",
        "remote",
    )

    def __init__(self, stack: Stack, ledger: Ledger, port: int, host: bytes | None) -> None:
        self._stack, self._ledger = stack, ledger
        self.port, self.host = port, host
        self.owner: Any = None
        self.remote: Address | None = None
        self.error: str | None = None  # "unreachable" after an ICMP report while connected
        self.drops = 0
        self.is_closed = False
        self._queue: deque[tuple[bytes, Address]] = deque()
        self._queued = 0

    @property
    def readable(self) -> bool:
        return bool(self._queue) or self.error is not None

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
        self._stack.send_udp(self, bytes(data), remote)

    def deliver(self, data: bytes, sender: Address) -> None:
        if self.remote is not None and sender != self.remote:
            self.drops += 1
            self._ledger.drops["udp_not_connected_peer"] += 1
            return
        if len(self._queue) >= QUEUE_DATAGRAMS or self._queued + len(data) > QUEUE_BYTES:
            self.drops += 1
            self._ledger.drops["udp_queue_full"] += 1
            return
        self._queue.append((data, sender))
        self._queued += len(data)
        self._ledger.changed[self] = None

    def report_unreachable(self, remote: Address) -> None:
        if self.remote == remote:
            self.error = "unreachable"
            self._ledger.changed[self] = None

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._queue.clear()
            self._queued = 0
            self._ledger.closed.append(self)

    def __repr__(self) -> str:
        return f"UdpPort({self.port})"
