"""The streams of one server machine: a reading and a writing task for every client, and the machine's clock.

Owns who is connected and what wakes whom. Refuses to know what is said: the machine is handed bytes and gives bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

import trio

from tailscale.testing.http_front import READ_SIZE


class Machine(Protocol):
    def take_ready(self) -> Iterable[Hashable]:
        """The keys of those clients that have something to hear."""

    def next_timer(self) -> float: ...
    def handle_timer(self, now: float) -> None: ...


class Client(Protocol):
    """The machine's end of one stream."""

    @property
    def closed(self) -> bool:
        """The machine has no more to say to it than what `transmit` still gives."""

    def receive(self, data: bytes, now: float) -> None: ...
    def transmit(self, now: float) -> bytes: ...
    def close(self, now: float) -> None: ...


class ServedStreams:
    """`poke()` after anything was said to the machine that did not come through a stream."""

    def __init__(
        self, machine: Machine, *, on_poke: Callable[[], None] = lambda: None, write_timeout: float = math.inf
    ) -> None:
        self._machine = machine
        self._on_poke = on_poke
        self._write_timeout = write_timeout
        self._wake: dict[Hashable, trio.Event] = {}
        self._scopes: dict[Hashable, trio.CancelScope] = {}
        self._moved = trio.Event()

    def __len__(self) -> int:
        return len(self._wake)

    def poke(self) -> None:
        """Let every client with something to hear hear it, and look at the clock again."""
        for key in self._machine.take_ready():
            self.wake(key)
        self._on_poke()
        self._moved.set()

    def wake(self, key: Hashable) -> None:
        if key in self._wake:
            self._wake[key].set()

    def end(self, key: Hashable) -> None:
        """Close one client's stream in the middle of whatever it does."""
        if key in self._scopes:
            self._scopes[key].cancel()

    async def run_timers(self) -> None:
        """Call the machine's timers when they are due. Runs until cancelled."""
        machine = self._machine
        while True:
            self._moved = trio.Event()
            with trio.move_on_at(machine.next_timer()):
                await self._moved.wait()
            if machine.next_timer() <= trio.current_time():
                machine.handle_timer(trio.current_time())
                self.poke()
                await trio.lowlevel.checkpoint()

    async def serve(
        self,
        stream: trio.abc.Stream,
        key: Hashable,
        client: Client,
        first: bytes,
        *,
        pause_until: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        """One client, from its first bytes to its last; it is not read from before `pause_until()`."""
        self._wake[key] = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                self._scopes[key] = nursery.cancel_scope
                nursery.start_soon(self._write, stream, key, client)
                self.poke()
                await self._read(stream, key, client, first, pause_until)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client is gone; `finally` says so to the machine
        finally:
            del self._wake[key], self._scopes[key]
            client.close(trio.current_time())
            self.poke()

    async def _read(
        self, stream: trio.abc.Stream, key: Hashable, client: Client, data: bytes, pause_until: Callable[[], float]
    ) -> None:
        while not client.closed:
            if data:
                client.receive(data, trio.current_time())
                self.wake(key)
                self.poke()
            await trio.sleep_until(pause_until())
            data = bytes(await stream.receive_some(READ_SIZE))
            if not data:
                return

    async def _write(self, stream: trio.abc.Stream, key: Hashable, client: Client) -> None:
        while True:
            data = client.transmit(trio.current_time())
            if data:
                with trio.move_on_after(self._write_timeout) as writing:
                    await stream.send_all(data)
                if writing.cancelled_caught:
                    raise trio.BrokenResourceError("this client does not read")
                continue
            if client.closed:
                await stream.aclose()  # wakes the reader
                return
            await self._wake[key].wait()
            self._wake[key] = trio.Event()
