"""What one connection holds of its two byte streams: SendBuffer until acknowledged, ReceiveBuffer until read.

Sequence numbers are unwrapped ints. Bytes are kept in the pieces they came in and copied once on the way out. Knows
nothing of windows or timers; bounds on bytes are the connection's, bounds on pieces are here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

SMALL_WRITE = 4096  # writes below this are gathered, so that a chatty writer does not make a block per call
SMALL_PIECE = 256  # received payloads below this are merged into their neighbour ...
MERGED_PIECE = 4096  # ... until it has grown to this
ISLANDS_LIMIT = 512  # out-of-order ranges kept; more are dropped and arrive again
BLOCK_LIMIT = 1 << 20  # a write is cut into blocks of this size, so that acknowledged bytes are let go early


class SendBuffer:
    """The bytes from SND.UNA to the end of what the application wrote."""

    __slots__ = ("_blocks", "_starts", "_tail", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self._blocks: list[bytes] = []
        self._starts: list[int] = []
        self._tail = bytearray()

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, data: bytes) -> None:
        if len(data) < SMALL_WRITE:
            self._tail += data
            self.end += len(data)
            if len(self._tail) >= 16 * SMALL_WRITE:
                self._settle()
            return
        self._settle()
        for at in range(0, len(data), BLOCK_LIMIT):
            block = data[at : at + BLOCK_LIMIT]  # the whole of a bytes object is itself, not a copy
            self._starts.append(self.end)
            self._blocks.append(block)
            self.end += len(block)

    def _settle(self) -> None:
        if self._tail:
            self._starts.append(self.end - len(self._tail))
            self._blocks.append(bytes(self._tail))
            self._tail.clear()

    def release(self, until: int) -> None:
        """Everything before `until` was acknowledged."""
        starts, blocks = self._starts, self._blocks
        if until >= self.end:
            self.start = self.end
            starts.clear()
            blocks.clear()
            self._tail.clear()
            return
        self.start = max(self.start, until)
        done = 0
        while done < len(blocks) and starts[done] + len(blocks[done]) <= until:
            done += 1
        if done:
            del starts[:done], blocks[:done]

    def pieces(self, start: int, end: int, size: int) -> list[bytes]:
        """[start, end) cut into pieces of `size`; only the last may be shorter."""
        if self._tail and end > self.end - len(self._tail):
            self._settle()
        starts, blocks = self._starts, self._blocks
        if starts and end - start <= size and starts[-1] <= start:
            at = start - starts[-1]
            return [blocks[-1][at : at + end - start]]
        index = bisect_right(starts, start) - 1
        pieces: list[bytes] = []
        while start < end:
            block, base = blocks[index], starts[index]
            at = start - base
            stop = min(len(block), end - base)
            whole = (stop - at) // size * size
            if whole:
                pieces += [block[i : i + size] for i in range(at, at + whole, size)]
                start += whole
                at += whole
            if at < stop:  # a piece that is short or crosses into the next blocks
                parts = [block[at:stop]]
                missing = min(size, end - start) - len(parts[0])
                while missing > 0:
                    index += 1
                    parts.append(blocks[index][:missing])
                    missing -= len(parts[-1])
                piece = parts[0] if len(parts) == 1 else b"".join(parts)
                pieces.append(piece)
                start += len(piece)
            while start < end and start >= starts[index] + len(blocks[index]):
                index += 1
        return pieces


class ReceiveBuffer:
    """In-order bytes waiting for the reader, and islands of bytes that came too early."""

    __slots__ = ("chunks", "islands", "next", "unread")

    def __init__(self, start: int) -> None:
        self.next = start  # RCV.NXT, as far as data goes
        self.chunks: deque[bytes] = deque()
        self.unread = 0
        self.islands: list[Island] = []  # sorted, disjoint, not touching

    def accept(self, payload: bytes) -> None:
        """Bytes that start exactly at `next`; islands they reach become readable."""
        self._append(payload)
        islands = self.islands
        while islands and islands[0].start <= self.next:
            island = islands.pop(0)
            overlap = self.next - island.start
            for piece in island.pieces:
                if overlap >= len(piece):
                    overlap -= len(piece)
                else:
                    self._append(piece[overlap:])
                    overlap = 0

    def _append(self, payload: bytes) -> None:
        size = len(payload)
        chunks = self.chunks
        # A peer that sends single bytes must not cost an object each.
        if size < SMALL_PIECE and chunks and len(chunks[-1]) < MERGED_PIECE:
            chunks[-1] += payload
        else:
            chunks.append(payload)
        self.next += size
        self.unread += size

    def insert(self, start: int, payload: bytes) -> bool:
        """Keep bytes beyond `next`; the first copy of a byte wins. False when there is no room for another island."""
        islands = self.islands
        end = start + len(payload)
        index = bisect_right(islands, start, key=_island_start)
        if index:
            before = islands[index - 1]
            if before.end >= end:
                return True
            if before.end > start:
                payload = payload[before.end - start :]
                start = before.end
        if index < len(islands) and islands[index].start < end:
            # Rare: the payload runs over what lies behind. Keep the part before it, then try the rest.
            following = islands[index]
            head, tail = payload[: following.start - start], payload[following.end - start :]
            fits = not head or self.insert(start, head)
            # `following` may have been merged, its end is what it was.
            return (not tail or self.insert(following.end, tail)) and fits if end > following.end else fits
        if index and islands[index - 1].end == start:
            islands[index - 1].extend(payload)
            index -= 1
        elif index < len(islands) and islands[index].start == end:
            islands[index].prepend(payload)
            return True
        elif len(islands) >= ISLANDS_LIMIT:
            return False
        else:
            islands.insert(index, Island(start, payload))
            return True
        if index + 1 < len(islands) and islands[index + 1].start == islands[index].end:
            islands[index].join(islands.pop(index + 1))
        return True

    def island_at(self, seq: int) -> tuple[int, int] | None:
        """The island that holds `seq`, as a SACK block."""
        index = bisect_right(self.islands, seq, key=_island_start)
        if index and self.islands[index - 1].end > seq:
            return self.islands[index - 1].start, self.islands[index - 1].end
        return None

    def read(self, limit: int) -> bytes:
        """Up to `limit` in-order bytes."""
        chunks = self.chunks
        if self.unread <= limit:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            self.unread = 0
            return data
        parts: list[bytes] = []
        wanted = limit
        while wanted > 0:
            chunk = chunks.popleft()
            if len(chunk) > wanted:
                chunks.appendleft(chunk[wanted:])
                chunk = chunk[:wanted]
            parts.append(chunk)
            wanted -= len(chunk)
        self.unread -= limit
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def forget_unread(self) -> None:
        """Nobody will read what waits here."""
        self.chunks.clear()
        self.unread = 0


class Island:
    """A range of contiguous bytes behind a hole."""

    __slots__ = ("end", "pieces", "start")

    def __init__(self, start: int, payload: bytes) -> None:
        self.start = start
        self.end = start + len(payload)
        self.pieces = [payload]

    def extend(self, payload: bytes) -> None:
        if len(payload) < SMALL_PIECE and len(self.pieces[-1]) < MERGED_PIECE:
            self.pieces[-1] += payload
        else:
            self.pieces.append(payload)
        self.end += len(payload)

    def prepend(self, payload: bytes) -> None:
        if len(payload) < SMALL_PIECE and len(self.pieces[0]) < MERGED_PIECE:
            self.pieces[0] = payload + self.pieces[0]
        else:
            self.pieces.insert(0, payload)
        self.start -= len(payload)

    def join(self, following: Island) -> None:
        self.pieces += following.pieces
        self.end = following.end


def _island_start(island: Island) -> int:
    return island.start
