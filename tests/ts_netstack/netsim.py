"""Two stacks over a simulated network under virtual time: latency, loss, reorder, duplicates, corruption, bottleneck.

Everything is drawn from one seed, so a run is the same byte for byte every time.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import random
from dataclasses import dataclass

from ts_base.who import Lanes
from ts_netstack.arrivals import USUAL
from ts_netstack.path_sizes import SegmentLimits
from ts_netstack.stack import Stack
from ts_netstack.tcp import TcpConnection

A, B = bytes([100, 64, 0, 1]), bytes([100, 64, 0, 2])
A6, B6 = bytes.fromhex("fd7a115ca1e0") + bytes(9) + b"\x01", bytes.fromhex("fd7a115ca1e0") + bytes(9) + b"\x02"
ISS_CLOCK = 250_000  # initial sequence numbers a second (RFC 6528)


@dataclass
class Path:
    """One direction. Probabilities per packet; `delay` in seconds; `rate` in bits per second; `queue` in bytes.

    `mtu`: larger packets vanish without a word. `largest`: that was sent since somebody last set it to 0.
    """

    delay: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    rate: float = math.inf
    queue: int = 1 << 30
    free_at: float = 0.0
    dropped: int = 0
    up: bool = True
    mtu: int = 65_535
    largest: int = 0


class Net:
    """Two stacks, `a` and `b`, and the virtual clock."""

    def __init__(self, seed: int = 1, mtu: int = 1280, verify: bool = False, **path: float) -> None:
        self.random = random.Random(seed)
        self.a = Stack(entropy=random.Random(seed + 1).randbytes, mtu=mtu, verify_checksums=verify)
        self.b = Stack(entropy=random.Random(seed + 2).randbytes, mtu=mtu, verify_checksums=verify)
        self.a.set_addresses([A, A6])
        self.b.set_addresses([B, B6])
        self.to_b = Path(**path)  # type: ignore[arg-type]
        self.to_a = Path(**path)  # type: ignore[arg-type]
        self.widths: dict[Stack, SegmentLimits] = {}
        self.lanes: dict[Stack, Lanes] = {}
        self.now = 0.0
        self._flying: list[tuple[float, int, Stack, bytes]] = []
        self._order = itertools.count()
        self.carried = 0

    def _send(self, stack: Stack, path: Path, target: Stack) -> None:
        for _, packets in stack.transmit(self.now, self.widths.get(stack), self.lanes.get(stack)):
            self.carry(packets, path, target)

    def carry(self, packets: list[bytes], path: Path, target: Stack) -> None:
        dice = self.random
        for packet in packets:
            self.carried += 1
            path.largest = max(path.largest, len(packet))
            if len(packet) > path.mtu:
                path.dropped += 1
                continue
            if not path.up or dice.random() < path.loss:
                continue
            start = max(self.now, path.free_at)
            if path.rate < math.inf:
                if (start - self.now) * path.rate / 8 > path.queue:
                    path.dropped += 1
                    continue
                path.free_at = start + len(packet) * 8 / path.rate
                start = path.free_at
            arrival = start + path.delay
            if path.reorder and dice.random() < path.reorder:
                # As netem does it: the unlucky ones overtake.
                arrival = self.now + path.delay * dice.uniform(0.5, 1.0)
            if path.corrupt and dice.random() < path.corrupt:
                place = dice.randrange(len(packet))
                packet = packet[:place] + bytes([packet[place] ^ 1 << dice.randrange(8)]) + packet[place + 1 :]
            copies = 2 if path.duplicate and dice.random() < path.duplicate else 1
            for _ in range(copies):
                heapq.heappush(self._flying, (arrival, next(self._order), target, packet))

    def lose_in_flight(self, larger_than: int) -> None:
        """Whoever carried what is larger went down with it."""
        self._flying = [one for one in self._flying if len(one[3]) <= larger_than]
        heapq.heapify(self._flying)

    def settle(self) -> None:
        """Send what is ready now."""
        self._send(self.a, self.to_b, self.b)
        self._send(self.b, self.to_a, self.a)

    def step(self, until: float = math.inf) -> bool:
        """Advance to the next event; False when nothing will ever happen again before `until`."""
        self.settle()
        at = min(self._flying[0][0] if self._flying else math.inf, self.a.next_timer(), self.b.next_timer())
        if at > until or at == math.inf:
            if until < math.inf:
                self.now = max(self.now, until)
            return False
        self.now = max(self.now, at)
        arrived: dict[int, tuple[Stack, list[bytes]]] = {}
        # A shell drains its socket in bursts: what arrives within a tenth of a millisecond is one.
        while self._flying and self._flying[0][0] <= self.now + 0.0001:
            _, _, target, packet = heapq.heappop(self._flying)
            arrived.setdefault(id(target), (target, []))[1].append(packet)
        for target, packets in arrived.values():
            target.receive([(USUAL, packets)], self.now)
        self.a.handle_timer(self.now)
        self.b.handle_timer(self.now)
        return True

    def run(self, seconds: float = math.inf, steps: int = 2_000_000) -> None:
        """Until nothing happens any more, or `seconds` from now."""
        until = self.now + seconds
        for _ in range(steps):
            if not self.step(until):
                return
        raise AssertionError("the network never comes to rest")

    def pair(self, port: int = 80, v6: bool = False) -> tuple[TcpConnection, TcpConnection]:
        """An established connection from a to b."""
        listener = self.b.listen(port)
        client = self.a.connect((B6 if v6 else B, port), self.now)
        server = None
        while server is None:
            assert self.step(), f"no connection: {client.error}"
            server = listener.accept()
        listener.close()
        while not client.is_established:
            assert self.step()
        return client, server

    def wait_until_sequence_numbers_are_near(self, number: int, port: int, local_port: int) -> None:
        """Let time pass until a connection from `local_port` to b's `port` begins at about `number`."""
        probe = self.a.connect((B, port), self.now, local_port=local_port)
        ((_, (syn,)),) = self.a.transmit(self.now)
        begins = int.from_bytes(syn[24:28], "big")
        probe.abort(self.now)
        self.run()
        self.now += (number - begins & 0xFFFFFFFF) / ISS_CLOCK

    def transfer(self, sender: TcpConnection, receiver: TcpConnection, data: bytes, limit: float = 3600.0) -> float:
        """Move `data`, compare hashes, return seconds of virtual time."""
        start = self.now
        at, got, digest = 0, 0, hashlib.sha256()
        idle = 0
        while got < len(data):
            if at < len(data):
                at += sender.write(data[at : at + (1 << 18)])
            piece = receiver.read(1 << 20)
            got += len(piece)
            digest.update(piece)
            if got < len(data):
                idle = 0 if self.step() or piece else idle + 1
                assert idle < 3, f"stuck at {got} of {len(data)} after {self.now}"
                assert sender.error is None, sender.error
                assert receiver.error is None, receiver.error
                assert self.now - start < limit
        assert digest.digest() == hashlib.sha256(data).digest()
        return self.now - start
