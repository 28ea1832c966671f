"""Byte streams in memory with the manners of TCP: latency, back-pressure, EOF, reset, and links that go silent.

Owns one connection between two virtual hosts. Knows the link it runs over only as a `Link`.
"""

from __future__ import annotations

import operator
from collections import deque
from dataclasses import dataclass, field

import trio

WINDOW = 256 << 10  # bytes on their way before a sender has to wait
READ_SIZE = 64 << 10


@dataclass(eq=False, slots=True)
class Link:
    """What lies between two hosts, one direction. Changing it works at once on everything that runs over it."""

    latency: float = 0.0
    loss: float = 0.0
    udp_blocked: bool = False
    tcp_blocked: bool = False
    largest: int = 1472  # bytes of a datagram: Ethernet's; routers here do not fragment
    jitter: float = 0.0  # seconds that a datagram may be later than `latency`, evenly drawn: they overtake each other
    rate: float = 0.0  # bytes a second of datagrams; 0 for no limit
    queue: int = 64 << 10  # bytes that wait where there is a rate; what comes to a full one is lost
    _free_at: float = 0.0
    _changed: trio.Event = field(default_factory=trio.Event)

    def change(
        self,
        *,
        latency: float | None = None,
        loss: float | None = None,
        udp_blocked: bool | None = None,
        tcp_blocked: bool | None = None,
        largest: int | None = None,
        jitter: float | None = None,
        rate: float | None = None,
        queue: int | None = None,
    ) -> None:
        self.latency = self.latency if latency is None else latency
        self.loss = self.loss if loss is None else loss
        self.udp_blocked = self.udp_blocked if udp_blocked is None else udp_blocked
        self.tcp_blocked = self.tcp_blocked if tcp_blocked is None else tcp_blocked
        self.largest = self.largest if largest is None else largest
        self.jitter = self.jitter if jitter is None else jitter
        self.rate = self.rate if rate is None else rate
        self.queue = self.queue if queue is None else queue
        self._changed.set()
        self._changed = trio.Event()

    @property
    def is_plain(self) -> bool:
        """Every datagram takes the same time."""
        return not self.jitter and not self.rate

    def arrival(self, size: int, now: float, drawn: float) -> float | None:
        """When a datagram that is sent now arrives; None for one that finds the queue full. `drawn`: from 0 to 1."""
        leaves = now
        if self.rate:
            leaves = max(now, self._free_at)
            if (leaves - now) * self.rate + size > self.queue:
                return None
            leaves = self._free_at = leaves + size / self.rate
        return leaves + self.latency + self.jitter * drawn

    async def wait_tcp_open(self) -> None:
        while self.tcp_blocked:
            await self._changed.wait()


class Pipe:
    """One direction of a connection."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._pieces: deque[tuple[float, bytes]] = deque()  # when it arrives, what
        self._waiting = 0
        self._news = trio.Event()
        self.ended = False  # the sender said so
        self.broken = False  # either side is gone without a word

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def end(self) -> None:
        self.ended = True
        self._tell()

    def break_off(self) -> None:
        self.broken = True
        self._pieces.clear()
        self._tell()

    async def wait_room(self) -> None:
        while self._waiting >= WINDOW and not (self.broken or self.ended):
            await self._news.wait()

    async def put(self, data: bytes) -> None:
        await self.wait_room()
        if self.broken:
            raise trio.BrokenResourceError("the connection was reset")
        if self.ended:
            raise trio.ClosedResourceError("nothing may follow the end")
        if data:
            self._pieces.append((trio.current_time() + self._link.latency, data))
            self._waiting += len(data)
            self._tell()

    async def take(self, limit: int) -> bytes:
        """At most `limit` bytes once they have arrived; empty at the end."""
        while True:
            await self._link.wait_tcp_open()
            if self.broken:
                raise trio.BrokenResourceError("the connection was reset")
            news = self._news
            if not self._pieces:
                if self.ended:
                    return b""
                await news.wait()
                continue
            arrival = self._pieces[0][0]
            if arrival > trio.current_time():
                with trio.move_on_at(arrival):
                    await news.wait()
                continue
            return self._take_now(limit)

    def _take_now(self, limit: int) -> bytes:
        taken: list[bytes] = []
        now, size = trio.current_time(), 0
        while self._pieces and self._pieces[0][0] <= now and size < limit:
            arrival, piece = self._pieces.popleft()
            if size + len(piece) > limit:
                self._pieces.appendleft((arrival, piece[limit - size :]))
                piece = piece[: limit - size]
            taken.append(piece)
            size += len(piece)
        self._waiting -= size
        self._tell()
        return b"".join(taken)


class VirtualStream(trio.abc.HalfCloseableStream):
    """One end of a virtual TCP connection."""

    def __init__(self, inbound: Pipe, outbound: Pipe, local: tuple[str, int], remote: tuple[str, int]) -> None:
        self._inbound, self._outbound = inbound, outbound
        self.local_address, self.remote_address = local, remote
        self._closed = False
        self._sending = False
        self._receiving = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._begin_sending()
        try:
            view = memoryview(data)
            for start in range(0, len(view) or 1, READ_SIZE):
                await self._outbound.put(bytes(view[start : start + READ_SIZE]))
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        self._begin_sending()
        try:
            await self._outbound.wait_room()
            self._check_open()
        finally:
            self._sending = False

    def _begin_sending(self) -> None:
        self._check_open()
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        self._sending = True

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._begin_sending()
        self._sending = False
        self._outbound.end()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._receiving = True
        try:
            return await self._inbound.take(max_bytes or READ_SIZE)
        except trio.BrokenResourceError:
            self._check_open()  # our own aclose breaks the pipe under a waiting reader
            raise
        finally:
            self._receiving = False

    @property
    def is_closed(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._outbound.end()
            self._inbound.break_off()

    def reset(self) -> None:
        """As if a router in between had sent RST both ways."""
        self._inbound.break_off()
        self._outbound.break_off()


class VirtualListener(trio.abc.Listener[VirtualStream]):
    """Connections to one port of one virtual host."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self._put, self._get = trio.open_memory_channel[VirtualStream](1024)

    def offer(self, stream: VirtualStream) -> bool:
        try:
            self._put.send_nowait(stream)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def accept(self) -> VirtualStream:
        try:
            return await self._get.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("this listener was closed") from None

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self._get.close()
        self._put.close()
