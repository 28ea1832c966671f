"""Two stacks in memory, no crypto, no sockets: what one full TCP segment costs to send and to receive.

Run: python bench/netstack.py [MiB]. Figures are microseconds per segment, best of three rounds; the checksum figure is
what the bare sums of the same payloads cost on the same machine, so that the ratio travels between machines.
"""

from __future__ import annotations

import random
import sys
import time

from ts_netstack.arrivals import USUAL
from ts_netstack.checksums import burst_sums_by_folding, fastest_burst_sums
from ts_netstack.stack import Stack
from ts_netstack.tcp import TcpConnection

ADDRESSES = {
    4: (bytes([100, 64, 0, 1]), bytes([100, 64, 0, 2])),
    6: (bytes.fromhex("fd7a115ca1e0") + bytes(9) + b"\x01", bytes.fromhex("fd7a115ca1e0") + bytes(9) + b"\x02"),
}
BURST = 64  # packets handed over at a time, as a UDP socket with GRO does
ROUND_TRIP = 0.002


def connected(family: int) -> tuple[Stack, Stack, TcpConnection, TcpConnection]:
    a, b = (Stack(entropy=random.Random(seed).randbytes) for seed in (1, 2))
    a.set_addresses([ADDRESSES[family][0]])
    b.set_addresses([ADDRESSES[family][1]])
    listener = b.listen(80)
    client = a.connect((ADDRESSES[family][1], 80), 0.0)
    for _ in range(3):
        b.receive([(USUAL, [packet for _, run in a.transmit(0.0) for packet in run])], ROUND_TRIP / 2)
        a.receive([(USUAL, [packet for _, run in b.transmit(ROUND_TRIP / 2) for packet in run])], ROUND_TRIP)
    server = listener.accept()
    assert server is not None
    return a, b, client, server


def one_round(family: int, size: int) -> tuple[float, float, int, int]:
    """Seconds in the sender, seconds in the receiver, data segments, ACKs."""
    a, b, client, server = connected(family)
    data = random.Random(3).randbytes(1 << 20)
    clock = time.perf_counter
    sending = receiving = 0.0
    written = read = segments = acks = 0
    now = 1.0
    while read < size:
        start = clock()
        if written < size:
            written += client.write(data)
        a.handle_timer(now)
        packets = [packet for _, run in a.transmit(now) for packet in run]
        sending += clock() - start
        segments += len(packets)
        now += ROUND_TRIP / 2
        replies: list[bytes] = []
        for at in range(0, len(packets), BURST):
            burst = packets[at : at + BURST]
            start = clock()
            b.receive([(USUAL, burst)], now)
            read += len(server.read(1 << 20))
            replies += [packet for _, run in b.transmit(now) for packet in run]
            receiving += clock() - start
        b.handle_timer(now)
        now += ROUND_TRIP / 2
        acks += len(replies)
        start = clock()
        a.receive([(USUAL, replies)], now)
        sending += clock() - start
    return sending, receiving, segments, acks


def checksum_cost() -> tuple[float, float]:
    payloads = [random.Random(4).randbytes(1228) for _ in range(BURST)]

    def best(sums: object) -> float:
        assert callable(sums)
        times = []
        for _ in range(50):
            start = time.perf_counter()
            sums(payloads)
            times.append(time.perf_counter() - start)
        return min(times) / BURST * 1e6

    return best(burst_sums_by_folding), best(fastest_burst_sums())


def main() -> None:
    size = int(sys.argv[1] if len(sys.argv) > 1 else 32) << 20
    folding, chosen = checksum_cost()
    print(f"bare checksum of 1228 bytes: folding {folding:.2f} us, as installed {chosen:.2f} us")
    for family in (4, 6):
        rounds = [one_round(family, size) for _ in range(3)]
        segments, acks = rounds[0][2], rounds[0][3]
        send = min(one[0] for one in rounds) / segments * 1e6
        receive = min(one[1] for one in rounds) / segments * 1e6
        print(
            f"IPv{family}: send {send:.2f} us/segment ({1e6 / send:,.0f}/s, {send / chosen:.2f} x checksum, "
            f"{send - chosen:.2f} beside it), receive {receive:.2f} us/segment ({1e6 / receive:,.0f}/s); "
            f"{segments} segments, {acks} ACKs"
        )


if __name__ == "__main__":
    main()
