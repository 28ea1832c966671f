"""Fragments in any order, overlapping, repeated, late: whole datagrams come out as the slow twin says, in bounds."""

from __future__ import annotations

from collections import Counter

from golden.reassembly import SlowReassembly
from ts_netstack.fragments import DATAGRAMS_LIMIT, FRAGMENTS_LIMIT, HIGH_WATER, SMALLEST_FRAGMENT, Reassembly
from ts_netstack.wire import Fragment, Packet

SOURCE, TARGET = bytes([100, 64, 0, 2]), bytes([100, 64, 0, 1])
STREAM = bytes(at * 7 & 255 for at in range(70_000))
STEP = 5


def fuzz_one(data: bytes) -> None:
    """Records of: datagram and flags 1, offset in blocks 2, length 1, time passing 1."""
    drops: Counter[str] = Counter()
    fast = Reassembly(drops)
    twins: dict[int, SlowReassembly] = {}
    seen: dict[int, dict[int, int]] = {}
    now = 0.0
    for at in range(0, len(data) - STEP + 1, STEP):
        flags, high, low, length, wait = data[at : at + STEP]
        if wait > 250:
            now += 40.0
            fast.expire(now)
            if len(fast) == 0:
                twins.clear()
                seen.clear()
            else:
                return  # what is half expired the twin cannot follow
        which, more = flags & 3, bool(flags & 4)
        offset = ((high & 1) << 8 | low) * 8 if flags & 8 else (low & 15) * 8
        size = length // 8 * 8 or 8 if more else length
        payload = STREAM[offset : offset + size]
        packet = Packet(SOURCE, TARGET, 17, payload, Fragment(bytes([which]), offset, more))
        got = fast.add(packet, now)
        assert fast.cost <= HIGH_WATER + 65_536
        assert len(fast) <= DATAGRAMS_LIMIT
        if not payload or (more and len(payload) < SMALLEST_FRAGMENT) or offset + len(payload) > 65_535:
            assert got is None
            continue
        known = seen.setdefault(which, {})
        twin = twins.setdefault(which, SlowReassembly())
        if known.get(offset) == len(payload) and not twin.spoilt and (more or twin.total == offset + len(payload)):
            assert got is None  # an exact copy is forgiven; the twin does not know that
            continue
        known[offset] = len(payload)
        wanted = twin.add(offset, payload, more)
        if len(known) >= FRAGMENTS_LIMIT:
            return
        assert (None if got is None else got.payload) == wanted
        if wanted is not None:
            del twins[which], seen[which]
    fast.expire(now + 61.0)
    assert len(fast) == 0
    assert fast.cost == 0


def seeds() -> list[bytes]:
    in_order = b"".join(bytes([4 * (place < 4), 0, place, 8, 0]) for place in range(5))
    backwards = b"".join(bytes([1 | 4 * (place < 4), 0, place, 8, 0]) for place in reversed(range(5)))
    mixed = b"".join(bytes([place % 3 | 4, 0, place // 3, 8, 0]) for place in range(12))
    large = b"".join(bytes([2 | 8 | 4 * (place < 9), place >> 4, place * 25 & 255, 200, 0]) for place in range(10))
    return [in_order, backwards, mixed, large, in_order * 2, mixed + bytes([4, 0, 0, 8, 255]) + in_order]
