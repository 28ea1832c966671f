"""Engine: a packet's whole life on one page. Read `receive` for the way in and `transmit` for the way out.

    datagrams -> sort by first bytes -> Endpoint (decrypt) -> _admit (who, may they, padding off) -> overlay
    overlay -> route -> Endpoint (encrypt) -> the paths to the peer

Owns: sorting, source ownership and filter in the packet's way, UDP reply flows, drop counters.
Tables arrive by plain assignment. Refuses to know: sockets, clocks, tasks, control; how a verdict is found.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from ts_base.ip import TCP, TSMP, UDP
from ts_base.who import Direct, Hop, Origin, Path, PathRun, PeerId, PeerRun, is_direct
from ts_dataplane import disco, geneve, stun
from ts_dataplane.filter import ADMITTED, NO_RULE, NOT_LOCAL
from ts_dataplane.heard_log import HeardLog
from ts_dataplane.hop_lanes import HopLanes
from ts_dataplane.large_segments import LargeSegments
from ts_dataplane.overlay import Changed, Overlay
from ts_dataplane.packets import (
    NOT_WHOLE,
    PEEK4,
    PEEK6,
    SYN,
    SYN_ACK,
    Parsed,
    asks_for_answer,
    is_source_routed,
    parse,
    reply_flow,
    without_padding,
)
from ts_dataplane.path_mtus import PathMtus
from ts_dataplane.path_tally import PathTally
from ts_dataplane.pathless import Pathless
from ts_dataplane.reply_flows import ReplyFlows, ReplyFlowStatistics
from ts_dataplane.spread import EveryPath, FlowRun, Spread
from ts_dataplane.tables import NOT_AN_ANSWER, NOT_OWNER, Tables, TablesStatistics
from ts_dataplane.tsmp import TsmpMessage
from ts_dataplane.tsmp_talk import TsmpTalk
from ts_tunnel.messages import Message

P = TypeVar("P", bound=Path)

# Names of drop counters; the filter's verdicts are counted under their own names.
STRAY, NOT_OURS = "engine.stray_byte", "engine.unknown_datagram"
DISCO_FULL, STUN_FULL = "engine.disco_full", "engine.stun_full"
MALFORMED, SOURCE_ROUTED = "engine.malformed", "engine.source_routed"
NO_ROUTE, VIA_NOT_AN_EXIT = "engine.no_route", "engine.via_not_an_exit"

DISCO_LIMIT, STUN_LIMIT = 256, 64  # datagrams kept until somebody takes them; strangers choose their rate
UNROUTED_LIMIT = 256
SPARE_PATHS = 256  # remembered of peers that are gone, before they are looked for and forgotten

_WIREGUARD = frozenset(bytes([kind, 0, 0, 0]) for kind in (1, 2, 3, 4))


class RouteMissing(NamedTuple):
    """Packets to `destination` were dropped because no peer has it, or `via` does not take them: dials may fail."""

    destination: bytes
    via: PeerId = 0


EngineMessage = Message | TsmpMessage | RouteMissing | Changed


class EngineStatistics(NamedTuple):
    tables: TablesStatistics
    replies: ReplyFlowStatistics
    exits_in_use: int
    peers_without_path: int
    taps: int
    drops: Mapping[str, int]


class Tunnel(Protocol):
    """What the engine needs of ts_tunnel.endpoint.Endpoint."""

    def receive(self, runs: list[PathRun], now: float) -> list[tuple[PeerId, Path, list[bytes]]]: ...
    def send(self, runs: list[PeerRun], now: float) -> None: ...
    def send_ahead(self, peer_id: PeerId, packet: bytes, now: float) -> bool: ...
    def transmit(self, now: float) -> list[PeerRun]: ...
    def take_replies(self) -> list[PathRun]: ...
    def handle_timer(self, now: float) -> None: ...
    def next_timer(self) -> float: ...
    def take_messages(self) -> list[Message]: ...


class Tap(Protocol):
    """Who is shown the packets inside the tunnel; `reason` is the counter of the drop, "" for what was not dropped."""

    def heard(self, peer: PeerId, path: Path, packet: bytes, reason: str, now: float) -> None: ...

    def sent(self, peer: PeerId, paths: tuple[Path, ...], packets: list[bytes], reason: str, now: float) -> None:
        """`peer` is 0 where nobody takes the packets, and `paths` are those that the next datagrams go by."""


class Engine:
    """Between the sockets below and the overlay above. One per Device, driven by one shell."""

    def __init__(
        self,
        endpoint: Tunnel,
        overlay: Overlay,
        *,
        paths: dict[PeerId, tuple[Path, ...]] | None = None,
        mtus: PathMtus | None = None,
        disco_key: bytes | None = None,
    ) -> None:
        """`paths` and `mtus` are the path finder's, which goes on deciding; `disco_key` is told inside each session."""
        self.tables = Tables.empty()
        self.paths = {} if paths is None else paths
        self.drops: Counter[str] = Counter()
        self.received, self.sent = PathTally(), PathTally()
        self.replies = ReplyFlows()
        self._endpoint = endpoint
        self._overlay = overlay
        self._spread: Spread = EveryPath(self.paths)
        measured = () if mtus is None else (mtus.carried, mtus.wanted)
        self._segments = LargeSegments(self.tables, self.paths, *measured)
        self._talk = TsmpTalk(self.drops, disco_key)
        self._is_published = False  # whether names of ours lead to our peer API from the internet
        self._pathless = Pathless(self.drops)
        self._taps: tuple[Tap, ...] = ()
        self._exits = overlay.exits_in_use
        self._disco: deque[tuple[bytes, Path]] = deque(maxlen=DISCO_LIMIT)
        self._stun: deque[tuple[bytes, Direct]] = deque(maxlen=STUN_LIMIT)
        self._last_path: dict[PeerId, Path] = {}
        self._heard: dict[PeerId, Path] = {}
        self._sent: set[PeerId] = set()
        self._log: HeardLog | None = None  # with several uplinks
        self._lanes: HopLanes | None = None
        self._asking: set[PeerId] = set()
        self._unrouted: dict[Hop, None] = {}

    # The way in

    def receive(self, runs: Sequence[PathRun], now: float) -> None:
        """Take datagrams in the order they came; what they carry for us is in the overlay afterwards."""
        tunnel: list[PathRun] = []
        for path, datagrams in runs:
            sealed = [datagram for datagram in datagrams if datagram[:4] in _WIREGUARD]
            if sealed:
                tunnel.append((path, sealed))
            if len(sealed) != len(datagrams):
                self._sort(path, datagrams, tunnel)
        if tunnel:
            self.received.add(tunnel)
            opened = self._endpoint.receive(tunnel, now)
            for peer, packet in self._talk.follow(self._endpoint.take_messages(), self.tables):
                self._endpoint.send_ahead(peer, packet, now)
                self._show_sent(peer, [packet], now)
            if admitted := self._admit_watched(opened, now) if self._taps else self._admit(opened, now):
                self._overlay.receive(admitted, now)

    def _sort(self, path: Path, datagrams: list[bytes], tunnel: list[PathRun]) -> None:
        """The datagrams of a run that are not plain WireGuard: disco, STUN, peer-relayed, noise."""
        relayed: dict[Path, list[bytes]] = {}
        for datagram in datagrams:
            if datagram[:4] in _WIREGUARD:
                continue
            came_by = path
            if is_direct(path) and geneve.is_geneve(datagram):
                _, vni, _ = geneve.decode_header_untrusted(datagram)
                came_by, datagram = (*path, vni), datagram[geneve.HEADER_LENGTH :]
                if datagram[:4] in _WIREGUARD:
                    relayed.setdefault(came_by, []).append(datagram)
                    continue
            if datagram.startswith(disco.MAGIC):
                self._keep(self._disco, (datagram, came_by), DISCO_FULL)
            elif is_direct(came_by) and stun.is_stun(datagram):
                self._keep(self._stun, (datagram, came_by), STUN_FULL)
            else:
                # Linux peers pad segmented sends with one stray byte to dodge a kernel bug.
                self.drops[STRAY if len(datagram) <= 1 else NOT_OURS] += 1
        tunnel += relayed.items()

    def _keep(self, waiting: deque[tuple[bytes, P]], item: tuple[bytes, P], full: str) -> None:
        self.drops[full] += len(waiting) == waiting.maxlen
        waiting.append(item)

    def _admit(self, runs: list[tuple[PeerId, Path, list[bytes]]], now: float) -> list[tuple[Origin, list[bytes]]]:
        """Of authenticated plaintext, the packets their peers may send us, without padding, by who sent them.

        Whole TCP and UDP packets are judged here, everything else in `_admit_carefully`; a packet that continues the
        flow just admitted is not judged again. bench/engine.py says why this loop is written out.
        """
        tables = self.tables
        admitted: dict[Origin, list[bytes]] = {}
        for peer, path, packets in runs:
            if self._last_path.get(peer) != path:
                self._last_path[peer] = self._heard[peer] = path
            if self._log is not None:
                self._log.note(peer, path, packets, now)
            if not packets:
                continue
            if (known := tables.peers.get(peer)) is not None and known.masquerade:
                packets = known.addressed_to_us(packets)
            flow_goes = usual = admitted.setdefault((peer, True), [])
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
                    if reason and not (
                        self._is_answer(reason, peer, protocol, flow)
                        or (opening and self._is_for_peerapi(reason, peer, flow))
                    ):
                        self._refuse(peer, parse(packet), reason, now)
                        continue
                    flow_goes = usual if reason != NOT_AN_ANSWER else admitted.setdefault((peer, False), [])
                    last_flow, last_protocol = (b"" if opening else flow), protocol  # what opens is judged each time
                flow_goes.append(packet if total == size else packet[:total])
        return [run for run in admitted.items() if run[1]]

    def _is_answer(self, reason: str, peer: PeerId, protocol: int, flow: bytes) -> bool:
        """Refused for `reason`, and admitted all the same: it answers what we sent to that very peer.

        An exit in use may answer by TCP whenever it likes: the overlay knows each connection and which way it goes.
        """
        if reason == NOT_AN_ANSWER and peer in self._exits:
            return protocol == TCP or self.replies.admits((peer, protocol, flow))
        return reason == NO_RULE and self.replies.admits((peer, protocol, flow))

    def _is_for_peerapi(self, reason: str, peer: PeerId, flow: bytes) -> bool:
        """Whether no rule admits this SYN, but it asks for our peer API, which judges each request by itself.

        As upstream does it, except that nobody may open anything here while shields are up, and a jailed peer only
        while names of ours lead here from the internet: the tailnet's own Funnel relays are jailed.
        """
        port = self._talk.peerapi_port
        if reason != NO_RULE or not port or self.tables.shields_up or flow[-2:] != port.to_bytes(2, "big"):
            return False
        known = self.tables.peers.get(peer)
        if known is None or (known.routes.jailed and not self._is_published):
            return False
        return flow[len(flow) // 2 - 2 : -4] in self.tables.own

    def _admit_carefully(self, peer: PeerId, padded: bytes, now: float, admitted: dict[Origin, list[bytes]]) -> None:
        """Options, fragments, extension headers, ICMP, TSMP, runts: the same rules, read in full."""
        packet = without_padding(padded)
        if not packet:
            self.drops[MALFORMED] += 1
            return
        tables, parsed = self.tables, parse(packet)
        is_usual = tables.accepts(peer, parsed.source)
        if not is_usual and not (peer in self._exits and tables.offers(peer, parsed.source)):
            self.drops[NOT_OWNER] += 1
        elif parsed.protocol == TSMP:
            # Before the filter: a ping is answered whatever it says.
            self._talk.hear(tables, peer, packet, parsed, is_usual=is_usual)
        elif is_source_routed(packet):
            self.drops[SOURCE_ROUTED] += 1
        else:
            reason = tables.judge(peer, packet, parsed) if is_usual else tables.judge_answer(packet, parsed)
            if reason == NO_RULE and self.replies.admits((peer, parsed.protocol, parsed.flow)):
                reason = ADMITTED
            if parsed.is_opening and self._is_for_peerapi(reason, peer, parsed.flow):
                reason = ADMITTED
            if reason == ADMITTED:
                admitted.setdefault((peer, is_usual), []).append(packet)
            else:
                self._refuse(peer, parsed, reason, now)

    def _refuse(self, peer: PeerId, parsed: Parsed, reason: str, now: float) -> None:
        """Count a drop; whoever may speak for the source and tried to connect is told, so that it need not time out."""
        self.drops[reason] += 1
        if parsed.is_opening and reason in (NO_RULE, NOT_LOCAL):
            self._talk.refuse(self.tables, peer, parsed, now)

    # The way out

    def transmit(self, now: float) -> list[PathRun]:
        """Everything that is ready to go down, by path."""
        tables, talk, segments = self.tables, self._talk, self._segments
        runs, talk.outbound = talk.outbound, []
        segments.tables = tables
        for hop, packets in self._overlay.transmit(now, segments, self._lanes):
            if (peer := tables.peer_for(*hop)) is None:
                self._drop_unrouted(hop, packets, now)
                continue
            self._remember_flows(peer, packets)
            self._sent.add(peer)
            runs.append((peer, packets))
        flow_runs = [] if self._lanes is None else self._lanes.take(self._sent, self._asking)
        for run in flow_runs:
            self._show_sent(run.peer, run.packets, now)
        if runs:
            if self._taps:
                for peer, packets in runs:
                    self._show_sent(peer, packets, now)
            if self._log is not None:
                self._asking.update(peer for peer, packets in runs if asks_for_answer(packets))
            if self._spread.divides:
                runs, divided = self._spread.divide(runs, now)
                flow_runs += divided
            self._endpoint.send([self._masqueraded(peer, packets) for peer, packets in runs], now)
        ready = self._endpoint.take_replies()
        sealed = self._endpoint.transmit(now)
        if flow_runs:
            ready += self._transmit_flows(flow_runs, now)
        if self._pathless.held:
            sealed = self._pathless.release(self.paths) + sealed
        for peer, datagrams in sealed:
            if carried := self._spread.spread(peer, datagrams, now):
                ready += carried
            else:
                self._pathless.hold(peer, datagrams)
        self.sent.add(ready)
        return ready

    def _transmit_flows(self, runs: list[FlowRun], now: float) -> list[PathRun]:
        """Sealed run by run, each by its own paths; a handshake that one of them begins goes with it."""
        ready: list[PathRun] = []
        for run in runs:
            self._endpoint.send([self._masqueraded(run.peer, run.packets)], now)
            for peer, datagrams in self._endpoint.transmit(now):
                if run.paths and peer == run.peer:
                    ready += self._spread.spread_flow(run, datagrams, now)
                elif carried := self._spread.spread(peer, datagrams, now):
                    ready += carried
                else:
                    self._pathless.hold(peer, datagrams)
        return ready

    def _drop_unrouted(self, hop: Hop, packets: list[bytes], now: float) -> None:
        reason = VIA_NOT_AN_EXIT if hop[1] else NO_ROUTE
        self.drops[reason] += len(packets)
        for tap in self._taps:
            tap.sent(hop[1], (), packets, reason, now)
        if len(self._unrouted) < UNROUTED_LIMIT:
            self._unrouted[hop] = None

    def _remember_flows(self, peer: PeerId, packets: list[bytes]) -> None:
        """What we send by UDP or SCTP may be answered. Before masquerade: answers are judged after it is undone."""
        last = b""
        for packet in packets:
            # An IPv4 header with options is misread here, and then read in full by reply_flow.
            protocol, ends = (packet[9], packet[12:24]) if packet[0] == 0x45 else (packet[6], packet[8:44])
            if protocol == TCP or (protocol == UDP and ends == last):
                continue
            if (flow := reply_flow(packet)) is not None:
                self.replies.record((peer, *flow))
                last = ends if protocol == UDP else b""

    def _masqueraded(self, peer: PeerId, packets: list[bytes]) -> PeerRun:
        known = self.tables.peers.get(peer)
        return (peer, packets) if known is None or not known.masquerade else (peer, known.as_it_knows_us(packets))

    def follow_uplinks(self, spread: Spread, log: HeardLog | None) -> None:
        """`spread` says what leaves by which path. With a log it is noted who was heard where, for several uplinks."""
        self._spread, self._log = spread, log
        if log is not None or self._lanes is not None:  # for good: divided streams have to hear of the end of it
            self._lanes = HopLanes(self._segments, spread)

    # Who watches. Without anybody a burst costs one look at an empty tuple.

    def watch(self, tap: Tap) -> None:
        """Show every packet inside the tunnel to `tap` from now on."""
        self._taps = (*self._taps, tap)

    def unwatch(self, tap: Tap) -> None:
        self._taps = tuple(one for one in self._taps if one is not tap)

    def _admit_watched(
        self, runs: list[tuple[PeerId, Path, list[bytes]]], now: float
    ) -> list[tuple[Origin, list[bytes]]]:
        """`_admit`, a packet at a time: what is counted meanwhile is what became of it. No rule stands twice."""
        admitted: dict[Origin, list[bytes]] = {}
        for peer, path, packets in runs:
            if not packets:
                self._admit([(peer, path, packets)], now)
            for packet in packets:
                before = self.drops.copy()
                for origin, passed in self._admit([(peer, path, [packet])], now):
                    admitted.setdefault(origin, []).extend(passed)
                counted = [reason for reason, count in self.drops.items() if count > before[reason]]
                counted.sort(key=lambda reason: not reason.startswith("filter."))  # its refusal may be counted as well
                reason = counted[0] if counted else ""
                for tap in self._taps:
                    tap.heard(peer, path, without_padding(packet) or packet, reason, now)
        return list(admitted.items())

    def _show_sent(self, peer: PeerId, packets: list[bytes], now: float) -> None:
        for tap in self._taps:
            tap.sent(peer, self.paths.get(peer, ()), packets, "", now)

    # What the runtime and users set while packets go by

    def use_overlay(self, overlay: Overlay) -> None:
        """Packets for us are for `overlay` from now on; it goes on with the connections of the one before."""
        self._overlay, self._exits = overlay, overlay.exits_in_use

    def set_services(self, *, peerapi_port: int, is_published: bool = False) -> None:
        """What peers are told that we offer, in answers to their TSMP pings; 0 for no peer API.

        `is_published`: the peer API takes what Funnel relays bring from the internet.
        """
        self._talk.peerapi_port = peerapi_port
        self._is_published = is_published

    @property
    def peerapi_port(self) -> int:
        return self._talk.peerapi_port

    def ping(self, peer: PeerId, token: bytes) -> bool:
        """Ask `peer` for a TsmpPong with these 8 bytes; False where we share no address family with it.

        Like data of the user's it has the paths looked after: a peer that saw us restart may answer the handshake to
        where we were, and a path that is found anew has it asked again.
        """
        is_asked = self._talk.ping(self.tables, peer, token)
        if is_asked:
            self._sent.add(peer)
        return is_asked

    # The rest of the contract, and what the shell takes to other rooms

    def handle_timer(self, now: float) -> None:
        self._endpoint.handle_timer(now)
        self._overlay.handle_timer(now)

    def next_timer(self) -> float:
        return min(self._endpoint.next_timer(), self._overlay.next_timer())

    def take_messages(self) -> list[EngineMessage]:
        """Sockets that changed, what the tunnel and peers told, and where packets found no way to."""
        taken: list[EngineMessage] = [*self._endpoint.take_messages(), *self._overlay.take_messages()]
        if self._talk.messages or self._unrouted:
            taken = [*self._talk.messages, *(RouteMissing(*hop) for hop in self._unrouted), *taken]
            self._talk.messages, self._unrouted = [], {}
        return taken

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            tables=self.tables.statistics(),
            replies=self.replies.statistics(),
            exits_in_use=len(self._exits),
            peers_without_path=len(self._pathless.held),
            taps=len(self._taps),
            drops=dict(self.drops),
        )

    @property
    def has_asides(self) -> bool:
        """Something for other rooms waits in take_disco, take_stun or take_heard."""
        return bool(self._disco or self._stun or self._heard)

    def take_disco(self) -> list[tuple[bytes, Path]]:
        """Disco datagrams and the paths they came by."""
        taken = list(self._disco)
        self._disco.clear()
        return taken

    def take_stun(self) -> list[tuple[bytes, Direct]]:
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

    def take_asking(self) -> set[PeerId]:
        """Of those that data went to, whom something was sent that their system answers; noted with a log only."""
        taken, self._asking = self._asking, set()
        return taken

    def take_heard(self) -> list[tuple[PeerId, Path]]:
        """Peers that spoke to us by another path than the time before, and that path."""
        taken, self._heard = self._heard, {}
        if len(self._last_path) > 2 * len(self.tables.peers) + SPARE_PATHS:
            self._last_path = {peer: path for peer, path in self._last_path.items() if peer in self.tables.peers}
            if self._log is not None:
                self._log.forget_others(self.tables.peers)
        return list(taken.items())
