"""Slow twins of the netstack's buffers: bytes in dicts, one by one."""

from __future__ import annotations


class SlowReceiver:
    """The first copy of a byte wins; in-order bytes become readable."""

    def __init__(self, start: int) -> None:
        self.next = start
        self.readable = bytearray()
        self.early: dict[int, int] = {}

    def arrive(self, seq: int, payload: bytes) -> None:
        for offset, byte in enumerate(payload):
            if seq + offset >= self.next:
                self.early.setdefault(seq + offset, byte)
        while self.next in self.early:
            self.readable.append(self.early.pop(self.next))
            self.next += 1

    def islands(self) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        for at in sorted(self.early):
            if ranges and ranges[-1][1] == at:
                ranges[-1] = (ranges[-1][0], at + 1)
            else:
                ranges.append((at, at + 1))
        return ranges

    def read(self, limit: int) -> bytes:
        taken = bytes(self.readable[:limit])
        del self.readable[:limit]
        return taken


class SlowFlight:
    """Every byte in flight with its fate: "sent", "sacked" or "lost"."""

    def __init__(self) -> None:
        self.fates: dict[int, str] = {}

    def add(self, start: int, end: int) -> None:
        for at in range(start, end):
            self.fates[at] = "sent"

    def acknowledge(self, una: int) -> int:
        news = 0
        for at in [at for at in self.fates if at < una]:
            news += self.fates.pop(at) != "sacked"
        return news

    def sack(self, start: int, end: int) -> int:
        news = 0
        for at in range(start, end):
            if at in self.fates and self.fates[at] != "sacked":
                self.fates[at] = "sacked"
                news += 1
        return news

    def lose(self, start: int, end: int) -> None:
        for at in range(start, end):
            if self.fates.get(at) == "sent":
                self.fates[at] = "lost"

    def resend(self, start: int, end: int) -> None:
        for at in range(start, end):
            if self.fates.get(at) == "lost":
                self.fates[at] = "sent"

    def count(self, fate: str) -> int:
        return sum(one == fate for one in self.fates.values())


class SlowReassembly:
    """Fragments of one datagram as bytes by offset; None once anything overlapped."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.total: int | None = None
        self.spoilt = False

    def add(self, offset: int, payload: bytes, more: bool) -> bytes | None:
        end = offset + len(payload)
        overlaps = any(at in self.bytes for at in range(offset, end))
        beyond = self.total is not None and (end > self.total or not more)
        behind = not more and any(at >= end for at in self.bytes)
        if self.spoilt or overlaps or beyond or behind:
            self.spoilt = True
            return None
        for index, byte in enumerate(payload):
            self.bytes[offset + index] = byte
        if not more:
            self.total = end
        if self.total is not None and len(self.bytes) == self.total:
            return bytes(self.bytes[at] for at in range(self.total))
        return None
