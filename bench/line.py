"""A line with delay and a rate in front of a device's UDP socket, for the rows about long paths.

Both directions are shaped at one end: every burst waits for its turn on the line, then for its delay; what finds the
queue full is lost, as at a router. Implements the runtime's `Network` and `UdpUnderlay`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import trio

from tailscale.runtime.network import DirectRuns, HostNetwork, UdpUnderlay

OVERHEAD = 28  # IPv4 and UDP headers count on a line
PIECE = 8  # datagrams that travel together; more would arrive too evenly spaced in time


class Direction:
    """One way of the line: first in, first out, at `rate` bytes a second and `delay` seconds long."""

    def __init__(self, delay: float, rate: float, queue: float, loss: Callable[[], bool]) -> None:
        self._delay, self._rate, self._queue, self._loss = delay, rate, queue, loss
        self._free_at = 0.0
        self._waiting: deque[tuple[float, DirectRuns]] = deque()
        self._arrived = trio.Event()
        self.lost = 0

    def put(self, runs: DirectRuns) -> None:
        now = trio.current_time()
        for path, datagrams in runs:
            for start in range(0, len(datagrams), PIECE):
                self._put(path, [d for d in datagrams[start : start + PIECE] if not self._is_lost()], now)
        self._arrived.set()

    def _is_lost(self) -> bool:
        lost = self._loss()
        self.lost += lost
        return lost

    def _put(self, path: tuple[str, int], piece: list[bytes], now: float) -> None:
        self._free_at = max(self._free_at, now)
        if self._free_at - now > self._queue:
            self.lost += len(piece)
            return
        self._free_at += sum(len(datagram) + OVERHEAD for datagram in piece) / self._rate
        if piece:
            self._waiting.append((self._free_at + self._delay, [(path, piece)]))

    async def take(self) -> DirectRuns:
        """What has come through by now; waits until there is something."""
        while True:
            while not self._waiting:
                self._arrived = trio.Event()
                await self._arrived.wait()
            await trio.sleep_until(self._waiting[0][0])
            now, through = trio.current_time(), []
            while self._waiting and self._waiting[0][0] <= now:
                through += self._waiting.popleft()[1]
            if through:
                return through


class LineUdp:
    """A UDP port at the near end of a line."""

    def __init__(self, port: UdpUnderlay, outbound: Direction, inbound: Direction) -> None:
        self._port, self._out, self._in = port, outbound, inbound
        self.rebind, self.close, self.take_unreachable = port.rebind, port.close, port.take_unreachable
        self.statistics, self.uplinks = port.statistics, port.uplinks
        self.use_uplinks, self.bound_by, self.more_readers = port.use_uplinks, port.bound_by, port.more_readers
        self.open_more, self.close_more = port.open_more, port.close_more

    @property
    def local_port(self) -> int:
        return self._port.local_port

    @property
    def has_ipv6(self) -> bool:
        return self._port.has_ipv6

    def readers(self) -> Sequence[Callable[[], Awaitable[DirectRuns]]]:
        return [self._in.take, *([trio.sleep_forever] if self.has_ipv6 else [])]

    def send_many(self, runs: DirectRuns) -> None:
        self._out.put(runs)

    async def run_writers(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._port.run_writers)
            nursery.start_soon(self._carry_out)
            for reader in self._port.readers():
                nursery.start_soon(self._carry_in, reader)

    async def _carry_out(self) -> None:
        while True:
            self._port.send_many(await self._out.take())

    async def _carry_in(self, reader: Callable[[], Awaitable[DirectRuns]]) -> None:
        while True:
            self._in.put(await reader())


class LineNetwork(HostNetwork):
    """The host's network, its UDP at the end of a line. `delay` is one way, `rate` in bytes a second."""

    def __init__(self, delay: float, rate: float, queue: float, loss: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._line = (delay, rate, queue, loss)

    async def open_udp(self, port: int, uplinks: Sequence[str] = ()) -> UdpUnderlay:
        return LineUdp(await super().open_udp(port, uplinks), Direction(*self._line), Direction(*self._line))
