"""A tailnet of engines without crypto: a tunnel that only carries, a stack that only keeps, and packets to send."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ts_base.ip import ICMP, TCP, UDP, checksum, parse_address, pseudo_header_sum
from ts_base.ip_headers import ip_packet
from ts_base.who import Hop, Lanes, Origin, Path, PathRun, PeerId, PeerRun
from ts_dataplane.claims import PeerRoutes
from ts_dataplane.engine import Engine
from ts_dataplane.filter import Rule, run_through
from ts_dataplane.overlay import Changed, SegmentSizes
from ts_dataplane.tables import compile_tables_steps

US, THEM, OTHER = "100.64.0.1", "100.64.0.2", "100.64.0.3"
US6, THEM6, OTHER6 = "fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2", "fd7a:115c:a1e0::3"
PEER, OTHER_PEER = 2, 3
DIRECT = ("192.0.2.7", 41641)
RELAYED = (900, bytes(range(32)))

ALLOW_ALL = (Rule(("*",), (("*", 0, 65535),)),)
ONLY_80 = (Rule(("*",), (("*", 80, 80),)),)

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


class PlainTunnel:
    """Carries plaintext in WireGuard's clothes: type 4, the sender's peer id, the packet padded to 16."""

    def __init__(self) -> None:
        self.outgoing: list[PeerRun] = []
        self.replies: list[PathRun] = []
        self.messages: list[Any] = []

    def receive(self, runs: list[PathRun], now: float) -> list[tuple[PeerId, Path, list[bytes]]]:
        return [
            (int.from_bytes(sealed[0][4:8], "big"), path, [s[8:] for s in sealed if s[8:]]) for path, sealed in runs
        ]

    def send(self, runs: list[PeerRun], now: float) -> None:
        self.outgoing += runs

    def send_ahead(self, peer_id: int, packet: bytes, now: float) -> bool:
        self.outgoing.insert(0, (peer_id, [packet]))
        return True

    def transmit(self, now: float) -> list[PeerRun]:
        taken, self.outgoing = self.outgoing, []
        return [(peer, [seal(0, packet) for packet in packets]) for peer, packets in taken]

    def take_replies(self) -> list[PathRun]:
        taken, self.replies = self.replies, []
        return taken

    def handle_timer(self, now: float) -> None: ...

    def next_timer(self) -> float:
        return math.inf

    def take_messages(self) -> list[Any]:
        taken, self.messages = self.messages, []
        return taken


class ShelfStack:
    """Keeps what it is given and sends what it is told to."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.origins: list[tuple[Origin, list[bytes]]] = []
        self.outgoing: list[tuple[Hop, list[bytes]]] = []
        self.exits_in_use: Counter[PeerId] = Counter()
        self.lanes: Lanes | None = None  # of the last transmit

    def receive(self, runs: list[tuple[Origin, list[bytes]]], now: float) -> None:
        self.origins += runs
        for _, packets in runs:
            self.received += packets

    def transmit(self, now: float, widths: SegmentSizes, lanes: Lanes | None) -> list[tuple[Hop, list[bytes]]]:
        taken, self.outgoing, self.lanes = self.outgoing, [], lanes
        return taken

    def handle_timer(self, now: float) -> None: ...

    def next_timer(self) -> float:
        return 7.0

    def take_messages(self) -> list[Changed]:
        return []

    def set_addresses(self, own: Sequence[bytes], now: float, services: Sequence[bytes] = ()) -> None: ...

    def path_changed(self, address: bytes) -> None: ...

    def fail_hop(self, hop: Hop) -> None: ...

    def follow_routes(self, peer_for: object, exits: object) -> None: ...

    def close_all(self, now: float) -> None: ...

    is_quiet = True


def seal(peer: int, packet: bytes) -> bytes:
    return b"\4\0\0\0" + peer.to_bytes(4, "big") + packet + bytes(-len(packet) % 16)


class Desk:
    """One engine with its surroundings, and short words for what a test does to it."""

    def __init__(
        self,
        *,
        rules: tuple[Rule, ...] = (),
        peers: tuple[PeerRoutes, ...] | None = None,
        disco_key: bytes | None = None,
        **prefs: Any,
    ) -> None:
        self.tunnel, self.stack = PlainTunnel(), ShelfStack()
        self.engine = Engine(self.tunnel, self.stack, disco_key=disco_key)
        if peers is None:
            peers = (PeerRoutes(PEER, (THEM, THEM6)), PeerRoutes(OTHER_PEER, (OTHER, OTHER6)))
        self.engine.tables = run_through(compile_tables_steps(own=(US, US6), peers=peers, rules=rules, **prefs))
        self.engine.paths[PEER] = (DIRECT,)

    def hear(self, *packets: bytes, peer: int = PEER, path: Path = DIRECT, now: float = 0.0) -> list[bytes]:
        """Packets arrive from `peer` in one run; those that reached the stack."""
        self.stack.received.clear()
        self.stack.origins.clear()
        self.engine.receive([(path, [seal(peer, packet) for packet in packets])], now)
        return list(self.stack.received)

    def say(self, *packets: bytes, now: float = 0.0, via: PeerId = 0) -> list[PathRun]:
        """Packets leave the stack, all to the destination of the first; what goes down, opened again."""
        if packets:
            destination = packets[0][16:20] if packets[0][0] >> 4 == 4 else packets[0][24:40]
            self.stack.outgoing.append(((destination, via), list(packets)))
        return [(path, [sealed[8:] for sealed in run]) for path, run in self.engine.transmit(now)]

    def use_exit(self, peer: PeerId) -> None:
        """A flow is opened that goes by `peer`."""
        self.stack.exits_in_use[peer] += 1

    def release_exit(self, peer: PeerId) -> None:
        self.stack.exits_in_use[peer] -= 1
        self.stack.exits_in_use += Counter()  # nobody stays with none

    @property
    def drops(self) -> dict[str, int]:
        return {reason: count for reason, count in self.engine.drops.items() if count}


def packet(protocol: int, body: bytes, source: str = THEM, destination: str = US) -> bytes:
    return ip_packet(parse_address(source), parse_address(destination), protocol, body)


def tcp(
    flags: int, port: int = 80, source: str = THEM, destination: str = US, data: bytes = b"", sport: int = 4000
) -> bytes:
    ends = parse_address(source), parse_address(destination)
    head = sport.to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(8) + bytes([0x50, flags, 1, 0])
    total = checksum(head + bytes(4) + data, pseudo_header_sum(*ends, TCP, 20 + len(data)))
    return ip_packet(*ends, TCP, head + total.to_bytes(2, "big") + bytes(2) + data)


def udp(port: int, source: str = THEM, destination: str = US, data: bytes = b"x" * 20, sport: int = 4000) -> bytes:
    ends = parse_address(source), parse_address(destination)
    size = 8 + len(data)
    head = sport.to_bytes(2, "big") + port.to_bytes(2, "big") + size.to_bytes(2, "big")
    total = checksum(head + bytes(2) + data, pseudo_header_sum(*ends, UDP, size)) or 0xFFFF
    return ip_packet(*ends, UDP, head + total.to_bytes(2, "big") + data)


def icmp(kind: int, source: str = THEM, destination: str = US) -> bytes:
    return packet(ICMP, bytes([kind, 0]) + bytes(14), source, destination)


def fragment(whole: bytes, *, offset: int, more: bool) -> bytes:
    """An IPv4 packet with its fragment field overwritten; `offset` in blocks of 8."""
    return whole[:6] + (offset | more << 13).to_bytes(2, "big") + whole[8:]


def checksums_hold(whole: bytes) -> bool:
    """Are the IPv4 header's and the TCP or UDP sums right?"""
    if whole[0] >> 4 == 4:
        source, destination, body = whole[12:16], whole[16:20], whole[20:]
        if checksum(whole[:20]) % 0xFFFF:
            return False
        protocol = whole[9]
    else:
        source, destination, body, protocol = whole[8:24], whole[24:40], whole[40:], whole[6]
    return checksum(body, pseudo_header_sum(source, destination, protocol, len(body))) % 0xFFFF == 0
