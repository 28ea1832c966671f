"""Engine: a packet's whole life on one page. Read `receive` for the way in and `transmit` for the way out.

    datagrams -> sort by first bytes -> Endpoint (decrypt) -> _admit (who, may they, padding off) -> Stack
    Stack -> route -> Endpoint (encrypt) -> every path to the peer

Owns: sorting, source ownership and filter in the packet's way, UDP reply flows, TSMP, masquerade, drop counters.
Tables and paths arrive by plain assignment. Refuses to know: sockets, clocks, tasks, control; how a verdict is found.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ts_base.errors import BadPacket
from ts_base.ip import TCP, TSMP, UDP
from ts_base.who import Hop, Origin
from ts_dataplane import disco, geneve, stun, tsmp
from ts_dataplane.filter import ADMITTED, NO_RULE, NOT_LOCAL, ReplyFlows
from ts_dataplane.packets import (
    NOT_WHOLE,
    PEEK4,
    PEEK6,
    SYN,
    SYN_ACK,
    Parsed,
    is_source_routed,
    parse,
    reply_flow,
    with_destination,
    with_source,
    without_padding,
)
from ts_dataplane.tables import NOT_OWNER, PeerId, Tables
from ts_tunnel.messages import Path, SessionEstablished

# Names of drop counters; the filter's verdicts are counted under their own names.
STRAY, NOT_OURS, DISCO_FULL, STUN_FULL = "stray-byte", "unknown-datagram", "disco-full", "stun-full"
MALFORMED, SOURCE_ROUTED = "malformed", "source-routed"
NO_ROUTE, NO_PATH = "no-route", "no-path"
TSMP_UNKNOWN, TSMP_FULL, REJECTS_LIMITED = "tsmp-unknown", "tsmp-full", "rejects-limited"

DISCO_LIMIT, STUN_LIMIT = 256, 64  # datagrams kept until somebody takes them; strangers choose their rate
ASIDES_LIMIT = 256  # TSMP packets waiting for the next transmit
MESSAGES_LIMIT = 256
HELD_PEERS, HELD_DATAGRAMS = 256, 8  # sealed for peers that nobody knows a way to yet
REJECTS_PER_SECOND = 100

_WIREGUARD = frozenset(bytes([kind, 0, 0, 0]) for kind in (1, 2, 3, 4))


@dataclass(frozen=True, slots=True)
class NoRoute:
    """Packets to `destination` were dropped because no peer has it: dials there may fail at once."""

    destination: bytes


class Tunnel(Protocol):
    """What the engine needs of ts_tunnel.endpoint.Endpoint."""

    def receive(self, runs: list[tuple[Path, list[bytes]]], now: float) -> list[tuple[PeerId, Path, list[bytes]]]: ...
    def send(self, runs: list[tuple[PeerId, list[bytes]]], now: float) -> None: ...
    def send_ahead(self, peer_id: PeerId, packet: bytes, now: float) -> bool: ...
    def transmit(self, now: float) -> list[tuple[PeerId, list[bytes]]]: ...
    def take_replies(self) -> list[tuple[Path, list[bytes]]]: ...
    def handle_timer(self, now: float) -> None: ...
    def next_timer(self) -> float: ...
    def take_messages(self) -> list[Any]: ...


class Netstack(Protocol):
    """What the engine needs of ts_netstack.stack.Stack, or of whatever stands in its place."""

    def receive(self, runs: list[tuple[Origin, list[bytes]]], now: float) -> None: ...
    def transmit(self, now: float, widths: Any) -> list[tuple[Hop, list[bytes]]]: ...
    def handle_timer(self, now: float) -> None: ...
    def next_timer(self) -> float: ...
    def take_messages(self) -> list[Any]: ...


class Engine:
    """Between the sockets below and the sockets above. One per Device, driven by one shell."""

    def __init__(self, endpoint: Tunnel, stack: Netstack) -> None:
        self.tables = Tables.empty()
        self.paths: dict[PeerId, tuple[Path, ...]] = {}  # shared with PathFinder, which decides
        self.disco_advert: bytes | None = None  # our disco public key, told to peers inside each new session
        self.peerapi_port = 0
        self.widths: Any = None  # which destinations take larger packets than the MTU
        self.drops: Counter[str] = Counter()
        self.replies = ReplyFlows()
        self._endpoint = endpoint
        self._stack = stack
        self._disco: deque[tuple[bytes, Path]] = deque(maxlen=DISCO_LIMIT)
        self._stun: deque[tuple[bytes, Path]] = deque(maxlen=STUN_LIMIT)
        self._last_path: dict[PeerId, Path] = {}
        self._heard: dict[PeerId, Path] = {}
        self._sent: set[PeerId] = set()
        self._asides: list[tuple[PeerId, list[bytes]]] = []
        self._pathless: dict[PeerId, list[bytes]] = {}
        self._messages: list[Any] = []
        self._unrouted: dict[bytes, None] = {}
        self._reject_second, self._rejects = 0.0, 0

    # The way in

    def receive(self, runs: Sequence[tuple[Path, list[bytes]]], now: float) -> None:
        """Take datagrams in the order they came; what they carry for us is in the stack afterwards."""
        tunnel: list[tuple[Path, list[bytes]]] = []
        for path, datagrams in runs:
            sealed = [datagram for datagram in datagrams if datagram[:4] in _WIREGUARD]
            if sealed:
                tunnel.append((path, sealed))
            if len(sealed) != len(datagrams):
                self._sort(path, datagrams, tunnel)
        if tunnel:
            opened = self._endpoint.receive(tunnel, now)
            self._follow_sessions(now)
            if admitted := self._admit(opened, now):
                self._stack.receive([((0, True), admitted)], now)

    def _sort(self, path: Path, datagrams: list[bytes], tunnel: list[tuple[Path, list[bytes]]]) -> None:
        """The datagrams of a run that are not plain WireGuard: disco, STUN, peer-relayed, noise."""
        host: Any = path[0]
        port: Any = path[1]
        is_direct = len(path) == 2 and isinstance(host, str)
        relayed: dict[Path, list[bytes]] = {}
        for datagram in datagrams:
            if datagram[:4] in _WIREGUARD:
                continue
            via = path
            if is_direct and geneve.is_geneve(datagram):
                _, vni, _ = geneve.decode_header_untrusted(datagram)
                via, datagram = (host, port, vni), datagram[geneve.HEADER_LENGTH :]
                if datagram[:4] in _WIREGUARD:
                    relayed.setdefault(via, []).append(datagram)
                    continue
            if datagram.startswith(disco.MAGIC):
                self._keep(self._disco, (datagram, via), DISCO_FULL)
            elif is_direct and stun.is_stun(datagram):
                self._keep(self._stun, (datagram, via), STUN_FULL)
            else:
                # Linux peers pad segmented sends with one stray byte to dodge a kernel bug.
                self.drops[STRAY if len(datagram) <= 1 else NOT_OURS] += 1
        tunnel += relayed.items()

    def _keep(self, waiting: deque[tuple[bytes, Path]], item: tuple[bytes, Path], full: str) -> None:
        self.drops[full] += len(waiting) == waiting.maxlen
        waiting.append(item)

    def _admit(self, runs: list[tuple[PeerId, Path, list[bytes]]], now: float) -> list[bytes]:
        """Of authenticated plaintext, the packets their peers may send us, without padding.

        Whole TCP and UDP packets are judged here, everything else in `_admit_carefully`; a packet that continues the
        flow just admitted is not judged again. bench/engine.py says why this loop is written out.
        """
        tables = self.tables
        admitted: list[bytes] = []
        for peer, path, packets in runs:
            if self._last_path.get(peer) != path:
                self._last_path[peer] = self._heard[peer] = path
            if (known := tables.peers.get(peer)) is not None and known.masquerade:
                for ours, theirs in known.masquerade:
                    packets = [with_destination(packet, theirs, ours) for packet in packets]
            last_flow, last_protocol = b"", 0
            for packet in packets:
                size = len(packet)
                if size >= 40 and packet[0] == 0x45:
                    total, fragment, protocol, flow, flags = PEEK4(packet)
                    is_plain = not fragment & NOT_WHOLE and 40 <= total <= size
                elif size >= 60 and packet[0] & 0xF0 == 0x60:
                    total, protocol, flow, flags = PEEK6(packet)
                    total += 40
                    is_plain = 60 <= total <= size
                else:
                    is_plain = False
                if not is_plain or (protocol != TCP and protocol != UDP):
                    self._admit_carefully(peer, packet, now, admitted)
                    continue
                # Every byte the verdict depends on: protocol, addresses, ports, and SYN without ACK.
                opening = protocol == TCP and flags & SYN_ACK == SYN
                if flow != last_flow or protocol != last_protocol or opening:
                    reason = tables.verdict(peer, protocol, opening, flow)
                    if reason and not (reason == NO_RULE and self.replies.admits((protocol, flow))):
                        self._refuse(peer, packet, parse(packet), reason, now)
                        continue
                    if not opening:
                        last_flow, last_protocol = flow, protocol
                admitted.append(packet if total == size else packet[:total])
        return admitted

    def _admit_carefully(self, peer: PeerId, padded: bytes, now: float, admitted: list[bytes]) -> None:
        """Options, fragments, extension headers, ICMP, TSMP, runts: the same rules, read in full."""
        packet = without_padding(padded)
        if not packet:
            self.drops[MALFORMED] += 1
            return
        parsed = parse(packet)
        if not self.tables.accepts(peer, parsed.source):
            self.drops[NOT_OWNER] += 1
        elif parsed.protocol == TSMP:
            self._hear_tsmp(peer, packet, parsed)  # before the filter: a ping is answered whatever the rules say
        elif is_source_routed(packet):
            self.drops[SOURCE_ROUTED] += 1
        else:
            reason = self.tables.judge(peer, packet, parsed)
            if reason == NO_RULE and self.replies.admits((parsed.protocol, parsed.flow)):
                reason = ADMITTED
            if reason == ADMITTED:
                admitted.append(packet)
            else:
                self._refuse(peer, packet, parsed, reason, now)

    def _refuse(self, peer: PeerId, packet: bytes, parsed: Parsed, reason: str, now: float) -> None:
        """Count a drop; whoever may speak for the source and tried to connect is told, so that it need not time out."""
        self.drops[reason] += 1
        if not parsed.is_opening or reason not in (NO_RULE, NOT_LOCAL):
            return
        if now - self._reject_second >= 1.0:
            self._reject_second, self._rejects = now, 0
        self._rejects += 1
        if self._rejects > REJECTS_PER_SECOND:
            self.drops[REJECTS_LIMITED] += 1
            return
        known = self.tables.peers.get(peer)
        shielded = self.tables.shields_up or known is None or known.routes.jailed
        self._say(peer, tsmp.encode_rejected(parsed, "S" if shielded else "A"))

    # TSMP: what nodes tell each other inside the tunnel

    def _hear_tsmp(self, peer: PeerId, packet: bytes, parsed: Parsed) -> None:
        try:
            message = tsmp.decode_untrusted(peer, packet, parsed)
        except BadPacket:
            self.drops[TSMP_UNKNOWN] += 1
            return
        if not self.tables.is_local(parsed.destination):
            self.drops[NOT_LOCAL] += 1
        elif isinstance(message, tsmp.TsmpPing):
            self._say(peer, tsmp.encode_pong(parsed.destination, parsed.source, message.token, self.peerapi_port))
        elif len(self._messages) >= MESSAGES_LIMIT:
            self.drops[TSMP_FULL] += 1
        else:
            self._messages.append(message)

    def _say(self, peer: PeerId, packet: bytes) -> None:
        """Send `packet` to `peer` with the next transmit."""
        if len(self._asides) >= ASIDES_LIMIT:
            self.drops[TSMP_FULL] += 1
        else:
            self._asides.append((peer, [packet]))

    def ping(self, peer: PeerId, token: bytes) -> bool:
        """Ask `peer` for a TsmpPong with these 8 bytes; False where we share no address family with it."""
        ends = self.tables.addresses_towards(peer)
        if ends is not None:
            self._say(peer, tsmp.encode_ping(*ends, token))
        return ends is not None

    def _follow_sessions(self, now: float) -> None:
        """A new session begins with our disco key, so that a restarted peer finds our paths without asking control."""
        for message in self._endpoint.take_messages():
            self._messages.append(message)
            if isinstance(message, SessionEstablished) and self.disco_advert is not None:
                peer = message.peer
                known = self.tables.peers.get(peer)
                ends = self.tables.addresses_towards(peer)
                if known is not None and known.routes.takes_adverts and ends is not None:
                    advert = tsmp.encode_disco_key(*ends, self.disco_advert)
                    self._endpoint.send_ahead(peer, self._masquerade(peer, [advert])[0], now)

    # The way out

    def transmit(self, now: float) -> list[tuple[Path, list[bytes]]]:
        """Everything that is ready to go down, by path."""
        tables, runs = self.tables, self._asides
        self._asides = []
        for (destination, _), packets in self._stack.transmit(now, self.widths):
            peer = tables.peer_for(destination)
            if peer is None:
                self.drops[NO_ROUTE] += len(packets)
                if len(self._unrouted) < MESSAGES_LIMIT:
                    self._unrouted[destination] = None
                continue
            self._remember_flows(packets)
            self._sent.add(peer)
            runs.append((peer, packets))
        if runs:
            self._endpoint.send([(peer, self._masquerade(peer, packets)) for peer, packets in runs], now)
        ready: list[tuple[Path, list[bytes]]] = self._endpoint.take_replies()
        sealed = self._endpoint.transmit(now)
        if self._pathless:
            sealed = self._released() + sealed
        for peer, datagrams in sealed:
            paths = self.paths.get(peer, ())
            if not paths:
                self._hold(peer, datagrams)
            ready += [(path, datagrams) for path in paths]
        return [_carried(*run) for run in ready]

    def _hold(self, peer: PeerId, datagrams: list[bytes]) -> None:
        """Nobody knows a way to `peer` yet: its handshake must not wait for a retry when one is found."""
        held = self._pathless.pop(peer, [])
        held += datagrams
        if len(held) > HELD_DATAGRAMS:
            self.drops[NO_PATH] += len(held) - HELD_DATAGRAMS
        self._pathless[peer] = held[-HELD_DATAGRAMS:]
        if len(self._pathless) > HELD_PEERS:
            self.drops[NO_PATH] += len(self._pathless.pop(next(iter(self._pathless))))

    def _released(self) -> list[tuple[PeerId, list[bytes]]]:
        """What was held for peers that have a path now."""
        found = [peer for peer in self._pathless if self.paths.get(peer)]
        return [(peer, self._pathless.pop(peer)) for peer in found]

    def _remember_flows(self, packets: list[bytes]) -> None:
        """What we send by UDP or SCTP may be answered. Before masquerade: answers are judged after it is undone."""
        last = b""
        for packet in packets:
            # An IPv4 header with options is misread here, and then read in full by reply_flow.
            protocol, ends = (packet[9], packet[12:24]) if packet[0] == 0x45 else (packet[6], packet[8:44])
            if protocol == TCP or (protocol == UDP and ends == last):
                continue
            if (flow := reply_flow(packet)) is not None:
                self.replies.record(flow)
                last = ends if protocol == UDP else b""

    def _masquerade(self, peer: PeerId, packets: list[bytes]) -> list[bytes]:
        known = self.tables.peers.get(peer)
        if known is not None:
            for ours, theirs in known.masquerade:
                packets = [with_source(packet, ours, theirs) for packet in packets]
        return packets

    # The rest of the contract, and what the shell takes to other rooms

    def handle_timer(self, now: float) -> None:
        self._endpoint.handle_timer(now)
        self._stack.handle_timer(now)

    def next_timer(self) -> float:
        return min(self._endpoint.next_timer(), self._stack.next_timer())

    def take_messages(self) -> list[Any]:
        """Sockets that changed, session messages of the endpoint, TsmpReject, TsmpPong, DiscoKeyAdvertised, NoRoute."""
        taken = self._endpoint.take_messages() + self._stack.take_messages()
        if self._messages or self._unrouted:
            taken = self._messages + [NoRoute(address) for address in self._unrouted] + taken
            self._messages, self._unrouted = [], {}
        return taken

    @property
    def has_asides(self) -> bool:
        """Something for other rooms waits in take_disco, take_stun or take_heard."""
        return bool(self._disco or self._stun or self._heard)

    def take_disco(self) -> list[tuple[bytes, Path]]:
        """Disco datagrams and the paths they came by."""
        taken = list(self._disco)
        self._disco.clear()
        return taken

    def take_stun(self) -> list[tuple[bytes, Path]]:
        """STUN datagrams off the tunnel's own socket."""
        taken = list(self._stun)
        self._stun.clear()
        return taken

    def take_sent(self) -> set[PeerId]:
        """Peers that user data went to since last asked."""
        taken = self._sent
        if taken:
            self._sent = set()
        return taken

    def take_heard(self) -> list[tuple[PeerId, Path]]:
        """Peers that spoke to us by another path than the time before, and that path."""
        taken, self._heard = self._heard, {}
        if len(self._last_path) > 2 * len(self.tables.peers) + MESSAGES_LIMIT:
            self._last_path = {peer: path for peer, path in self._last_path.items() if peer in self.tables.peers}
        return list(taken.items())


def _carried(path: Path, datagrams: list[bytes]) -> tuple[Path, list[bytes]]:
    """A run as the sockets carry it: through a peer relay, a direct run to the relay with a Geneve header on each."""
    if len(path) == 2:
        return path, datagrams
    host, port, vni = path
    header = geneve.encode_header(geneve.WIREGUARD, vni)
    return (host, port), [header + datagram for datagram in datagrams]
