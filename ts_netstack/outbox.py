"""What waits for the next transmit and belongs to no connection: answers to strangers, datagrams, echoes.

Owns their limits and cutting what is larger than its path. Refuses to know who asked.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from ts_base.who import Hop
from ts_netstack.fragments import cut
from ts_netstack.path_sizes import PathSizes
from ts_netstack.wire import parse_packet_untrusted

REPLIES_LIMIT = 4096  # packets
DATAGRAMS_LIMIT = 4 << 20  # bytes

Replies = deque[tuple[Hop, bytes]]


class Outbox:
    """Both queues hold hops beside what goes there."""

    __slots__ = ("_drops", "_entropy", "_paths", "_size", "datagrams", "replies")

    def __init__(self, paths: PathSizes, entropy: Callable[[int], bytes], drops: Counter[str]) -> None:
        self._paths, self._entropy, self._drops = paths, entropy, drops
        self.replies: Replies = deque()
        self.datagrams: deque[tuple[Hop, list[bytes]]] = deque()
        self._size = 0

    def answer(self, hop: Hop, packet: bytes) -> None:
        """What nobody's connection has asked for; it is small enough for every path."""
        if len(self.replies) >= REPLIES_LIMIT:
            self._drops["ip.replies_full"] += 1
        else:
            self.replies.append((hop, packet))

    def post(self, hop: Hop, packet: bytes) -> None:
        """One packet, in the fragments it must travel in."""
        mtu = self._paths.mtu_to(hop)
        packets = [packet] if len(packet) <= mtu else self._cut(packet, mtu)
        size = sum(map(len, packets))
        if self._size + size > DATAGRAMS_LIMIT:
            self._drops["ip.datagrams_full"] += 1
            return
        self._size += size
        self.datagrams.append((hop, packets))

    def _cut(self, packet: bytes, mtu: int) -> list[bytes]:
        whole = parse_packet_untrusted(packet)
        ident = int.from_bytes(self._entropy(4), "big")
        return cut(whole.source, whole.destination, whole.protocol, whole.payload, mtu, ident)

    def empty_into(self, runs: dict[Hop, list[bytes]]) -> None:
        """Add everything to the `runs` of its hops."""
        replies, datagrams = self.replies, self.datagrams
        while replies:
            hop, packet = replies.popleft()
            runs.setdefault(hop, []).append(packet)
        while datagrams:
            hop, fragments = datagrams.popleft()
            runs.setdefault(hop, []).extend(fragments)
        self._size = 0
