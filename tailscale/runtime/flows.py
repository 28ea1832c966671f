"""Who talks to whom: what is open on the stack, in the names of the netmap. Looked up when asked, counted by nobody.

Owns the order, busiest first, and the bound. Refuses to remember: a viewer makes rates of two looks.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from typing import NamedTuple

from tailscale.runtime.directory import Directory
from tailscale.status import Flow
from ts_base.ip import format_address
from ts_base.who import PeerId
from ts_netstack.forwarder import ForwardedFlow
from ts_netstack.stack import Stack
from ts_netstack.tcp import TcpConnection
from ts_netstack.tcp_listen import TcpListen
from ts_netstack.udp import UdpPort
from ts_netstack.wire import Address

FLOWS_LIMIT = 4096  # told at once, whatever is asked for


class _Seen(NamedTuple):
    """One socket as the stack has it: cheap, for there may be thousands and few are told."""

    carried: tuple[int, int] | None  # bytes received and sent
    local: tuple[bytes | None, int]
    remote: Address | None
    via: PeerId
    is_inbound: bool

    @property
    def weight(self) -> int:
        return sum(self.carried) if self.carried is not None else 0


class Flows:
    """One per device; everything here is a question."""

    def __init__(self, stack: Stack, directory: Directory, inside: Collection[bytes] = ()) -> None:
        self._stack = stack
        self._inside = inside  # addresses that the device has for itself: what is bound there is no flow of the user's
        self._directory = directory

    def busiest(self, limit: int) -> tuple[Flow, ...]:
        """What has carried most, then what is there otherwise."""
        count = min(max(limit, 0), FLOWS_LIMIT)
        return tuple(map(self._told, heapq.nlargest(count, self._seen(), key=lambda seen: seen.weight)))

    def _seen(self) -> Iterator[_Seen]:
        sockets = self._stack.sockets()
        doors = {(one.port, one.host) for one in sockets if isinstance(one, TcpListen)}
        for one in sockets:
            if isinstance(one, TcpConnection):
                host, port = one.local
                is_inbound = (port, None) in doors or (port, host) in doors or not self._directory.is_ours(host)
                yield _Seen(one.carried, one.local, one.remote, one.via, is_inbound)
            elif isinstance(one, ForwardedFlow):
                yield _Seen(None, one.local, one.peer_address, 0, True)
            elif isinstance(one, UdpPort) and one.host not in self._inside:
                yield _Seen(None, (one.host, one.port), one.remote, one.via, False)

    def _told(self, seen: _Seen) -> Flow:
        host, port = seen.local
        received, sent = seen.carried or (None, None)
        return Flow(
            protocol="udp" if seen.carried is None else "tcp",
            local=(format_address(host) if host is not None else "", port),
            remote=(format_address(seen.remote[0]), seen.remote[1]) if seen.remote is not None else None,
            peer=self._owner(seen.remote[0]) if seen.remote is not None else "",
            via=self._name(seen.via),
            is_inbound=seen.is_inbound,
            is_forwarded=host is not None and not self._directory.is_ours(host),
            bytes_received=received,
            bytes_sent=sent,
        )

    def _owner(self, address: bytes) -> str:
        node = self._directory.wire_node(address)
        return node.name.partition(".")[0] if node is not None else ""

    def _name(self, peer: PeerId) -> str:
        node = self._directory.node(peer) if peer else None
        return node.hostname if node is not None else ""
