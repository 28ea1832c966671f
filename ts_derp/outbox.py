"""What waits at the relay for one client: bounded, and fair between those who send to it.

Owns which packet is dropped and whose turn it is. Refuses to know connections. derper keeps 32 packets, because its
writer runs beside its reader; here a read of 256 KiB is queued whole before anything is written, so the bound is in
bytes, and a flood displaces only itself. Disco has room of its own: a flood must not hide the way out of it.
"""

from __future__ import annotations

from collections import Counter, deque

from ts_derp.frames import PACKET_OVERHEAD, Run

QUEUE_LIMIT = 1 << 20
PACKET_WEIGHT = 100  # what a waiting packet costs beside its bytes
DISCO_LIMIT = 32  # packets
QUANTUM, QUANTUM_BYTES = 32, 64 << 10  # of one sender before it is another one's turn
BURST_LIMIT = 256 << 10

QUEUE_FULL = "derp.receiver_queue_full"
DISCO_QUEUE_FULL = "derp.receiver_disco_full"


class Outbox:
    """Runs in, runs out. Drops are counted in the counter it is given."""

    __slots__ = ("_disco", "_drops", "_queues", "_weights", "weight")

    def __init__(self, drops: Counter[str]) -> None:
        self._drops = drops
        self._disco: deque[tuple[bytes, bytes]] = deque()
        self._queues: dict[bytes, deque[bytes]] = {}  # by sender, the next one to be served first
        self._weights: dict[bytes, int] = {}
        self.weight = 0  # of all that waits, headers included

    def __bool__(self) -> bool:
        return bool(self._queues or self._disco)

    def __len__(self) -> int:
        return len(self._disco) + sum(map(len, self._queues.values()))

    def add_disco(self, source: bytes, packets: list[bytes]) -> None:
        self._disco.extend((source, packet) for packet in packets)
        excess = len(self._disco) - DISCO_LIMIT
        if excess > 0:
            self._drops[DISCO_QUEUE_FULL] += excess
            for _ in range(excess):
                self._disco.popleft()

    def add(self, source: bytes, packets: list[bytes]) -> None:
        weight = sum(map(len, packets)) + PACKET_WEIGHT * len(packets)
        queue = self._queues.get(source)
        if queue is None:
            queue = self._queues[source] = deque()
            self._weights[source] = 0
        queue.extend(packets)
        self._weights[source] += weight
        self.weight += weight
        while self.weight > QUEUE_LIMIT:
            self._drop_from_the_heaviest()

    def _drop_from_the_heaviest(self) -> None:
        """Who has the most waiting loses its oldest packets."""
        source = max(self._weights, key=self._weights.__getitem__)
        queue, dropped, freed = self._queues[source], 0, 0
        while queue and self.weight - freed > QUEUE_LIMIT:
            freed += len(queue.popleft()) + PACKET_WEIGHT
            dropped += 1
        self.weight -= freed
        self._weights[source] -= freed
        self._drops[QUEUE_FULL] += dropped
        if not queue:
            del self._queues[source], self._weights[source]

    def take(self) -> list[Run]:
        """About BURST_LIMIT bytes, disco first, then the senders in turn."""
        runs: list[Run] = [(source, [packet]) for source, packet in self._disco]
        self._disco.clear()
        taken = 0
        while self._queues and taken < BURST_LIMIT:
            taken += self._take_turn(runs)
        return runs

    def _take_turn(self, runs: list[Run]) -> int:
        source, queue = next(iter(self._queues.items()))
        del self._queues[source]
        if len(queue) <= QUANTUM and self._weights[source] <= QUANTUM_BYTES:
            packets = list(queue)
            weight = self._weights.pop(source)
        else:
            packets, weight = [], 0
            while queue and len(packets) < QUANTUM and weight < QUANTUM_BYTES:
                packets.append(queue.popleft())
                weight += len(packets[-1]) + PACKET_WEIGHT
            self._weights[source] -= weight
            if queue:
                self._queues[source] = queue
            else:
                del self._weights[source]
        self.weight -= weight
        runs.append((source, packets))
        return weight - (PACKET_WEIGHT - PACKET_OVERHEAD) * len(packets)
