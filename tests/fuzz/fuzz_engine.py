"""Datagrams from anybody and plaintext from a peer through engine, filter and a real stack: dropped, counted, or in.

Whatever the stack is handed, the peer owns its source; or it is an exit in use, and answers. Queues stay bounded.
"""

from __future__ import annotations

import math
import random
from typing import Any

from ts_base.ip import ICMP, TCP, TSMP, UDP, parse_address
from ts_base.ip_headers import ip_packet
from ts_dataplane import disco, geneve, stun
from ts_dataplane.claims import PeerRoutes
from ts_dataplane.engine import DISCO_LIMIT, STUN_LIMIT, Engine
from ts_dataplane.filter import Rule, run_through
from ts_dataplane.packets import FRAGMENT, is_icmp_answer, parse
from ts_dataplane.tables import compile_tables_steps
from ts_dataplane.tsmp_talk import OUTBOUND_LIMIT
from ts_netstack.stack import Stack

US, THEM, OTHER = "100.64.0.1", "100.64.0.2", "100.64.0.3"
WEB = "9.9.9.9"
US6, THEM6 = "fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"
PATHS: list[Any] = [("192.0.2.7", 41641), (900, bytes(range(32))), ("2001:db8::7", 2)]
OWNED = {2: {parse_address(THEM), parse_address(THEM6)}, 3: {parse_address(OTHER)}}
ASKED = (UDP, parse_address(WEB) + parse_address(US) + b"\0\x35\0\x55")  # an answer to what we sent by the exit
RULES = (Rule(("*",), (("*", 80, 90),)), Rule((THEM,), (("*", 0, 65535),), (1, 58)))


class OpenTunnel:
    """Carries plaintext in WireGuard's clothes: type 4, the sender's peer id, the packet."""

    def __init__(self) -> None:
        self.outgoing: list[tuple[int, list[bytes]]] = []

    def receive(self, runs: list[tuple[Any, list[bytes]]], now: float) -> list[tuple[int, Any, list[bytes]]]:
        return [(2 + sealed[0][-1] % 2, path, [one[4:] for one in sealed if one[4:]]) for path, sealed in runs]

    def send(self, runs: list[tuple[int, list[bytes]]], now: float) -> None:
        self.outgoing += runs

    def send_ahead(self, peer_id: int, packet: bytes, now: float) -> bool:
        return True

    def transmit(self, now: float) -> list[tuple[int, list[bytes]]]:
        taken, self.outgoing = self.outgoing, []
        return taken

    def take_replies(self) -> list[tuple[Any, list[bytes]]]:
        return []

    def handle_timer(self, now: float) -> None: ...

    def next_timer(self) -> float:
        return math.inf

    def take_messages(self) -> list[Any]:
        return []


class WatchedStack(Stack):
    """A stack that checks at its own door who speaks."""

    sender = 2

    def receive(self, runs: Any, now: float) -> None:
        for (peer, is_usual), packets in runs:
            assert peer == self.sender
            for packet in packets:
                parsed = parse(packet)
                if is_usual:
                    assert parsed.source in OWNED[peer]
                    continue
                assert peer == 3
                assert parsed.source not in OWNED[2] | OWNED[3]
                assert (
                    (parsed.protocol, parsed.flow) == ASKED
                    or (parsed.protocol == ICMP and is_icmp_answer(packet, parsed))
                    or (parsed.protocol == TCP and not parsed.is_opening)
                    or parsed.protocol == FRAGMENT
                )
        super().receive(runs, now)


def fuzz_one(data: bytes) -> None:
    stack = WatchedStack(entropy=random.Random(1).randbytes)
    engine = Engine(OpenTunnel(), stack)
    peers = (PeerRoutes(2, (THEM, THEM6)), PeerRoutes(3, (OTHER,), (OTHER, "0.0.0.0/0"), masquerade4="100.99.0.1"))
    engine.tables = run_through(compile_tables_steps(own=(US, US6), peers=peers, rules=RULES))
    engine.paths[2] = (PATHS[0],)
    stack.exits_in_use[3] += 1
    engine.replies.record((3, *ASKED))
    stack.set_addresses(engine.tables.own)
    stack.listen(80)
    stack.bind_udp(85)
    now, at = 1.0, 0
    while at + 2 <= len(data) and now < 60:
        what, length = data[at], data[at + 1] or 1
        piece, at = data[at + 2 : at + 2 + length], at + 2 + length
        if what & 1:
            piece = b"\4\0\0\0" + piece
        stack.sender = 2 + (piece[-1] if piece else 0) % 2
        engine.receive([(PATHS[what >> 1 & 3 if what >> 1 & 3 < 3 else 0], [piece])], now)
        now += 0.1 if what & 16 else 5.0 if what & 32 else 0.0
        engine.transmit(now)
        if engine.next_timer() <= now:
            engine.handle_timer(now)
    assert len(engine.take_disco()) <= DISCO_LIMIT
    assert len(engine.take_stun()) <= STUN_LIMIT
    assert len(engine._talk.outbound) <= OUTBOUND_LIMIT
    assert stack.connections <= len(data)
    engine.take_messages()


def seeds() -> list[bytes]:
    them, us = parse_address(THEM), parse_address(US)
    tcp = bytes([0x10, 0, 0, 80, *bytes(8), 0x50, 2, 1, 0, *bytes(4)])
    inner = [
        ip_packet(them, us, TCP, tcp),
        ip_packet(them, us, UDP, b"\x10\0\0\x55\0\x0a\0\0hi"),
        ip_packet(them, us, TSMP, b"p" + bytes(8)),
    ]
    inner.append(ip_packet(them, us, ICMP, b"\x08\0\xf7\xff" + bytes(4)))
    inner.append(ip_packet(parse_address(THEM6), parse_address(US6), UDP, b"\x10\0\0\x55\0\x0a\0\0hi"))
    # The last byte picks the peer that speaks: 0 makes it the owner of these addresses, 1 the exit.
    plain = [packet + b"\0" for packet in inner]
    web = parse_address(WEB)
    answers = [
        ip_packet(web, us, TCP, tcp[:13] + b"\x10" + tcp[14:]),
        ip_packet(web, us, UDP, b"\0\x35\0\x55\0\x0a\0\0hi"),
        ip_packet(web, us, ICMP, b"\x03\0\0\0" + bytes(32)),
    ]
    plain += [packet + b"\1" for packet in answers]
    outer = [
        disco.MAGIC + bytes(60),
        stun.encode_response(bytes(12), ("192.0.2.7", 1)),
        geneve.encode_header(geneve.WIREGUARD, 7) + b"\4\0\0\0" + inner[0],
        geneve.encode_header(geneve.DISCO, 7, control=True) + disco.MAGIC + bytes(60),
    ]
    script = b"".join(bytes([1 | 16, len(piece)]) + piece for piece in plain)
    strangers = b"".join(bytes([0, len(piece)]) + piece for piece in outer)
    return [script, strangers, script + strangers, *(bytes([1, len(piece)]) + piece for piece in plain)]
