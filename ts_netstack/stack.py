"""The userspace IP host: packets in, sockets up; sockets' bytes in, packets out. The five verbs of ARCHITECTURE.md.

Owns our addresses, which socket a packet is for, what ICMP may ask and say, and the loop to ourselves; ports are in
tcp_demux and udp_demux. Refuses to know tunnels, peers, filters and clocks. RFC 1122, 8200, 9293, 768, 792, 4443.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ts_base.budget import Budget
from ts_base.ip import ICMP, ICMP6, TCP, TUNNEL_MTU, UDP, is_martian_source
from ts_base.ip_headers import ip_packet
from ts_base.timers import Timers
from ts_base.who import Origin
from ts_netstack import icmp
from ts_netstack.fragments import Reassembly
from ts_netstack.ledger import Ledger
from ts_netstack.outbox import REPLIES_LIMIT, Outbox
from ts_netstack.path_sizes import PathSizes, Routes, overhead
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
    udp_payload,
)

if TYPE_CHECKING:
    from ts_netstack.ledger import Socket

LOOP_ROUNDS = 16  # round trips to ourselves within one transmit
PING_TIMEOUT = 10.0

_TIME_WAIT, _FRAGMENTS, _PATH_MTU = "time-wait", "fragments", "path-mtu"


class Stack:
    """One host with its addresses. `verify_checksums` is for transports without an AEAD, such as a TUN device."""

    def __init__(
        self, *, entropy: Callable[[int], bytes], mtu: int = TUNNEL_MTU, verify_checksums: bool = False
    ) -> None:
        if not 576 <= mtu <= 65535:
            raise ValueError(f"an MTU of {mtu} is none")
        self._entropy = entropy
        self._ledger = Ledger(verify_checksums)
        self.drops = self._ledger.drops
        self._timers: Timers[object] = Timers()
        self._paths = PathSizes(mtu)
        self._outbox = Outbox(self._paths, entropy, self.drops)
        self._tcp = TcpSockets(self._ledger, self._timers, entropy(36), self._outbox.replies)
        self._udp = UdpSockets(self, self._ledger, entropy)
        self._reassembly = Reassembly(self.drops)
        self._pings = icmp.Pings(self._ledger)
        self._echoes = Budget(icmp.ECHO_PER_SECOND, icmp.ECHO_BURST)
        self._errors = Budget(icmp.ERRORS_PER_SECOND, icmp.ERROR_BURST)
        self._looped: list[bytes] = []
        self._addresses: frozenset[bytes] = frozenset()
        self._source: dict[int, bytes] = {}  # by address length

    # -- configuration ---------------------------------------------------------------------------------------------

    def set_addresses(self, addresses: Sequence[bytes], now: float = 0.0) -> None:
        """Our own addresses; the first of each family is the source of what we open."""
        self._addresses = frozenset(addresses)
        self._source = {len(address): address for address in reversed(addresses)}
        self._tcp.forget_addresses(self._addresses)

    @property
    def routes(self) -> Routes | None:
        """Who knows which ways carry more than the MTU; None where nobody does."""
        return self._paths.routes

    @routes.setter
    def routes(self, routes: Routes | None) -> None:
        self._paths.routes = routes

    def path_changed(self, destination: bytes) -> None:
        """The way to `destination` is another one: what was learnt of its MTU is forgotten."""
        self._paths.forget(destination)
        for connection in self._connections_to(destination):
            connection.widen_segment_size(self._paths.segment_size(destination))

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

    def sockets(self) -> list[TcpConnection | TcpListen | UdpPort]:
        """Everything that is open."""
        return [*self._tcp.flows.values(), *self._tcp.listeners.values(), *self._udp.ports.values()]

    # -- sockets ---------------------------------------------------------------------------------------------------

    def connect(self, remote: Address, now: float, *, local_port: int = 0) -> TcpConnection:
        """Begin a TCP connection; OSError when it cannot even begin."""
        self._sweep_closed()
        _check_port(remote[1], lowest=1)
        _check_port(local_port)
        local = (self._source_for(remote[0]), local_port)
        return self._tcp.connect(local, remote, self._paths.sizes_for(remote[0]), now)

    def listen(self, port: int, host: bytes | None = None, backlog: int = DEFAULT_BACKLOG) -> TcpListen:
        self._sweep_closed()
        self._check_host(host)
        _check_port(port)
        return self._tcp.listen(port, host, backlog)

    def bind_udp(self, port: int = 0, host: bytes | None = None) -> UdpPort:
        self._sweep_closed()
        self._check_host(host)
        _check_port(port)
        return self._udp.bind(port, host)

    def ping(self, destination: bytes, now: float, size: int = 0, timeout: float = PING_TIMEOUT) -> icmp.Ping:
        """Send one echo request with `size` bytes of payload."""
        source = self._source_for(destination)
        ping = self._pings.begin(destination, size, now, timeout, self._entropy)
        self._timers.set(ping, ping.deadline)
        self._outbox.post(destination, icmp.echo_request(source, destination, ping.identifier, bytes(size)))
        return ping

    def _source_for(self, destination: bytes) -> bytes:
        if destination in self._addresses:
            return destination
        source = self._source.get(len(destination))
        if source is None:
            raise OSError(errno.EADDRNOTAVAIL, "we have no address of this family")
        return source

    def _check_host(self, host: bytes | None) -> None:
        if host is not None and host not in self._addresses:
            raise OSError(errno.EADDRNOTAVAIL, "not one of our addresses")

    def _sweep_closed(self) -> None:
        closed = self._ledger.closed
        while closed:
            socket = closed.pop()
            if isinstance(socket, TcpListen):
                self._tcp.forget_listener(socket)
            else:
                self._udp.forget(socket)

    # -- inbound ---------------------------------------------------------------------------------------------------

    def receive(self, runs: Sequence[tuple[Origin, list[bytes]] | bytes], now: float) -> None:
        """IP packets for us, in the order they came; bytes behind a packet's own length are ignored."""
        packets: list[bytes] = []
        for run in runs:
            packets += (run,) if isinstance(run, bytes) else run[1]
        self._receive(packets, now)

    def _receive(self, packets: list[bytes], now: float) -> None:
        if self._ledger.closed:
            self._sweep_closed()
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
                    self._receive_carefully(packet, now)
                    continue
            except IndexError:
                self.drops["runt"] += 1
                continue
            if key != last:
                last = key
                run = runs.setdefault(key, [])
            run.append(packet)
        for key, run in runs.items():
            connection = flows.get(key)
            if connection is not None:
                connection.receive_run(run, now)
            else:
                self._receive_unclaimed(key, run, now)
        strays = self._ledger.strays
        while strays:
            self._receive_carefully(strays.pop(), now)

    def _receive_unclaimed(self, key: bytes, run: list[bytes], now: float) -> None:
        for index, packet in enumerate(run):
            connection = self._tcp.flows.get(key)
            if connection is not None:
                connection.receive_run(run[index:], now)
                return
            self._receive_carefully(packet, now)

    def _receive_carefully(self, data: bytes, now: float) -> None:
        """Anything but a segment of a known connection, and everything that is not what it seems."""
        try:
            packet = parse_packet_untrusted(data, self._ledger.verify)
            if is_martian_source(packet.source):
                raise Unroutable("martian_source")
            if packet.destination not in self._addresses:
                raise Unroutable("not_our_address")
            if packet.fragment is not None:
                whole = self._reassembly.add(packet, now)
                self._timers.set(_FRAGMENTS, self._reassembly.next_expiry())
                if whole is None:
                    return
                packet = whole
            self._dispatch(packet, data, now)
        except Unroutable as wrong:
            self.drops[wrong.reason] += 1

    def _dispatch(self, packet: Packet, data: bytes, now: float) -> None:
        protocol = packet.protocol
        if protocol == TCP:
            self._receive_tcp(packet, now)
        elif protocol == UDP:
            if not self._udp.receive_untrusted(packet):
                self._refuse_datagram(packet, data, now)
        elif protocol == (ICMP if len(packet.source) == 4 else ICMP6):
            self._receive_icmp(packet, now)
        else:
            self.drops["unknown_protocol"] += 1
            if protocol != NO_NEXT_HEADER and self._errors.take(now):
                self._outbox.answer(packet.source, icmp.protocol_unreachable(data, packet.destination, packet.source))

    def _receive_tcp(self, packet: Packet, now: float) -> None:
        if len(packet.payload) < TCP_HEADER:
            raise Unroutable("tcp_truncated")
        if self._ledger.verify and not is_transport_checksum_right(packet):
            raise Unroutable("tcp.checksum")
        key = packet.source + packet.destination + packet.payload[:4]
        canonical = ip_packet(packet.source, packet.destination, TCP, packet.payload)
        connection = self._tcp.flows.get(key)
        if connection is not None:
            connection.receive_run([canonical], now)
        elif len(self._outbox.replies) < REPLIES_LIMIT:
            self._tcp.receive_unclaimed(key, packet, canonical, self._paths.sizes_for(packet.source), now)
        else:
            self.drops["replies_limit"] += 1

    def _refuse_datagram(self, packet: Packet, data: bytes, now: float) -> None:
        self.drops["udp_no_port"] += 1
        if self._errors.take(now):
            whole = packet.fragment is None
            original = data if whole else ip_packet(packet.source, packet.destination, UDP, packet.payload)
            self._outbox.answer(packet.source, icmp.port_unreachable(original, packet.destination, packet.source))

    def _receive_icmp(self, packet: Packet, now: float) -> None:
        if not icmp.is_checksum_right(packet):
            raise Unroutable("icmp_checksum")
        kind, code, rest, body = icmp.parse_untrusted(packet)
        is_ip4 = packet.protocol == ICMP
        if kind == (icmp.ECHO4 if is_ip4 else icmp.ECHO6):
            if not self._echoes.take(now):
                raise Unroutable("icmp_echo_limit")
            self._outbox.post(packet.source, icmp.reply_to_echo(packet))
        elif kind == (icmp.ECHO_REPLY4 if is_ip4 else icmp.ECHO_REPLY6):
            self._pings.answered(packet.source, rest, now)
        else:
            report = icmp.read_error_untrusted(packet, kind, code, rest, body)
            if report is None:
                raise Unroutable("icmp_ignored")
            self._receive_report(report, now)

    def _receive_report(self, report: icmp.Report, now: float) -> None:
        """Believed only where it quotes something of ours that may be on its way."""
        if report.local not in self._addresses:
            raise Unroutable("icmp_not_ours")
        if report.protocol == TCP:
            self._tcp.receive_report(report, report.mtu - overhead(report.remote))
        elif report.protocol == UDP:
            self._udp.receive_report(report)
        elif report.protocol in (ICMP, ICMP6):
            self._pings.failed(int.from_bytes(report.quoted[4:8], "big"), report.remote, report.kind)
        if report.kind == icmp.TOO_BIG and report.protocol in (TCP, UDP):
            self._learn_path_mtu(report.remote, report.mtu, now)

    def _learn_path_mtu(self, destination: bytes, mtu: int, now: float) -> None:
        if self._paths.learn(destination, mtu, now):
            self._timers.set(_PATH_MTU, self._paths.next_expiry())
            for connection in self._connections_to(destination):
                connection.limit_segment_size(self._paths.segment_size(destination))

    def _connections_to(self, destination: bytes) -> list[TcpConnection]:
        return [one for one in self._tcp.flows.values() if one.remote[0] == destination]

    # -- outbound --------------------------------------------------------------------------------------------------

    def send_udp(self, port: UdpPort, data: bytes, remote: Address) -> None:
        """For UdpPort: one datagram towards `remote`."""
        _check_port(remote[1], lowest=1)
        source = port.host or self._source_for(remote[0])
        if len(source) != len(remote[0]):
            raise OSError(errno.EAFNOSUPPORT, "the port is bound to an address of the other family")
        payload = udp_payload((source, port.port), remote, data)
        self._outbox.post(remote[0], ip_packet(source, remote[0], UDP, payload))

    def transmit(self, now: float, widths: Routes | None = None) -> list[tuple[Any, list[bytes]]]:
        """All that is ready to leave, by destination; what is for ourselves never leaves."""
        if self._ledger.closed:
            self._sweep_closed()
        if widths is not None:
            self._paths.routes = widths
        runs: dict[bytes, list[bytes]] = {}
        for _ in range(LOOP_ROUNDS):
            self._collect(runs, now)
            for address in self._addresses & runs.keys():
                self._looped += runs.pop(address)
            if not self._looped:
                break
            looped, self._looped = self._looped, []
            self._receive(looped, now)
        return list(runs.items()) if widths is None else [((address, 0), run) for address, run in runs.items()]

    def _collect(self, runs: dict[bytes, list[bytes]], now: float) -> None:
        ledger, timers, outbox = self._ledger, self._timers, self._outbox
        dirty, ledger.dirty = ledger.dirty, {}
        for connection in dirty:
            if connection.has_bulk:
                connection.set_large(self._paths.large_segment_size(connection.remote[0]))
            packets = connection.emit(now)
            if packets:
                destination = connection.remote[0]
                waiting = runs.get(destination)
                if waiting is None:
                    runs[destination] = packets
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
            ledger.finished.clear()
            timers.set(_TIME_WAIT, self._tcp.next_time_wait())
        if outbox.replies or outbox.datagrams:
            outbox.empty_into(runs)

    # -- time ------------------------------------------------------------------------------------------------------

    def handle_timer(self, now: float) -> None:
        for name in self._timers.pop_due(now):
            if isinstance(name, TcpConnection):
                name.handle_timer(now)
            elif isinstance(name, HalfOpen):
                self._tcp.on_half_open_timer(name, now)
            elif isinstance(name, icmp.Ping):
                self._pings.timed_out(name)
            elif name == _TIME_WAIT:
                self._tcp.expire_time_wait(now)
                self._timers.set(_TIME_WAIT, self._tcp.next_time_wait())
            elif name == _FRAGMENTS:
                self._reassembly.expire(now)
                self._timers.set(_FRAGMENTS, self._reassembly.next_expiry())
            elif name == _PATH_MTU:
                for destination in self._paths.expired(now):
                    self.path_changed(destination)
                self._timers.set(_PATH_MTU, self._paths.next_expiry())

    def next_timer(self) -> float:
        """The next deadline; minus infinity when something waits for transmit."""
        if self._ledger.dirty or self._outbox.replies or self._outbox.datagrams or self._looped:
            return -math.inf
        return self._timers.next()

    def take_messages(self) -> list[Socket]:
        """Sockets that changed since last asked."""
        changed = self._ledger.changed
        if not changed:
            return []
        self._ledger.changed = {}
        return list(changed)


def _check_port(port: int, lowest: int = 0) -> None:
    if not lowest <= port <= 65535:
        raise ValueError(f"not a port number: {port}")
