"""What the tunnel costs on top of its cipher: `python bench/tunnel.py`.

Prints, for runs of 48 full packets, the ratio of sealing and opening to bare ChaCha20-Poly1305 (ratios travel between
machines, microseconds do not), then the cost of both sides of a handshake and of turning a flood away.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Callable
from struct import Struct

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ts_base.keys import NodePrivate
from ts_tunnel.cookie import append_macs, mac1_key_of
from ts_tunnel.endpoint import Endpoint
from ts_tunnel.peer import Peer
from ts_tunnel.session import Session

RUN = 48
SIZE = 1280
KEYS = (b"k" * 32, b"K" * 32)
PATH = ("192.0.2.1", 41641)
nonce_of = Struct("<4xQ").pack

PACKETS = [os.urandom(SIZE) for _ in range(RUN)]


def session(*, sender: bool) -> Session:
    peer = Peer(1, bytes(32))
    if sender:
        return Session(peer, 1, 2, KEYS, is_initiator=True, now=0.0)
    return Session(peer, 2, 1, KEYS[::-1], is_initiator=False, now=0.0)


def timed(prepare: Callable[[], Callable[[], object]], rounds: int = 600) -> tuple[float, float]:
    """Best and median microseconds per packet; `prepare` is outside the clock."""
    spent = []
    for _ in range(rounds):
        work = prepare()
        started = time.perf_counter()
        work()
        spent.append((time.perf_counter() - started) / RUN * 1e6)
    return min(spent), statistics.median(spent)


def prepare_bare_encrypt() -> Callable[[], object]:
    encrypt = ChaCha20Poly1305(KEYS[0]).encrypt
    pairs = [(nonce_of(n), packet) for n, packet in enumerate(PACKETS)]

    def work() -> None:
        for nonce, packet in pairs:
            encrypt(nonce, packet, None)

    return work


def prepare_bare_decrypt() -> Callable[[], object]:
    cipher = ChaCha20Poly1305(KEYS[0])
    decrypt = cipher.decrypt
    pairs = [(nonce_of(n), cipher.encrypt(nonce_of(n), packet, None)) for n, packet in enumerate(PACKETS)]

    def work() -> None:
        for nonce, sealed in pairs:
            decrypt(nonce, sealed, None)

    return work


def prepare_seal(first: int = 10_000) -> Callable[[], object]:
    sealing = session(sender=True)
    sealing.sent = first
    return lambda: sealing.seal_batch(PACKETS)


def prepare_open(order: Callable[[list[bytes]], list[bytes]] = list) -> Callable[[], object]:
    sealing, opening = session(sender=True), session(sender=False)
    for _ in range(2):  # a window that has something in it
        opening.open_batch(sealing.seal_batch([b""] * RUN))
    sealing.sent += 8192
    opening.open_batch(sealing.seal_batch([b""]))
    datagrams = order(sealing.seal_batch(PACKETS))
    return lambda: opening.open_batch(datagrams)


def with_losses(datagrams: list[bytes]) -> list[bytes]:
    return [*datagrams[:20], *datagrams[22:], datagrams[0], datagrams[21]]


def endpoints() -> tuple[Endpoint, Endpoint]:
    a, b = (NodePrivate.generate(hashlib.sha256(name).digest()) for name in (b"a", b"b"))
    left = Endpoint(a, entropy=os.urandom, wall_clock=time.time)
    right = Endpoint(b, entropy=os.urandom, wall_clock=time.time)
    left.set_peers({2: b.public.raw}, 0.0)
    right.set_peers({1: a.public.raw}, 0.0)
    return left, right


def connected() -> tuple[Endpoint, Endpoint]:
    left, right = endpoints()
    left.send([(2, [b"hello"])], 0.0)
    for _ in range(2):
        right.receive([(PATH, datagrams) for _, datagrams in left.transmit(0.0)], 0.0)
        left.receive([(PATH, datagrams) for _, datagrams in right.transmit(0.0)], 0.0)
    return left, right


def prepare_endpoint_send() -> Callable[[], object]:
    left, _ = connected()

    def work() -> None:
        left.send([(2, PACKETS)], 1.0)
        left.transmit(1.0)

    return work


def prepare_endpoint_receive() -> Callable[[], object]:
    left, right = connected()
    left.send([(2, PACKETS)], 1.0)
    runs = [(PATH, datagrams) for _, datagrams in left.transmit(1.0)]
    return lambda: right.receive(runs, 1.0)


def handshake_costs(rounds: int = 200) -> list[tuple[str, float]]:
    spent: dict[str, list[float]] = {"create initiation": [], "consume it, respond": [], "consume response": []}
    for _ in range(rounds):
        left, right = endpoints()
        times = [time.perf_counter()]
        left.send([(2, [b"x"])], 0.0)
        times.append(time.perf_counter())
        initiation = left.transmit(0.0)[0][1]
        times.append(time.perf_counter())
        right.receive([(PATH, initiation)], 0.0)
        times.append(time.perf_counter())
        response = right.transmit(0.0)[0][1]
        times.append(time.perf_counter())
        left.receive([(PATH, response)], 0.0)
        times.append(time.perf_counter())
        for name, index in zip(spent, (0, 2, 4), strict=True):
            spent[name].append((times[index + 1] - times[index]) * 1e6)
    return [(name, statistics.median(values)) for name, values in spent.items()]


def flood_cost(count: int = 5000) -> float:
    """Microseconds per initiation with a right first mac, once under load."""
    _, right = endpoints()
    key = mac1_key_of(NodePrivate.generate(hashlib.sha256(b"b").digest()).public.raw)
    flood = [append_macs(b"\1\0\0\0" + os.urandom(112), key, None) for _ in range(count)]
    right.receive([(PATH, flood[:500])], 0.0)
    right.take_replies()
    started = time.perf_counter()
    right.receive([(PATH, flood)], 0.0)
    return (time.perf_counter() - started) / count * 1e6


def main() -> None:
    bare_encrypt, bare_decrypt = timed(prepare_bare_encrypt), timed(prepare_bare_decrypt)
    print(f"runs of {RUN} x {SIZE} B            best us  median us   ratio best  ratio median")
    rows = [
        ("bare encrypt", bare_encrypt, bare_encrypt),
        ("seal_batch", timed(prepare_seal), bare_encrypt),
        ("Endpoint.send + transmit", timed(prepare_endpoint_send), bare_encrypt),
        ("bare decrypt", bare_decrypt, bare_decrypt),
        ("open_batch", timed(prepare_open), bare_decrypt),
        ("open_batch, lost and doubled", timed(lambda: prepare_open(with_losses)), bare_decrypt),
        ("Endpoint.receive", timed(prepare_endpoint_receive), bare_decrypt),
    ]
    for name, (best, median), (bare_best, bare_median) in rows:
        print(f"{name:30} {best:9.2f} {median:10.2f} {best / bare_best:12.2f} {median / bare_median:13.2f}")
    print()
    for name, microseconds in handshake_costs():
        print(f"handshake: {name:22} {microseconds:7.0f} us")
    print(f"one initiation of a flood, turned away {flood_cost():.1f} us")


if __name__ == "__main__":
    main()
