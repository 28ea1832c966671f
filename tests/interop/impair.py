"""A UDP path with faults: delay, jitter, loss, reordering, duplication, corruption, a rate limit.

    python -m tests.interop.impair --listen 127.0.0.1:40001 --to 127.0.0.1:41641 --delay-ms 40 --loss 0.01

Everything that comes to the first address is sent on to the second, and answers travel back the same way.
Each stranger gets a socket of his own on the far side, as behind a NAT. Faults are drawn from a seeded
stream, so a run can be repeated. A peer is put behind it with `hidden_behind` and a relay without STUN.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import json
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

import trio

STRANGERS_LIMIT = 1000
QUEUE_LIMIT = 20_000
Address = tuple[str, int]


@dataclass
class Faults:
    """What happens to datagrams; probabilities are per datagram, times in milliseconds. May change live."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    """Chance to be held back by another `delay_ms` + 10 ms, so that later ones overtake."""
    duplicate: float = 0.0
    corrupt: float = 0.0
    rate_mbit: float = 0.0
    """0 means no limit; the queue in front of it holds 100 ms."""
    cut: bool = False
    """Nothing passes."""


@dataclass
class Counts:
    received: int = 0
    sent: int = 0
    lost: int = 0
    reordered: int = 0
    duplicated: int = 0
    corrupted: int = 0
    overflowed: int = 0


class Impairer:
    """The path. `faults` may be changed while it runs; `counts` says what it did."""

    def __init__(self, target: Address, faults: Faults, seed: int = 1) -> None:
        self.faults, self.counts = faults, Counts()
        self._target = target
        self._random = random.Random(seed)
        self._queue: list[tuple[float, int, trio.socket.SocketType, bytes, Address]] = []
        self._order = itertools.count()
        self._changed = trio.Event()
        self._free_at = 0.0
        self._near = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        self._far: dict[Address, trio.socket.SocketType] = {}

    @property
    def address(self) -> Address:
        host, port = self._near.getsockname()[:2]
        return host, port

    async def run(self, listen: Address, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carries datagrams until cancelled."""
        await self._near.bind(listen)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deliver)
                task_status.started()
                while True:
                    data, stranger = await self._near.recvfrom(65535)
                    far = self._far.get(stranger)
                    if far is None:
                        if len(self._far) >= STRANGERS_LIMIT:
                            continue
                        far = self._far[stranger] = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
                        await far.bind((listen[0], 0))
                        nursery.start_soon(self._answers, far, stranger)
                    self._enqueue(far, data, self._target)
        finally:
            self._near.close()
            for far in self._far.values():
                far.close()

    async def _answers(self, far: trio.socket.SocketType, stranger: Address) -> None:
        while True:
            try:
                data, _ = await far.recvfrom(65535)
            except ConnectionRefusedError:
                continue
            self._enqueue(self._near, data, stranger)

    def _enqueue(self, out: trio.socket.SocketType, data: bytes, to: Address) -> None:
        f, c, draw = self.faults, self.counts, self._random.random
        now = trio.current_time()
        c.received += 1
        if f.cut or draw() < f.loss:
            c.lost += 1
            return
        at = now + (f.delay_ms + f.jitter_ms * draw()) / 1000
        if f.rate_mbit:
            self._free_at = max(self._free_at, now)
            if self._free_at - now > 0.1:
                c.overflowed += 1
                return
            self._free_at += len(data) * 8 / (f.rate_mbit * 1e6)
            at += self._free_at - now
        if draw() < f.reorder:
            c.reordered += 1
            at += (f.delay_ms + 10) / 1000
        if data and draw() < f.corrupt:
            c.corrupted += 1
            where = self._random.randrange(len(data))
            data = data[:where] + bytes([data[where] ^ (1 << self._random.randrange(8))]) + data[where + 1 :]
        copies = 1
        if draw() < f.duplicate:
            c.duplicated += 1
            copies = 2
        for _ in range(copies):
            if len(self._queue) >= QUEUE_LIMIT:
                c.overflowed += 1
                return
            heapq.heappush(self._queue, (at, next(self._order), out, data, to))
        self._changed.set()

    async def _deliver(self) -> None:
        while True:
            self._changed = trio.Event()
            with trio.move_on_at(self._queue[0][0] if self._queue else float("inf")):
                await self._changed.wait()
            now = trio.current_time()
            while self._queue and self._queue[0][0] <= now:
                _, _, out, data, to = heapq.heappop(self._queue)
                with contextlib.suppress(OSError):
                    await out.sendto(data, to)
                    self.counts.sent += 1


@contextlib.asynccontextmanager
async def impaired(
    target: Address, faults: Faults, listen: Address = ("127.0.0.1", 0), seed: int = 1
) -> AsyncIterator[Impairer]:
    """An impaired path to `target` at `.address`, in this process."""
    path = Impairer(target, faults, seed)
    async with trio.open_nursery() as nursery:
        await nursery.start(path.run, listen)
        yield path
        nursery.cancel_scope.cancel()


def hidden_behind(path: Impairer) -> dict[str, str]:
    """The environment of a Go peer that names the path's address as its only one."""
    return {"TS_DEBUG_OMIT_LOCAL_ADDRS": "1", "TS_DEBUG_PRETENDPOINT": "{}:{}".format(*path.address)}


def _address(text: str) -> Address:
    host, port = text.rsplit(":", 1)
    return host, int(port)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.impair", description=__doc__.splitlines()[0])
    parser.add_argument("--listen", type=_address, required=True)
    parser.add_argument("--to", type=_address, required=True)
    parser.add_argument("--seed", type=int, default=1)
    for name, value in asdict(Faults()).items():
        if not isinstance(value, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    options = vars(parser.parse_args())
    faults = Faults(**{name: options[name] for name in asdict(Faults()) if name in options})
    path = Impairer(options["to"], faults, options["seed"])
    try:
        trio.run(path.run, options["listen"])
    except* KeyboardInterrupt:
        print(json.dumps(asdict(path.counts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
