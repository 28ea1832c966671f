"""The userspace IP host: packets in, sockets up; sockets' bytes in, packets out. The five verbs of ARCHITECTURE.md.

Owns which socket a packet is for, and the loop to ourselves; ports are in tcp_demux and udp_demux, what may be asked
and said by ICMP in icmp_demux, packets for others in forwarder. Refuses to know tunnels, routes, filters and clocks.
RFC 1122, 8200, 9293, 768, 792, 4443.

A `Stack` has three faces: the overlay that an engine drives (`receive` to `path_changed`), `Sockets`, and the verbs of
who forwards for others. What comes names its origin, what leaves its hop (ts_base/who.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set

from ts_base.ip import ICMP, ICMP6, TCP, TUNNEL_MTU, UDP, is_martian_source
from ts_base.ip_headers import ip_packet
from ts_base.timers import Timers
from ts_base.who import Hop, Lanes, Origin, PeerId
from ts_netstack import icmp
from ts_netstack.arrivals import USUAL, Arrival, may_speak
from ts_netstack.forwarder import ForwardedFlow, Forwarder, HeldSyn
from ts_netstack.fragments import Reassembly
from ts_netstack.icmp_demux import IcmpSockets, Ping
from ts_netstack.ledger import Ledger, Socket
from ts_netstack.outbox import REPLIES_LIMIT, Outbox
from ts_netstack.own_addresses import OwnAddresses
from ts_netstack.path_sizes import PathSizes, SegmentLimits, overhead
from ts_netstack.ports import check_port
from ts_netstack.sockets import PING_TIMEOUT, StackStatistics
from ts_netstack.tcp import TcpConnection
from ts_netstack.tcp_demux import TcpSockets
from ts_netstack.tcp_listen import DEFAULT_BACKLOG, HalfOpen, TcpListen
from ts_netstack.tcp_states import FIN_WAIT_2
from ts_netstack.udp import UdpPort
from ts_netstack.udp_demux import UdpSockets
from ts_netstack.wire import (
    NO_NEXT_HEADER,
    TCP_HEADER,
    Address,
    Packet,
    Unroutable,
    is_transport_checksum_right,
    parse_packet_untrusted,
    parse_segment_untrusted,
)

LOOP_ROUNDS = 16  # round trips to ourselves within one transmit
_TIME_WAIT, _FRAGMENTS, _PATH_MTU, _LOOP = "time-wait", "fragments", "path-mtu", "loop"


class Stack:
    """One host with its addresses. `verify_checksums` is for transports without an AEAD, such as a TUN device.

    `apart` are addresses that it has from the beginning and that it alone may speak to: who binds a port on all
    addresses does not mean them, nor those of services, which are silent where nobody is bound.
    """

    def __init__(
        self,
        *,
        entropy: Callable[[int], bytes],
        mtu: int = TUNNEL_MTU,
        verify_checksums: bool = False,
        apart: Sequence[bytes] = (),
    ) -> None:
        if not 576 <= mtu <= 65535:
            raise ValueError(f"an MTU of {mtu} is none")
        ledger = self._ledger = Ledger(verify_checksums)
        self.drops = ledger.drops
        self.exits_in_use = ledger.exits
        self._timers: Timers[object] = Timers()
        self._own = OwnAddresses(apart)
        self._paths = PathSizes(mtu)
        self._outbox = Outbox(self._paths, entropy, self.drops)
        self._tcp = TcpSockets(ledger, self._timers, entropy(36), self._outbox.replies, self._own)
        self._udp = UdpSockets(self._own, self._outbox, ledger, entropy)
        self._icmp = IcmpSockets(self._own, self._outbox, ledger, entropy)
        self.forwarder = Forwarder(self._own, self._outbox, ledger, self._timers, self._tcp, self._icmp)
        self._reassembly = Reassembly(self.drops)
        self._take_back: Callable[[list[bytes]], list[bytes]] = list

    # -- configuration ---------------------------------------------------------------------------------------------

    def set_addresses(self, addresses: Sequence[bytes], now: float = 0.0, services: Sequence[bytes] = ()) -> None:
        """Our own addresses; the first of each family is the source of what we open. Services have theirs besides."""
        self._tcp.forget_addresses(self._own.replace(addresses, services))

    def path_changed(self, destination: bytes) -> None:
        """The way to `destination` is another one: what was learnt of its MTU is forgotten."""
        self._paths.forget(destination)
        self._tcp.widen_segment_sizes(destination, self._paths)

    def path_moved(self, destination: bytes, now: float) -> None:
        """There is another way to `destination` since a moment; the old one may have lost what was sent: ask now."""
        self._tcp.path_moved(destination, now)

    def take_resent(self) -> dict[bytes, int]:
        """How many bytes were sent again to whom since last asked."""
        resent, self._ledger.resent = self._ledger.resent, {}
        return resent

    def fail_hop(self, hop: Hop) -> None:
        """Packets by `hop` were dropped, since nobody takes them: what cannot go on ends now."""
        self._tcp.fail_hop(hop)
        for port in self._udp.ports.values():
            if port.via and port.remote is not None and (port.remote[0], port.via) == hop:
                port.lose()

    def follow_routes(self, peer_for: Callable[[bytes, PeerId], PeerId | None], exits: Set[PeerId]) -> None:
        """Routes are others now: what was opened through a peer that takes it no more ends, though it say nothing."""
        if not self.exits_in_use:
            return
        for hop in {one.hop for one in self._tcp.flows.values() if one.via}:
            if peer_for(*hop) is None:
                self._tcp.fail_hop(hop)
        for port in self._udp.ports.values():
            if port.via and port.via not in exits:
                port.lose()

    @property
    def connections(self) -> int:
        return len(self._tcp.flows)

    @property
    def is_quiet(self) -> bool:
        """Whether every connection has said all it will say and was heard."""
        return all(one.state == FIN_WAIT_2 for one in self._tcp.flows.values())

    def close_all(self, now: float) -> None:
        """Let go of every connection as its owner would: FIN, or RST where bytes were left unread."""
        for connection in list(self._tcp.flows.values()):
            connection.close(now)

    def abort_all(self, now: float) -> None:
        """Reset what is still open."""
        for connection in list(self._tcp.flows.values()):
            connection.abort(now)

    def sockets(self) -> list[Socket]:
        """Everything that is open."""
        tcp = [*self._tcp.flows.values(), *self._tcp.listeners.values()]
        return [*tcp, *self._udp.ports.values(), *self.forwarder.flows.values()]

    def statistics(self) -> StackStatistics:
        self._sweep_closed()  # what was closed is in no table any more
        transports = self._tcp.statistics(), self._udp.statistics(), self._icmp.statistics()
        rest = self._reassembly.statistics(), self.forwarder.statistics()
        return StackStatistics(*transports, *rest, dict(self.drops))

    # -- sockets ---------------------------------------------------------------------------------------------------

    def connect(self, remote: Address, now: float, *, local_port: int = 0, via: PeerId = 0) -> TcpConnection:
        """Begin a TCP connection, through the peer `via` if that is named; OSError when it cannot even begin."""
        self._sweep_closed()
        check_port(remote[1], lowest=1)
        check_port(local_port)
        local = (self._own.source_for(remote[0]), local_port)
        hop = self._own.hop_to(remote[0], via)
        return self._tcp.connect(local, remote, hop, self._paths.segment_size(hop), now)

    def listen(self, port: int, host: bytes | None = None, backlog: int = DEFAULT_BACKLOG) -> TcpListen:
        self._sweep_closed()
        self._own.check(host)
        check_port(port)
        return self._tcp.listen(port, host, backlog)

    def bind_udp(self, port: int = 0, host: bytes | None = None, via: PeerId = 0) -> UdpPort:
        """A UDP port; one that is bound `via` a peer sends everything there and hears only that peer."""
        self._sweep_closed()
        self._own.check(host)
        check_port(port)
        return self._udp.bind(port, host, via)

    def ping(
        self, destination: bytes, now: float, size: int = 0, timeout: float = PING_TIMEOUT, via: PeerId = 0
    ) -> Ping:
        """Send one echo request with `size` bytes of payload."""
        ping = self._icmp.ping(destination, via, size, now, timeout)
        self._timers.set(ping, ping.deadline)
        return ping

    def _sweep_closed(self) -> None:
        closed = self._ledger.closed
        while closed:
            socket = closed.pop()
            if isinstance(socket, TcpListen):
                self._tcp.forget_listener(socket)
            elif isinstance(socket, ForwardedFlow):
                self.forwarder.forget_flow(socket)
            elif isinstance(socket, UdpPort):
                self._udp.forget(socket)

    # -- inbound ---------------------------------------------------------------------------------------------------

    def receive(self, runs: list[tuple[Origin, list[bytes]]], now: float) -> None:
        """IP packets for us, in the order they came; bytes behind a packet's own length are ignored."""
        if self._ledger.closed:
            self._sweep_closed()
        for origin, packets in runs:
            self._receive_run(origin, packets, now)

    def _receive_run(self, origin: Origin, packets: list[bytes], now: float) -> None:
        flows = self._tcp.flows
        runs: dict[bytes, list[bytes]] = {}
        last: bytes | None = None
        run: list[bytes] = []
        for packet in packets:
            try:
                first = packet[0]
                if first == 0x45 and packet[9] == TCP:
                    key = packet[12:24]
                elif first >> 4 == 6 and packet[6] == TCP:
                    key = packet[8:44]
                else:
                    self._receive_carefully(packet, origin, now)
                    continue
            except IndexError:
                self.drops["ip.runt"] += 1
                continue
            if key != last:
                last = key
                run = runs.setdefault(key, [])
            run.append(packet)
        peer, is_usual = origin
        for key, run in runs.items():
            connection = flows.get(key)
            if connection is None:
                self._receive_unclaimed(key, run, origin, now)
            elif connection.via == peer if connection.via else is_usual:  # may_speak, without the call
                connection.receive_run(run, now)
            else:
                self.drops["tcp.wrong_peer"] += len(run)
        strays = self._ledger.strays
        while strays:
            self._receive_carefully(strays.pop(), origin, now)

    def _receive_unclaimed(self, key: bytes, run: list[bytes], origin: Origin, now: float) -> None:
        for index, packet in enumerate(run):
            connection = self._tcp.flows.get(key)
            if connection is not None:  # the packet before this one began it
                connection.receive_run(run[index:], now)
                return
            self._receive_carefully(packet, origin, now)

    def _receive_carefully(self, data: bytes, origin: Origin, now: float) -> None:
        """Anything but a segment of a known connection, and everything that is not what it seems."""
        try:
            packet = parse_packet_untrusted(data, self._ledger.verify)
            if is_martian_source(packet.source):
                raise Unroutable("ip.martian_source")
            if packet.destination not in self._own.all and not self.forwarder.covers(packet.destination):
                raise Unroutable("ip.not_our_address")
            if packet.fragment is not None:
                whole = self._reassembly.add(packet, now, origin[0])
                self._timers.set(_FRAGMENTS, self._reassembly.next_expiry())
                if whole is None:
                    return
                packet = whole
            self._dispatch(packet, data, origin, now)
        except Unroutable as wrong:
            self.drops[wrong.reason] += 1

    def _dispatch(self, packet: Packet, data: bytes, origin: Origin, now: float) -> None:
        protocol = packet.protocol
        if protocol == TCP:
            self._receive_tcp(packet, origin, now)
        elif protocol == UDP:
            self._receive_udp(packet, data, origin, now)
        elif protocol == (ICMP if len(packet.source) == 4 else ICMP6):
            found = self._icmp.receive_untrusted(packet, origin, now)
            if isinstance(found, icmp.Report):
                self._receive_report(found, origin, now)
            elif found is not None:
                self.forwarder.receive_echo(found, origin, now)
        elif not may_speak(origin, 0):
            raise Unroutable("ip.wrong_peer")
        elif packet.destination not in self._own.all:
            raise Unroutable("ip.not_forwarded")
        else:
            self.drops["ip.unknown_protocol"] += 1
            if protocol != NO_NEXT_HEADER:
                self._icmp.say(icmp.protocol_unreachable, data, packet.destination, packet.source, now)

    def _receive_tcp(self, packet: Packet, origin: Origin, now: float) -> None:
        if len(packet.payload) < TCP_HEADER:
            raise Unroutable("tcp.truncated")
        if self._ledger.verify and not is_transport_checksum_right(packet):
            raise Unroutable("tcp.checksum")
        key = packet.source + packet.destination + packet.payload[:4]
        connection = self._tcp.flows.get(key)
        if not may_speak(origin, self._tcp.via_of(key)):
            raise Unroutable("tcp.wrong_peer")
        canonical = ip_packet(packet.source, packet.destination, TCP, packet.payload)
        if connection is not None:
            connection.receive_run([canonical], now)
            return
        if len(self._outbox.replies) >= REPLIES_LIMIT:
            raise Unroutable("ip.replies_full")
        segment = parse_segment_untrusted(packet.payload)
        if not segment.source_port or not segment.destination_port:
            raise Unroutable("tcp.port_zero")
        local, remote = (packet.destination, segment.destination_port), (packet.source, segment.source_port)
        mss = self._paths.segment_size((packet.source, 0))
        arrival = Arrival(key, local, remote, packet, segment, canonical, origin[0], mss)
        if packet.destination in self._own.all:
            self._tcp.receive_unclaimed(arrival, now)
        else:
            self.forwarder.receive_tcp(arrival, now)

    def _receive_udp(self, packet: Packet, data: bytes, origin: Origin, now: float) -> None:
        if packet.destination not in self._own.all:
            self.forwarder.receive_untrusted(packet, origin, now)
        elif not self._udp.receive_untrusted(packet, origin):
            self.drops["udp.no_port"] += 1
            if packet.destination in self._own.services:
                return
            whole = packet.fragment is None
            original = data if whole else ip_packet(packet.source, packet.destination, UDP, packet.payload)
            self._icmp.say(icmp.port_unreachable, original, packet.destination, packet.source, now)

    def _receive_report(self, report: icmp.Report, origin: Origin, now: float) -> None:
        """Believed only where it quotes something of ours that may be on its way."""
        is_ours = report.local in self._own.all
        if not is_ours and not self.forwarder.covers(report.local):
            raise Unroutable("icmp.not_ours")
        if report.protocol == TCP:
            hop = self._tcp.receive_report(report, origin, report.mtu - overhead(report.remote))
        elif report.protocol == UDP:
            sender = self._udp if is_ours else self.forwarder
            hop = sender.receive_report(report, origin)
        elif is_ours and report.protocol in (ICMP, ICMP6):
            self._icmp.receive_report(report, origin)
            return
        else:
            raise Unroutable("icmp.ignored")
        if report.kind == icmp.TOO_BIG and self._paths.learn(hop, report.mtu, now):
            self._timers.set(_PATH_MTU, self._paths.next_expiry())
            self._tcp.limit_segment_size(hop, self._paths.segment_size(hop))

    # -- beside another overlay ------------------------------------------------------------------------------------

    def holds(self, data: bytes, peer: PeerId) -> bool:
        """Whether a socket here waits for this packet of a peer, where somebody else has the same addresses as we."""
        try:
            packet = parse_packet_untrusted(data)
            if packet.fragment is not None and packet.fragment.offset:  # only the first piece shows the ports
                return self._reassembly.holds(packet, peer)
            if packet.protocol not in (ICMP, ICMP6):
                return self._holds_flow(packet.protocol, packet.source, packet.destination, packet.payload[:4])
            report = icmp.read_error_untrusted(packet, *icmp.parse_untrusted(packet))
        except Unroutable:
            return False
        if report is None:
            return self._icmp.holds(packet)
        ports = report.quoted[2:4] + report.quoted[:2]
        return self._holds_flow(report.protocol, report.remote, report.local, ports)

    def share_loop(self, take_back: Callable[[list[bytes]], list[bytes]] = list) -> None:
        """Ask `take_back` which of the packets to ourselves are for us; without an argument all are, as at first."""
        self._take_back = take_back

    def _holds_flow(self, protocol: int, remote: bytes, local: bytes, ports: bytes) -> bool:
        """`ports`: the remote one, then ours, as in a packet from there."""
        if self.forwarder.covers(local):
            return True
        if protocol == TCP:
            return self._tcp.holds(remote + local + ports)
        return protocol == UDP and self._udp.holds(local, int.from_bytes(ports[2:], "big"))

    # -- outbound --------------------------------------------------------------------------------------------------

    def transmit(
        self, now: float, widths: SegmentLimits | None = None, lanes: Lanes | None = None
    ) -> list[tuple[Hop, list[bytes]]]:
        """All that is ready to leave, by hop; what is for ourselves never leaves. `widths` knows larger ways.

        What one connection sends by several of a hop's `lanes` is handed to them.
        """
        if self._ledger.closed:
            self._sweep_closed()
        runs: dict[Hop, list[bytes]] = {}
        for _ in range(LOOP_ROUNDS):
            self._collect(runs, widths, lanes, now)
            looped: list[bytes] = []
            for hop in self._own.hops & runs.keys():
                looped += runs.pop(hop)
            if not looped or not (looped := self._take_back(looped)):
                return list(runs.items())
            self._receive_run(USUAL, looped, now)
        self._timers.set(_LOOP, now)  # who talks to itself without end lets others have their turn
        return list(runs.items())

    def _collect(
        self, runs: dict[Hop, list[bytes]], widths: SegmentLimits | None, lanes: Lanes | None, now: float
    ) -> None:
        ledger, timers, outbox = self._ledger, self._timers, self._outbox
        if self._tcp.opening or self._tcp.unanswered:
            self._tcp.open_ways(runs, widths)
        dirty, ledger.dirty = ledger.dirty, {}
        for connection in dirty:
            if widths is not None and connection.has_bulk:
                connection.set_large(self._paths.large_segment_size(connection.hop, widths))
            if lanes is not None and connection.is_worth_dividing:
                packets = connection.emit_by(lanes, now)
            else:
                packets = connection.emit(now)
            if packets:
                hop = connection.hop
                waiting = runs.get(hop)
                if waiting is None:
                    runs[hop] = packets
                else:
                    waiting += packets
            deadline = connection.deadline()
            if deadline == math.inf:
                timers.clear(connection)
            else:
                timers.set(connection, deadline)
        if ledger.finished:
            for connection in ledger.finished:
                self._tcp.settle(connection, now)
                self.forwarder.settle(connection.key)
            ledger.finished.clear()
            timers.set(_TIME_WAIT, self._tcp.time_wait.next_expiry())
        if outbox.replies or outbox.datagrams:
            outbox.empty_into(runs)

    # -- time ------------------------------------------------------------------------------------------------------

    def handle_timer(self, now: float) -> None:
        for name in self._timers.pop_due(now):
            if isinstance(name, TcpConnection):
                name.handle_timer(now)
            elif isinstance(name, HalfOpen):
                self._tcp.on_half_open_timer(name, now)
            elif isinstance(name, HeldSyn):
                self.forwarder.expire_held(name)
            elif isinstance(name, ForwardedFlow):
                self.forwarder.on_idle_timer(name, now)
            elif isinstance(name, Ping):
                self._icmp.timed_out(name)
            elif name == _TIME_WAIT:
                self._tcp.time_wait.expire(now)
                self._timers.set(_TIME_WAIT, self._tcp.time_wait.next_expiry())
            elif name == _FRAGMENTS:
                self._reassembly.expire(now)
                self._timers.set(_FRAGMENTS, self._reassembly.next_expiry())
            elif name == _PATH_MTU:
                for destination, _ in self._paths.expired(now):
                    self._tcp.widen_segment_sizes(destination, self._paths)
                self._timers.set(_PATH_MTU, self._paths.next_expiry())

    def next_timer(self) -> float:
        """The next deadline; inf = asleep. What waits to be sent waits for transmit, not for time."""
        return self._timers.next()

    def take_messages(self) -> list[Socket]:
        """Sockets that changed since last asked."""
        if not self._ledger.changed:
            return []
        changed, self._ledger.changed = list(self._ledger.changed), {}
        return changed
