"""The userspace IP host: packets in, sockets up; sockets' bytes in, packets out. The five verbs of ARCHITECTURE.md.

Owns demultiplexing, addresses, UDP ports, ICMP policy, path MTUs and the loop to our own addresses. Refuses to know
tunnels, peers, filters and clocks. RFC 1122, 8200, 9293, 768, 792, 4443.
"""

from __future__ import annotations

import errno
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ts_base.budget import Budget
from ts_base.ip import ICMP, ICMP6, TCP, UDP
from ts_base.timers import Timers
from ts_netstack import icmp
from ts_netstack.fragments import Reassembly, cut
from ts_netstack.ledger import Ledger
from ts_netstack.tcp import FIN_WAIT_2, TcpConnection
from ts_netstack.tcp_demux import Replies, TcpSockets
from ts_netstack.tcp_listen import DEFAULT_BACKLOG, HalfOpen, TcpListen
from ts_netstack.udp import UdpPort
from ts_netstack.wire import (
    IP4_HEADER,
    IP6_HEADER,
    NO_NEXT_HEADER,
    TCP_HEADER,
    UDP_FIXED,
    UDP_HEADER,
    Address,
    Packet,
    Sizes,
    Unroutable,
    ip_packet,
    is_martian_source,
    is_transport_checksum_right,
    parse_packet_untrusted,
    udp_payload,
)

if TYPE_CHECKING:
    from ts_netstack.ledger import Socket

DEFAULT_MTU = 1280
REPLIES_LIMIT = 4096  # packets nobody's connection has asked for, waiting for transmit
DATAGRAMS_LIMIT = 4 << 20  # bytes of UDP waiting for transmit
LOOP_ROUNDS = 16  # round trips to ourselves within one transmit
PATH_MTU_LIMIT = 1024
PATH_MTU_LIFETIME = 600.0
PING_TIMEOUT = 10.0

_TIME_WAIT, _FRAGMENTS, _PATH_MTU = "time-wait", "fragments", "path-mtu"


class Routes(Protocol):
    """What the stack asks of whoever knows the ways; answers are IP packet sizes, 0 where the MTU is all there is."""

    def offered_to(self, destination: bytes) -> int:
        """What we may say we take, by a way that carries it."""

    def carried_to(self, destination: bytes) -> int:
        """What the way of this moment carries."""


class Stack:
    """One host with its addresses. `verify_checksums` is for transports without an AEAD, such as a TUN device."""

    def __init__(
        self, *, entropy: Callable[[int], bytes], mtu: int = DEFAULT_MTU, verify_checksums: bool = False
    ) -> None:
        if not 576 <= mtu <= 65535:
            raise ValueError(f"an MTU of {mtu} is none")
        self._entropy = entropy
        self._mtu = mtu
        self._ledger = Ledger(verify_checksums)
        self.drops = self._ledger.drops
        self._timers: Timers[object] = Timers()
        self._replies: Replies = deque()
        self._datagrams: deque[tuple[bytes, list[bytes]]] = deque()
        self._datagrams_size = 0
        self._tcp = TcpSockets(self._ledger, self._timers, entropy(36), self._replies)
        self._udp: dict[tuple[int, bytes | None], UdpPort] = {}
        self._reassembly = Reassembly(self.drops)
        self._pings = icmp.Pings(self._ledger)
        self._echoes = Budget(icmp.ECHO_PER_SECOND, icmp.ECHO_BURST)
        self._errors = Budget(icmp.ERRORS_PER_SECOND, icmp.ERROR_BURST)
        self._path_mtu: dict[bytes, tuple[int, float]] = {}
        self._looped: list[bytes] = []
        self.routes: Routes | None = None
        self._addresses: frozenset[bytes] = frozenset()
        self._source: dict[int, bytes] = {}  # by address length

    # -- configuration ---------------------------------------------------------------------------------------------

    def set_addresses(self, addresses: Sequence[bytes]) -> None:
        """Our own addresses; the first of each family is the source of what we open."""
        self._addresses = frozenset(addresses)
        self._source = {}
        for address in addresses:
            self._source.setdefault(len(address), address)
        self._tcp.forget_addresses(self._addresses)

    def path_changed(self, destination: bytes) -> None:
        """The way to `destination` is another one: what was learnt of its MTU is forgotten."""
        self._path_mtu.pop(destination, None)
        for connection in self._connections_to(destination):
            connection.widen_segment_size(self._segment_size(destination))

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
        return [*self._tcp.flows.values(), *self._tcp.listeners.values(), *self._udp.values()]

    # -- sockets ---------------------------------------------------------------------------------------------------

    def connect(self, remote: Address, now: float, *, local_port: int = 0) -> TcpConnection:
        """Begin a TCP connection; OSError when it cannot even begin."""
        self._sweep_closed()
        _check_port(remote[1], lowest=1)
        _check_port(local_port)
        local = (self._source_for(remote[0]), local_port)
        return self._tcp.connect(local, remote, self._sizes_for(remote[0]), now)

    def listen(self, port: int, host: bytes | None = None, backlog: int = DEFAULT_BACKLOG) -> TcpListen:
        self._sweep_closed()
        self._check_host(host)
        _check_port(port)
        return self._tcp.listen(port, host, backlog)

    def bind_udp(self, port: int = 0, host: bytes | None = None) -> UdpPort:
        self._sweep_closed()
        self._check_host(host)
        _check_port(port)
        if not port:
            port = self._free_udp_port(host)
        elif self._is_bound(port, host):
            raise OSError(errno.EADDRINUSE, f"UDP port {port} is already bound")
        bound = self._udp[(port, host)] = UdpPort(self, self._ledger, port, host)
        return bound

    def ping(self, destination: bytes, now: float, size: int = 0, timeout: float = PING_TIMEOUT) -> icmp.Ping:
        """Send one echo request with `size` bytes of payload."""
        source = self._source_for(destination)
        if not 0 <= size <= 65000:
            raise ValueError(f"a ping of {size} bytes is none")
        if len(self._pings.outstanding) >= icmp.Pings.LIMIT:
            raise OSError(errno.ENOBUFS, "too many pings are on their way")
        identifier = int.from_bytes(self._entropy(4), "big")
        while identifier in self._pings.outstanding:
            identifier = identifier + 1 & 0xFFFFFFFF
        ping = icmp.Ping(destination, identifier, size, now, timeout)
        self._pings.outstanding[identifier] = ping
        self._timers.set(ping, ping.deadline)
        packet = icmp.echo_request(source, destination, identifier, bytes(size))
        self._queue_datagram(destination, self._fit(packet, destination))
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

    def _is_bound(self, port: int, host: bytes | None) -> bool:
        if (port, None) in self._udp or (port, host) in self._udp:
            return True
        return host is None and any(taken == port for taken, _ in self._udp)

    def _free_udp_port(self, host: bytes | None) -> int:
        start = int.from_bytes(self._entropy(2), "big")
        count = 65536 - 16384
        for step in range(count):
            port = 16384 + (start + step) % count
            if not self._is_bound(port, host):
                return port
        raise OSError(errno.EADDRINUSE, "every UDP port is bound")

    def _sweep_closed(self) -> None:
        closed = self._ledger.closed
        while closed:
            socket = closed.pop()
            if isinstance(socket, TcpListen):
                self._tcp.forget_listener(socket)
            elif self._udp.get((socket.port, socket.host)) is socket:
                del self._udp[(socket.port, socket.host)]

    # -- inbound ---------------------------------------------------------------------------------------------------

    def receive(self, packets: list[bytes], now: float) -> None:
        """IP packets for us, in the order they came; bytes behind a packet's own length are ignored."""
        if self._ledger.closed:
            self._sweep_closed()
        flows = self._tcp.flows
        runs: dict[bytes, list[bytes]] = {}
        last, run = b"", []
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
            if key == last:
                run.append(packet)
            else:
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
            self._check_addresses(packet)
            if packet.fragment is not None:
                whole = self._reassembly.add(packet, now)
                self._timers.set(_FRAGMENTS, self._reassembly.next_expiry())
                if whole is None:
                    return
                packet = whole
            self._dispatch(packet, data, now)
        except Unroutable as wrong:
            self.drops[wrong.reason] += 1

    def _check_addresses(self, packet: Packet) -> None:
        if is_martian_source(packet.source):
            raise Unroutable("martian_source")
        if packet.destination not in self._addresses:
            raise Unroutable("not_our_address")

    def _dispatch(self, packet: Packet, data: bytes, now: float) -> None:
        protocol = packet.protocol
        if protocol == TCP:
            self._receive_tcp(packet, now)
        elif protocol == UDP:
            self._receive_udp(packet, data, now)
        elif protocol == (ICMP if len(packet.source) == 4 else ICMP6):
            self._receive_icmp(packet, now)
        else:
            self.drops["unknown_protocol"] += 1
            if protocol != NO_NEXT_HEADER and self._errors.take(now):
                self._reply(packet.source, icmp.protocol_unreachable(data, packet.destination, packet.source))

    def _receive_tcp(self, packet: Packet, now: float) -> None:
        if len(packet.payload) < TCP_HEADER:
            raise Unroutable("tcp_truncated")
        if self._ledger.verify and not is_transport_checksum_right(packet):
            raise Unroutable("tcp_checksum")
        key = packet.source + packet.destination + packet.payload[:4]
        canonical = ip_packet(packet.source, packet.destination, TCP, packet.payload)
        connection = self._tcp.flows.get(key)
        if connection is not None:
            connection.receive_run([canonical], now)
        elif len(self._replies) < REPLIES_LIMIT:
            self._tcp.receive_unclaimed(key, packet, canonical, self._sizes_for(packet.source), now)
        else:
            self.drops["replies_limit"] += 1

    def _receive_udp(self, packet: Packet, data: bytes, now: float) -> None:
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
        bound = self._udp.get((port, packet.destination)) or self._udp.get((port, None))
        if bound is not None:
            bound.deliver(payload[UDP_HEADER:length], (packet.source, source_port))
            return
        self.drops["udp_no_port"] += 1
        if self._errors.take(now):
            original = data if packet.fragment is None else ip_packet(packet.source, packet.destination, UDP, payload)
            self._reply(packet.source, icmp.port_unreachable(original, packet.destination, packet.source))

    def _receive_icmp(self, packet: Packet, now: float) -> None:
        if not icmp.is_checksum_right(packet):
            raise Unroutable("icmp_checksum")
        kind, code, rest, body = icmp.parse_untrusted(packet)
        is_ip4 = packet.protocol == ICMP
        if kind == (icmp.ECHO4 if is_ip4 else icmp.ECHO6):
            if not self._echoes.take(now):
                raise Unroutable("icmp_echo_limit")
            self._queue_datagram(packet.source, self._fit(icmp.reply_to_echo(packet), packet.source))
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
        ports = report.quoted[:4]
        source_port, destination_port = int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big")
        if report.protocol == TCP:
            key = report.remote + report.local + ports[2:] + ports[:2]
            connection = self._tcp.flows.get(key)
            if connection is None:
                raise Unroutable("icmp_no_connection")
            seq = int.from_bytes(report.quoted[4:8], "big")
            if report.kind == icmp.UNREACHABLE:
                connection.on_unreachable(seq)
            elif connection.on_packet_too_big(report.mtu - self._overhead(report.remote), seq):
                self._learn_path_mtu(report.remote, report.mtu, now)
            else:
                raise Unroutable("icmp_wild_sequence")
        elif report.protocol == UDP:
            bound = self._udp.get((source_port, report.local)) or self._udp.get((source_port, None))
            if bound is None:
                raise Unroutable("icmp_no_port")
            if report.kind == icmp.TOO_BIG:
                self._learn_path_mtu(report.remote, report.mtu, now)
            else:
                bound.report_unreachable((report.remote, destination_port))
        elif report.protocol in (ICMP, ICMP6):
            self._pings.failed(int.from_bytes(report.quoted[4:8], "big"), report.remote, report.kind)

    # -- path MTU --------------------------------------------------------------------------------------------------

    def _overhead(self, address: bytes) -> int:
        return (IP4_HEADER if len(address) == 4 else IP6_HEADER) + TCP_HEADER

    def _mtu_to(self, destination: bytes) -> int:
        known = self._path_mtu.get(destination)
        return self._mtu if known is None else min(self._mtu, known[0])

    def _segment_size(self, destination: bytes) -> int:
        return self._mtu_to(destination) - self._overhead(destination)

    def _sizes_for(self, destination: bytes) -> Sizes:
        """What a SYN to `destination` says."""
        large = 0 if self.routes is None else self.routes.offered_to(destination)
        return Sizes(self._segment_size(destination), large and large - self._overhead(destination))

    def _large_segment_size(self, destination: bytes) -> int:
        if self.routes is None or destination in self._path_mtu:
            return 0
        carried = self.routes.carried_to(destination)
        return carried and carried - self._overhead(destination)

    def _connections_to(self, destination: bytes) -> list[TcpConnection]:
        return [one for one in self._tcp.flows.values() if one.remote[0] == destination]

    def _learn_path_mtu(self, destination: bytes, mtu: int, now: float) -> None:
        if mtu >= self._mtu_to(destination):
            return
        if len(self._path_mtu) >= PATH_MTU_LIMIT:
            self._path_mtu.pop(next(iter(self._path_mtu)))
        self._path_mtu.pop(destination, None)
        self._path_mtu[destination] = (mtu, now + PATH_MTU_LIFETIME)
        self._timers.set(_PATH_MTU, next(iter(self._path_mtu.values()))[1])
        for connection in self._connections_to(destination):
            connection.limit_segment_size(self._segment_size(destination))

    def _expire_path_mtus(self, now: float) -> None:
        while self._path_mtu:
            destination, (_, expires) = next(iter(self._path_mtu.items()))
            if expires > now:
                self._timers.set(_PATH_MTU, expires)
                return
            self.path_changed(destination)

    # -- outbound --------------------------------------------------------------------------------------------------

    def send_udp(self, port: UdpPort, data: bytes, remote: Address) -> None:
        """For UdpPort: one datagram towards `remote`."""
        _check_port(remote[1], lowest=1)
        source = port.host or self._source_for(remote[0])
        if len(source) != len(remote[0]):
            raise OSError(errno.EAFNOSUPPORT, "the port is bound to an address of the other family")
        packet = (
            ip_packet(source, remote[0], UDP, udp_payload((source, port.port), remote, data))
            if (len(data) + UDP_HEADER <= 65535 - IP4_HEADER)
            else b""
        )
        self._queue_datagram(remote[0], self._fit(packet, remote[0]))

    def _fit(self, packet: bytes, destination: bytes) -> list[bytes]:
        """One packet, or the fragments it must travel in."""
        mtu = self._mtu_to(destination)
        if len(packet) <= mtu:
            return [packet]
        whole = parse_packet_untrusted(packet)
        ident = int.from_bytes(self._entropy(4), "big")
        return cut(whole.source, whole.destination, whole.protocol, whole.payload, mtu, ident)

    def _queue_datagram(self, destination: bytes, packets: list[bytes]) -> None:
        size = sum(map(len, packets))
        if self._datagrams_size + size > DATAGRAMS_LIMIT:
            self.drops["datagrams_limit"] += 1
            return
        self._datagrams_size += size
        self._datagrams.append((destination, packets))

    def _reply(self, destination: bytes, packet: bytes) -> None:
        if len(self._replies) >= REPLIES_LIMIT:
            self.drops["replies_limit"] += 1
        else:
            self._replies.append((destination, packet))

    def transmit(self, now: float) -> list[tuple[bytes, list[bytes]]]:
        """All that is ready to leave, by destination; what is for ourselves never leaves."""
        if self._ledger.closed:
            self._sweep_closed()
        runs: dict[bytes, list[bytes]] = {}
        for _ in range(LOOP_ROUNDS):
            self._collect(runs, now)
            for address in self._addresses & runs.keys():
                self._looped += runs.pop(address)
            if not self._looped:
                break
            looped, self._looped = self._looped, []
            self.receive(looped, now)
        return list(runs.items())

    def _collect(self, runs: dict[bytes, list[bytes]], now: float) -> None:
        ledger, timers = self._ledger, self._timers
        dirty, ledger.dirty = ledger.dirty, {}
        for connection in dirty:
            if connection.has_bulk:
                connection.set_large(self._large_segment_size(connection.remote[0]))
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
        while self._replies:
            destination, packet = self._replies.popleft()
            runs.setdefault(destination, []).append(packet)
        while self._datagrams:
            destination, fragments = self._datagrams.popleft()
            runs.setdefault(destination, []).extend(fragments)
        self._datagrams_size = 0

    # -- time ------------------------------------------------------------------------------------------------------

    def handle_timer(self, now: float) -> None:
        for name in self._timers.pop_due(now):
            if isinstance(name, TcpConnection):
                name.handle_timer(now)
            elif isinstance(name, HalfOpen):
                self._tcp.on_half_open_timer(name, now)
            elif isinstance(name, icmp.Ping):
                if not name.is_done:
                    name.error = "timed out"
                    self._pings.finish(name)
            elif name == _TIME_WAIT:
                self._tcp.expire_time_wait(now)
                timers_at = self._tcp.next_time_wait()
                if timers_at < math.inf:
                    self._timers.set(_TIME_WAIT, timers_at)
            elif name == _FRAGMENTS:
                self._reassembly.expire(now)
                if len(self._reassembly):
                    self._timers.set(_FRAGMENTS, self._reassembly.next_expiry())
            elif name == _PATH_MTU:
                self._expire_path_mtus(now)

    def next_timer(self) -> float:
        """The next deadline; minus infinity when something waits for transmit."""
        if self._ledger.dirty or self._replies or self._datagrams or self._looped:
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
