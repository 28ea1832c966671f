"""Packets for addresses that are not ours: what a subnet router and an exit node hear.

A SYN is held and is news, a `Knock`; nobody is answered before somebody has dialled outward and says `admit` or
`refuse`. Datagrams are flows, which end when nothing was said for a while, and echo requests are answered when somebody
says so. Owns their limits, over all and per peer. Refuses to know routes, which are one question handed in, and what
becomes of the bytes. RFC 9293 section 3.10.7.2, RFC 4787 section 4.3 (idle flows), RFC 1812 section 5.3.7 (martians).
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, Protocol

from ts_base.budget import Budget
from ts_base.ip import UDP, is_martian_source
from ts_base.ip_headers import ACK, FIN, RST, SYN, ip_packet
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
from ts_netstack.wire import MASK32, Address, Packet, Unroutable, reset_for, udp_payload

HELD_SECONDS = 30.0  # after the last SYN of a peer that wants to be let in: its next one would have come by then
FLOW_DATAGRAMS, FLOW_BYTES = 64, 64 << 10
DNS_PORT = 53
ECHO_BUDGETS = 1024  # peers whose pings are remembered


class Covered(Protocol):
    """The routes we forward for."""

    def covers(self, address: bytes) -> bool: ...


class ForwarderLimits(NamedTuple):
    """How much is held, admitted and remembered: over all, and of each peer."""

    held: int = 1024
    held_each: int = 256
    admitted: int = 4096
    admitted_each: int = 1024
    flows: int = 4096
    flows_each: int = 512
    flow_idle: float = 120.0  # RFC 4787 REQ-5: not sooner
    dns_idle: float = 30.0  # a question and its answer; a resolver asks from a new port each time
    echoes: int = 20
    echoes_per_second: float = 10.0  # of each peer


class Knock(NamedTuple):
    """`peer` wants a TCP connection from `remote` to `local`, an address we forward for. Told once."""

    key: bytes
    local: Address
    remote: Address
    peer: PeerId


class Echo(NamedTuple):
    """`peer` asks whether `local`, an address we forward for, is there."""

    local: bytes
    peer: PeerId
    request: Packet


class ForwarderStatistics(NamedTuple):
    """What is held, admitted, flowing, and asked."""

    held: int
    admitted: int
    flows: int
    echoes: int


class Quota:
    """So many over all, and so many for each peer; refusals are counted under `word`."""

    __slots__ = ("_by_peer", "_drops", "_each", "_whole", "_word", "taken")

    def __init__(self, whole: int, each: int, drops: Counter[str], word: str) -> None:
        self._whole, self._each = whole, each
        self._drops, self._word = drops, word
        self._by_peer: Counter[PeerId] = Counter()
        self.taken = 0

    def change(self, whole: int, each: int) -> None:
        """Other limits from now on; what is taken stays."""
        self._whole, self._each = whole, each

    def heaviest(self) -> PeerId:
        """The peer that has taken most."""
        return max(self._by_peer, key=self._by_peer.__getitem__)

    def is_full_for(self, peer: PeerId) -> bool:
        return self._by_peer[peer] >= self._each

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

    def send(self, data: bytes, remote: Address, now: float) -> None:
        self.active_at = now
        super().send(data, remote, now)

    def reply(self, data: bytes, now: float) -> None:
        """What came from outside, back to the peer."""
        self.send(data, self.peer_address, now)

    def question(self) -> bytes:
        """The head of a packet that the peer has sent, for an ICMP error to quote (RFC 792: 64 bits of it)."""
        return ip_packet(self.peer_address[0], self.local[0], UDP, udp_payload(self.peer_address, self.local, b""))

    def __repr__(self) -> str:
        return f"ForwardedFlow({self.port})"


News = Knock | ForwardedFlow | Echo


class Forwarder(Socket):
    """One of a stack, changed when there is news. `routes` None, the default, forwards nothing."""

    __slots__ = (
        *("_admitted", "_admitted_quota", "_echo_budgets", "_echoes", "_flow_quota", "_flows_of", "_gone", "_held"),
        *("_held_quota", "_icmp", "_ledger", "_limits", "_news", "_outbox", "_own", "_tcp", "_timers"),
        *("flows", "routes"),
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
        self._gone: list[bytes] = []
        self._news: dict[object, News] = {}  # by what is held, flows or is asked
        self._admitted: dict[bytes, PeerId] = {}
        self.flows: dict[bytes, ForwardedFlow] = {}
        self._flows_of: dict[PeerId, dict[bytes, ForwardedFlow]] = {}  # the one that was silent longest comes first
        self._echoes = 0
        self._echo_budgets: dict[PeerId, Budget] = {}
        drops = ledger.drops
        limits = self._limits = ForwarderLimits()
        self._held_quota = Quota(limits.held, limits.held_each, drops, "tcp.knocks")
        self._admitted_quota = Quota(limits.admitted, limits.admitted_each, drops, "tcp.forwarded")
        self._flow_quota = Quota(limits.flows, limits.flows_each, drops, "udp.flows")

    def set_limits(self, limits: ForwarderLimits) -> None:
        """Other limits from now on; nothing that is there already ends by them."""
        self._limits = limits
        self._held_quota.change(limits.held, limits.held_each)
        self._admitted_quota.change(limits.admitted, limits.admitted_each)
        self._flow_quota.change(limits.flows, limits.flows_each)

    def statistics(self) -> ForwarderStatistics:
        return ForwarderStatistics(len(self._held), len(self._admitted), len(self.flows), self._echoes)

    def covers(self, address: bytes) -> bool:
        """Whether packets to `address` are for us to forward; never those that belong on no wire."""
        return self.routes is not None and not is_martian_source(address) and self.routes.covers(address)

    def set_routes(self, routes: Covered | None) -> None:
        """Forward for these from now on. What was admitted lives on: who carries it knows better."""
        self.routes = routes
        for held in [one for one in self._held.values() if not self.covers(one.knock.local[0])]:
            self._give_up(held)
        for flow in [one for one in self.flows.values() if not self.covers(one.local[0])]:
            self.end(flow)

    # -- TCP -------------------------------------------------------------------------------------------------------

    def receive_tcp(self, arrival: Arrival, now: float) -> None:
        """A segment to an address we forward for, of no connection."""
        if not self._tcp.leave_time_wait(arrival, now):
            return
        held = self._held.get(arrival.key)
        if held is not None:
            self._receive_held(held, arrival, now)
        elif arrival.segment.flags & (SYN | ACK | RST | FIN) != SYN:
            self._tcp.refuse(arrival, now)
        elif self._held_quota.take(arrival.peer):
            held = self._held[arrival.key] = HeldSyn(arrival)
            self._tell(held, held.knock)
            self._timers.set(held, now + HELD_SECONDS)

    def _receive_held(self, held: HeldSyn, arrival: Arrival, now: float) -> None:
        segment, known = arrival.segment, held.arrival.segment
        if segment.flags & (SYN | ACK | RST | FIN) == SYN:
            held.arrival = arrival  # again or another: the newest is the one that can still complete
            self._timers.set(held, now + HELD_SECONDS)
        elif segment.flags & RST and segment.seq == known.seq + 1 & MASK32:
            self._give_up(held)
        else:
            self._ledger.drops["tcp.handshake_wild"] += 1

    def _give_up(self, held: HeldSyn) -> None:
        """Nobody waits any more: whoever dials for it need not either."""
        if held not in self._news:
            self._gone.append(held.knock.key)
            self._ledger.changed[self] = None
        self._forget(held)

    def take_gone(self) -> list[bytes]:
        """Keys of knocks that were told, and whose callers have given up since last asked."""
        gone, self._gone = self._gone, []
        return gone

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

    def refuse(self, knock: Knock, now: float, *, is_reachable: bool) -> None:
        """Nobody answers there: say so by a RST, as the host itself would.

        Where not even the host can be reached, a router's word goes before it: the caller's error says more then, and
        a caller that takes no such word (RFC 1122 section 4.2.3.9 calls it soft) need not wait either.
        """
        held = self._held.get(knock.key)
        if held is None:
            return
        self._forget(held)
        arrival = held.arrival
        if not is_reachable:
            self._icmp.say(icmp.host_unreachable, arrival.data, arrival.local[0], arrival.remote[0], now)
        if (reply := reset_for(arrival.packet, arrival.segment)) is not None:
            self._outbox.answer(arrival.back, reply)

    def pass_over(self, knock: Knock) -> None:
        """There is no room to ask for it now: as if the SYN had been lost, so that the peer says it again."""
        held = self._held.get(knock.key)
        if held is not None:
            self._forget(held)

    def expire_held(self, held: HeldSyn) -> None:
        self._ledger.drops["tcp.knock_expired"] += 1
        self._give_up(held)

    def _forget(self, held: HeldSyn) -> None:
        del self._held[held.knock.key]
        self._news.pop(held, None)
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
            flow = self._begin(ForwardedFlow(self._outbox, self._own, self._ledger, key, local, remote, origin[0]), now)
            if flow is None:
                return
        flow.active_at = now
        mine = self._flows_of[flow.peer]
        mine[key] = mine.pop(key)
        flow.deliver(data, remote)

    def _begin(self, flow: ForwardedFlow, now: float) -> ForwardedFlow | None:
        """A place for a new flow, if need be that of the one that was silent longest: its peer's, or the heaviest's."""
        quota, peer = self._flow_quota, flow.peer
        if not quota.take(peer):
            victims = self._flows_of.get(peer if quota.is_full_for(peer) else quota.heaviest(), {})
            if (oldest := next(iter(victims.values()), None)) is None:
                return None
            self.end(oldest)
            self.forget_flow(oldest)
            quota.take(peer)
        self.flows[flow.key] = flow
        self._flows_of.setdefault(peer, {})[flow.key] = flow
        self._timers.set(flow, now + self._idle_of(flow))
        self._tell(flow, flow)
        return flow

    def _idle_of(self, flow: ForwardedFlow) -> float:
        return self._limits.dns_idle if flow.local[1] == DNS_PORT else self._limits.flow_idle

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
        until = flow.active_at + self._idle_of(flow)
        if until > now:
            self._timers.set(flow, until)
        else:
            self.end(flow)

    def end(self, flow: ForwardedFlow) -> None:
        """Nothing more will be heard of it; its owner sees that it is closed."""
        flow.close()
        self._ledger.changed[flow] = None

    def report_refusal(self, flow: ForwardedFlow, now: float) -> None:
        """Its destination says that nobody listens there: the peer need not wait (RFC 1122 section 3.2.2.1)."""
        self._icmp.say(icmp.port_unreachable, flow.question(), flow.local[0], flow.peer_address[0], now)

    def forget_flow(self, flow: ForwardedFlow) -> None:
        if self.flows.get(flow.key) is flow:
            del self.flows[flow.key]
            mine = self._flows_of[flow.peer]
            del mine[flow.key]
            if not mine:
                del self._flows_of[flow.peer]
            self._news.pop(flow, None)
            self._timers.clear(flow)
            self._flow_quota.give_back(flow.peer)

    # -- echo ------------------------------------------------------------------------------------------------------

    def receive_echo(self, request: Packet, origin: Origin, now: float) -> None:
        """An echo request to an address we forward for: somebody has to ask it, and says `answer_echo` or not."""
        if not may_speak(origin, 0):
            raise Unroutable("icmp.wrong_peer")
        peer = origin[0]
        if not self._budget_of(peer, now).take(now) or self._echoes >= self._limits.echoes:
            raise Unroutable("icmp.echo_limit")
        key = request.source + request.destination + request.payload[4:8]
        if key not in self._news:
            self._echoes += 1
            self._tell(key, Echo(request.destination, peer, request))

    def _budget_of(self, peer: PeerId, now: float) -> Budget:
        budgets = self._echo_budgets
        if peer not in budgets:
            if len(budgets) >= ECHO_BUDGETS:
                for one in [known for known, budget in budgets.items() if budget.is_full(now)] or list(budgets)[:1]:
                    del budgets[one]
            rate = self._limits.echoes_per_second
            budgets[peer] = Budget(rate, rate)
        return budgets[peer]

    def settle_echo(self, echo: Echo, now: float, *, is_there: bool) -> None:
        """Somebody has looked. The answer is that of the host itself: the same number, the same bytes."""
        self._echoes -= 1
        if is_there and self.covers(echo.local):
            self._outbox.post((echo.request.source, 0), icmp.reply_to_echo(echo.request))

    # -- both ------------------------------------------------------------------------------------------------------

    def _tell(self, key: object, news: News) -> None:
        self._news[key] = news
        self._ledger.changed[self] = None

    def take_news(self) -> list[News]:
        """SYNs held, flows begun and hosts asked for since last asked."""
        news, self._news = list(self._news.values()), {}
        return news
