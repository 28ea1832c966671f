"""What the engine costs on top of bare cryptography, per packet and as a ratio (ratios travel between machines).

Two real endpoints; the packets are one TCP flow of full segments, 48 to a run, as a UDP socket with GRO delivers them.
Run: python bench/engine.py [packets per round]
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ts_base.ip import TCP, UDP, parse_address
from ts_base.ip_headers import ip_packet
from ts_base.keys import NodePrivate
from ts_base.who import Hop, Lanes, Origin, PathRun, PeerId
from ts_dataplane.claims import PeerRoutes
from ts_dataplane.engine import Engine
from ts_dataplane.filter import Rule, run_through
from ts_dataplane.overlay import Changed, SegmentSizes
from ts_dataplane.tables import compile_tables_steps
from ts_tunnel.endpoint import Endpoint

RUN, ROUNDS = 48, 6
PATHS = {1: ("192.0.2.1", 41641), 2: ("192.0.2.2", 41641)}
ADDRESSES = {1: ("100.64.0.1", "fd7a:115c:a1e0::1"), 2: ("100.64.0.2", "fd7a:115c:a1e0::2")}


class Shelf:
    """A stack that only keeps and hands over."""

    def __init__(self) -> None:
        self.received = 0
        self.outgoing: list[tuple[Hop, list[bytes]]] = []

    def receive(self, runs: list[tuple[Origin, list[bytes]]], now: float) -> None:
        for _, packets in runs:
            self.received += len(packets)

    def transmit(self, now: float, widths: SegmentSizes, lanes: Lanes | None) -> list[tuple[Hop, list[bytes]]]:
        taken, self.outgoing = self.outgoing, []
        return taken

    def handle_timer(self, now: float) -> None: ...

    def next_timer(self) -> float:
        return math.inf

    def take_messages(self) -> list[Changed]:
        return []

    def set_addresses(self, own: Sequence[bytes], now: float, services: Sequence[bytes] = ()) -> None: ...

    def path_changed(self, address: bytes) -> None: ...

    def fail_hop(self, hop: Hop) -> None: ...

    def follow_routes(self, peer_for: object, exits: object) -> None: ...

    def close_all(self, now: float) -> None: ...

    is_quiet = True
    exits_in_use: Mapping[PeerId, int] = MappingProxyType({})


class Side:
    """One node: a real endpoint and a real engine between a shelf and the other side."""

    def __init__(self, number: int, rules: tuple[Rule, ...]) -> None:
        other = 3 - number
        keys = {n: NodePrivate.generate(bytes([n]) * 32) for n in (1, 2)}
        entropy = random.Random(number).randbytes
        endpoint = Endpoint(keys[number], entropy=entropy, wall_clock=lambda: 1_800_000_000.0)
        endpoint.set_peers({other: keys[other].public.raw}, 0.0)
        self.shelf = Shelf()
        self.engine = Engine(endpoint, self.shelf)
        peer = PeerRoutes(other, ADDRESSES[other])
        self.engine.tables = run_through(compile_tables_steps(own=ADDRESSES[number], peers=(peer,), rules=rules))
        self.engine.paths[other] = (PATHS[other],)


def pair() -> tuple[Side, Side]:
    """Two sides with a session between them."""
    rules = (Rule(("*",), (("*", 0, 65535),)),)
    a, b = Side(1, rules), Side(2, rules)
    a.shelf.outgoing.append(((parse_address(ADDRESSES[2][0]), 0), segments(TCP, 0, 1, 100)))
    for _ in range(4):
        for sender, receiver, number in ((a, b, 1), (b, a, 2)):
            runs = [(PATHS[number], datagrams) for _, datagrams in sender.engine.transmit(0.0)]
            receiver.engine.receive(runs, 0.0)
    assert b.shelf.received == 1
    return a, b


def segments(protocol: int, family: int, number: int, size: int) -> list[bytes]:
    source, destination = (parse_address(ADDRESSES[n][family]) for n in (1, 2))
    head = bytes([0x10, 0, 0, 80, *bytes(8), 0x50, 0x10, 1, 0, *bytes(4)])
    body = size - (20, 40)[family] - len(head)
    return [ip_packet(source, destination, protocol, head + bytes(body)) for _ in range(number)]


def best(measure: Callable[[], float]) -> float:
    return min(measure() for _ in range(ROUNDS))


def runs_of(packets: list[bytes]) -> list[list[bytes]]:
    return [packets[at : at + RUN] for at in range(0, len(packets), RUN)]


def measure(protocol: int, family: int, size: int, packets: int) -> dict[str, float]:
    """Microseconds per packet: bare decrypt and encrypt, inbound and outbound through everything."""
    a, b = pair()
    plain = segments(protocol, family, packets, size)
    destination = plain[0][16:20] if family == 0 else plain[0][24:40]
    cipher = ChaCha20Poly1305(bytes(32))
    padded = plain[0] + bytes(-size % 16)
    nonces = [bytes(4) + n.to_bytes(8, "little") for n in range(packets)]
    sealed = [bytes(16) + cipher.encrypt(nonce, padded, b"") for nonce in nonces]

    def decrypt() -> float:
        start = time.perf_counter()
        for nonce, datagram in zip(nonces, sealed, strict=True):
            cipher.decrypt(nonce, datagram[16:], b"")
        return time.perf_counter() - start

    def encrypt() -> float:
        start = time.perf_counter()
        for nonce in nonces:
            cipher.encrypt(nonce, padded, b"")
        return time.perf_counter() - start

    waiting: list[list[PathRun]] = []

    def outbound() -> float:
        spent = 0.0
        waiting.clear()
        for run in runs_of(plain):
            a.shelf.outgoing.append(((destination, 0), run))
            start = time.perf_counter()
            sent = a.engine.transmit(1.0)
            spent += time.perf_counter() - start
            waiting.append([(PATHS[1], datagrams) for _, datagrams in sent])
        return spent

    def inbound() -> float:
        outbound()
        before = b.shelf.received
        start = time.perf_counter()
        for runs in waiting:
            b.engine.receive(runs, 1.0)
        spent = time.perf_counter() - start
        assert b.shelf.received - before == packets
        return spent

    figures = {"decrypt": best(decrypt), "inbound": best(inbound), "encrypt": best(encrypt), "outbound": best(outbound)}
    return {name: seconds / packets * 1e6 for name, seconds in figures.items()}


def main() -> None:
    packets = int(sys.argv[1]) if len(sys.argv) > 1 else 2_400
    print("case            decrypt  inbound  ratio   encrypt  outbound  ratio   (microseconds per packet)")
    for name, protocol, family, size in (
        ("TCP/IPv4 1280", TCP, 0, 1280),
        ("TCP/IPv6 1280", TCP, 1, 1280),
        ("UDP/IPv4 1280", UDP, 0, 1280),
        ("TCP/IPv4   64", TCP, 0, 64),
    ):
        f = measure(protocol, family, size, packets)
        print(
            f"{name:15} {f['decrypt']:7.2f}  {f['inbound']:7.2f}  {f['inbound'] / f['decrypt']:5.2f}   "
            f"{f['encrypt']:7.2f}  {f['outbound']:8.2f}  {f['outbound'] / f['encrypt']:5.2f}"
        )


if __name__ == "__main__":
    main()
