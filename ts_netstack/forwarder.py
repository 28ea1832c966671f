"""Packets for addresses that are not ours: what a subnet router and an exit node hear.

A SYN is held and is news, a `Knock`; nobody is answered before somebody has dialled outward and says `admit` or
`refuse`. Datagrams are flows, which end when nothing was said for a while. Owns their limits, over all and per peer.
Refuses to know routes, which are one question handed in, and what becomes of the bytes.
RFC 9293 section 3.10.7.2, RFC 4787 section 4.3 (idle flows), RFC 1812 section 5.3.7 (martian addresses).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ts_base.ip import is_martian_source
from ts_base.ip_headers import ACK, FIN, RST, SYN
from ts_base.timers import Timers
from ts_base.who import Hop, Origin, PeerId
from ts_netstack import icmp
from ts_netstack.arrivals import Arrival, may_speak
from ts_netstack.icmp_demux import IcmpSockets
from ts_netstack.ledger import Ledger, Socket
from ts_netstack.outbox import Outbox
from ts_netstack.own_addresses import OwnAddresses
from ts_netstack.tcp import TcpConnection
from ts_netstack.tcp_demux import TcpSockets
from ts_netstack.udp import UdpPort
from ts_netstack.udp_demux import read_datagram_untrusted
from ts_netstack.wire import MASK32, Address, Packet, Unroutable, reset_for

HELD_LIMIT, HELD_LIMIT_PER_PEER = 512, 64
HELD_SECONDS = 30.0  # for the dial outward; the peer's own patience is longer
ADMITTED_LIMIT, ADMITTED_LIMIT_PER_PEER = 8192, 1024
FLOWS_LIMIT, FLOWS_LIMIT_PER_PEER = 1024, 256
FLOW_DATAGRAMS, FLOW_BYTES = 64, 64 << 10
FLOW_IDLE = 120.0  # RFC 4787 REQ-5: not sooner


class Covered(Protocol):
    """The routes we forward for."""

    def covers(self, address: bytes) -> bool: ...


@dataclass(frozen=True, slots=True)
class Knock:
    """`peer` wants a TCP connection from `remote` to `local`, an address we forward for. Told once."""

    key: bytes
    local: Address
    remote: Address
    peer: PeerId


class ForwarderStatistics(NamedTuple):
    """What is held, admitted and flowing."""

    held: int
    admitted: int
    flows: int


class Quota:
    """So many over all, and so many for each peer; refusals are counted under `word`."""

    __slots__ = ("_by_peer", "_drops", "_each", "_whole", "_word", "taken")

    def __init__(self, whole: int, each: int, drops: Counter[str], word: str) -> None:
        self._whole, self._each = whole, each
        self._drops, self._word = drops, word
        self._by_peer: Counter[PeerId] = Counter()
        self.taken = 0

    def take(self, peer: PeerId) -> bool:
        if self._by_peer[peer] >= self._each:
            self._drops[self._word + "_share_full"] += 1
            return False
        if self.taken >= self._whole:
            self._drops[self._word + "_full"] += 1
            return False
        self._by_peer[peer] += 1
        self.taken += 1
        return True

    def give_back(self, peer: PeerId) -> None:
        self.taken -= 1
        self._by_peer[peer] -= 1
        if not self._by_peer[peer]:
            del self._by_peer[peer]


class HeldSyn:
    """A SYN nobody has answered yet, and the newest packet that said it."""

    __slots__ = ("arrival", "knock")

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.knock = Knock(arrival.key, arrival.local, arrival.remote, arrival.peer)


class ForwardedFlow(UdpPort):
    """Datagrams between `remote` and `host`:`port`, an address we forward for: who takes it speaks for that address.

    `key` is that of its inbound packets.
    """

    __slots__ = ("active_at", "key", "local", "peer", "peer_address")
    limits = (FLOW_DATAGRAMS, FLOW_BYTES)

    def __init__(
        self,
        outbox: Outbox,
        own: OwnAddresses,
        ledger: Ledger,
        key: bytes,
        local: Address,
        remote: Address,
        peer: PeerId,
    ) -> None:
        super().__init__(outbox, own, ledger, local[1], local[0])
        self.key, self.local, self.peer, self.peer_address = key, local, peer, remote
        self.active_at = 0.0
        self.connect(remote)

    def reply(self, data: bytes, now: float) -> None:
        """What came from outside, back to the peer."""
        self.active_at = now
        self.send(data, self.peer_address, now)

    def __repr__(self) -> str:
        return f"ForwardedFlow({self.port})"


News = Knock | ForwardedFlow


class Forwarder(Socket):
    """One of a stack, changed when there is news. `routes` None, the default, forwards nothing."""

    __slots__ = (
        *("_admitted", "_admitted_quota", "_flow_quota", "_held", "_held_quota", "_icmp", "_ledger", "_news"),
        *("_outbox", "_own", "_tcp", "_timers", "flows", "routes"),
    )

    def __init__(
        self,
        own: OwnAddresses,
        outbox: Outbox,
        ledger: Ledger,
        timers: Timers[object],
        tcp: TcpSockets,
        icmp_sockets: IcmpSockets,
    ) -> None:
        self._own, self._outbox, self._ledger, self._timers = own, outbox, ledger, timers
        self._tcp, self._icmp = tcp, icmp_sockets
        super().__init__()
        self.routes: Covered | None = None
        self._held: dict[bytes, HeldSyn] = {}
        self._news: dict[bytes, News] = {}
        self._admitted: dict[bytes, PeerId] = {}
        self.flows: dict[bytes, ForwardedFlow] = {}
        drops = ledger.drops
        self._held_quota = Quota(HELD_LIMIT, HELD_LIMIT_PER_PEER, drops, "tcp.knocks")
        self._admitted_quota = Quota(ADMITTED_LIMIT, ADMITTED_LIMIT_PER_PEER, drops, "tcp.forwarded")
        self._flow_quota = Quota(FLOWS_LIMIT, FLOWS_LIMIT_PER_PEER, drops, "udp.flows")

    def statistics(self) -> ForwarderStatistics:
        return ForwarderStatistics(len(self._held), len(self._admitted), len(self.flows))

    def covers(self, address: bytes) -> bool:
        """Whether packets to `address` are for us to forward; never those that belong on no wire."""
        return self.routes is not None and not is_martian_source(address) and self.routes.covers(address)

    def set_routes(self, routes: Covered | None) -> None:
        """Forward for these from now on. What was admitted lives on: who carries it knows better."""
        self.routes = routes
        for held in [one for one in self._held.values() if not self.covers(one.knock.local[0])]:
            self._forget(held)
        for flow in [one for one in self.flows.values() if not self.covers(one.local[0])]:
            self.end(flow)

    # -- TCP -------------------------------------------------------------------------------------------------------

    def receive_tcp(self, arrival: Arrival, now: float) -> None:
        """A segment to an address we forward for, of no connection."""
        if not self._tcp.leave_time_wait(arrival, now):
            return
        held = self._held.get(arrival.key)
        if held is not None:
            self._receive_held(held, arrival)
        elif arrival.segment.flags & (SYN | ACK | RST | FIN) != SYN:
            self._tcp.refuse(arrival, now)
        elif self._held_quota.take(arrival.peer):
            held = self._held[arrival.key] = HeldSyn(arrival)
            self._tell(arrival.key, held.knock)
            self._timers.set(held, now + HELD_SECONDS)

    def _receive_held(self, held: HeldSyn, arrival: Arrival) -> None:
        segment, known = arrival.segment, held.arrival.segment
        if segment.flags & (SYN | ACK | RST | FIN) == SYN:
            held.arrival = arrival  # again or another: the newest is the one that can still complete
        elif segment.flags & RST and segment.seq == known.seq + 1 & MASK32:
            self._forget(held)
        else:
            self._ledger.drops["tcp.handshake_wild"] += 1

    def admit(self, knock: Knock, now: float) -> TcpConnection | None:
        """Somebody answers there: the SYN-ACK leaves with the next transmit. None when the peer no longer waits."""
        held = self._held.get(knock.key)
        if held is None:
            return None
        self._forget(held)
        peer = held.knock.peer
        if knock.key in self._tcp.flows or not self._admitted_quota.take(peer):
            return None
        self._admitted[knock.key] = peer
        return self._tcp.answer(held.arrival, now)

    def refuse(self, knock: Knock, now: float, reset: bool) -> None:
        """Nobody answers there: say so by a RST, as the host itself would, or as a router that cannot reach it."""
        held = self._held.get(knock.key)
        if held is None:
            return
        self._forget(held)
        arrival = held.arrival
        if not reset:
            self._icmp.say(icmp.host_unreachable, arrival.data, arrival.local[0], arrival.remote[0], now)
        elif (reply := reset_for(arrival.packet, arrival.segment)) is not None:
            self._outbox.answer(arrival.back, reply)

    def pass_over(self, knock: Knock) -> None:
        """There is no room to ask for it now: as if the SYN had been lost, so that the peer says it again."""
        held = self._held.get(knock.key)
        if held is not None:
            self._forget(held)

    def expire_held(self, held: HeldSyn) -> None:
        self._ledger.drops["tcp.knock_expired"] += 1
        self._forget(held)

    def _forget(self, held: HeldSyn) -> None:
        key = held.knock.key
        del self._held[key]
        self._news.pop(key, None)
        self._timers.clear(held)
        self._held_quota.give_back(held.knock.peer)

    def settle(self, key: bytes) -> None:
        """The connection with this key has ended."""
        peer = self._admitted.pop(key, None)
        if peer is not None:
            self._admitted_quota.give_back(peer)

    # -- UDP -------------------------------------------------------------------------------------------------------

    def receive_untrusted(self, packet: Packet, origin: Origin, now: float) -> None:
        """A datagram to an address we forward for."""
        local, remote, data = read_datagram_untrusted(packet, self._ledger.verify)
        if not may_speak(origin, 0):
            raise Unroutable("udp.wrong_peer")
        key = packet.source + packet.destination + packet.payload[:4]
        flow = self.flows.get(key)
        if flow is None:
            peer = origin[0]
            if not self._flow_quota.take(peer):
                return
            flow = ForwardedFlow(self._outbox, self._own, self._ledger, key, local, remote, peer)
            self.flows[key] = flow
            self._timers.set(flow, now + FLOW_IDLE)
            self._tell(key, flow)
        flow.active_at = now
        flow.deliver(data, remote)

    def receive_report(self, report: icmp.Report, origin: Origin) -> Hop:
        """An ICMP error about a datagram we forwarded to a peer."""
        if not may_speak(origin, 0):
            raise Unroutable("icmp.wrong_peer")
        flow = self.flows.get(report.remote + report.local + report.quoted[2:4] + report.quoted[:2])
        if flow is None:
            raise Unroutable("icmp.no_port")
        if report.kind == icmp.UNREACHABLE:
            flow.report_unreachable(flow.peer_address)
        return (report.remote, 0)

    def on_idle_timer(self, flow: ForwardedFlow, now: float) -> None:
        """Its timer is not moved with every datagram: only now is asked how long it was silent."""
        until = flow.active_at + FLOW_IDLE
        if until > now:
            self._timers.set(flow, until)
        else:
            self.end(flow)

    def end(self, flow: ForwardedFlow) -> None:
        """Nothing more will be heard of it; its owner sees that it is closed."""
        flow.close()
        self._ledger.changed[flow] = None

    def forget_flow(self, flow: ForwardedFlow) -> None:
        if self.flows.get(flow.key) is flow:
            del self.flows[flow.key]
            self._news.pop(flow.key, None)
            self._timers.clear(flow)
            self._flow_quota.give_back(flow.peer)

    # -- both ------------------------------------------------------------------------------------------------------

    def _tell(self, key: bytes, news: News) -> None:
        self._news[key] = news
        self._ledger.changed[self] = None

    def take_news(self) -> list[News]:
        """SYNs held and flows begun since last asked."""
        news, self._news = list(self._news.values()), {}
        return news
