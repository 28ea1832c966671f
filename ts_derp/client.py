"""DerpClient: one live connection to one region, a stream and a DerpMachine with two loops between them.

Owns carrying bytes: large reads, one write per burst, one task switch for many packets. Refuses to know which region is
wanted and when to come back. How a node is dialled and believed is in dial.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import h11
import trio

from ts_derp.dial import DIAL_TIMEOUT, ByteStream, Dialer, open_node, proxy_for, upgrade
from ts_derp.errors import RelayLost, RelayUnreachable
from ts_derp.frames import Run
from ts_derp.machine import DerpMachine, DerpMessage
from ts_derp.regions import RelayNode, RelayRegion
from ts_derp.trust import Trust

CONNECT_TIMEOUT = 10.0  # all nodes of a region together
SETUP_TIMEOUT = 5.0  # one node's TLS and HTTP: a node that accepts and says nothing must leave time for the next
BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class DerpClient:
    """One live connection to one region: a stream, a machine, and the two loops between them."""

    def __init__(self, stream: ByteStream, machine: DerpMachine, early: bytes = b"") -> None:
        self._stream = stream
        self._early = early
        self._machine = machine
        self._writable = trio.Event()
        self._earlier_timer = trio.Event()

    @classmethod
    async def dial(
        cls, dialer: Dialer, region: RelayRegion, machine: DerpMachine, trust: Trust, *, over_http: bool = False
    ) -> DerpClient:
        """Try the region's nodes in order. Raises RelayUnreachable."""
        problem: BaseException | None = None
        with trio.move_on_after(CONNECT_TIMEOUT):
            for node in region.relays:
                try:
                    with trio.fail_after(DIAL_TIMEOUT + SETUP_TIMEOUT):
                        stream, early = await cls._dial_node(dialer, region, node, trust, over_http)
                except (*BROKEN, trio.TooSlowError, h11.ProtocolError) as error:
                    problem = error
                else:
                    machine.start(trio.current_time())
                    return cls(stream, machine, early)
        where = region.code or str(region.id)
        raise RelayUnreachable(f"relay region {where} cannot be reached: {problem or 'it has no relay'}") from problem

    @staticmethod
    async def _dial_node(
        dialer: Dialer, region: RelayRegion, node: RelayNode, trust: Trust, over_http: bool
    ) -> tuple[ByteStream, bytes]:
        proxy = None if over_http else proxy_for(node.host_name)
        stream = await open_node(dialer, node, trust, over_http=over_http, proxy=proxy)
        ideal = region.nodes[0].name
        try:
            return stream, await upgrade(stream, node, ideal if ideal != node.name else "")
        except BaseException:
            await stream.aclose()
            raise

    def send(self, runs: list[Run], now: float) -> None:
        """Queue packets and wake the writer, once per burst."""
        self._machine.send(runs, now)
        self._writable.set()

    def wake(self) -> None:
        """The machine was told something directly: look at what it has to send and at its timers."""
        self._writable.set()
        self._earlier_timer.set()

    async def run(self, deliver: Callable[[list[Run]], None], hear: Callable[[DerpMessage], None]) -> NoReturn:
        """Carry bytes until the connection ends; always raises RelayLost, or Cancelled, and leaves it closed."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, deliver, hear, nursery.cancel_scope)
                nursery.start_soon(self._write, nursery.cancel_scope)
                nursery.start_soon(self._watch, nursery.cancel_scope)
        finally:
            await self._stream.aclose()
        raise RelayLost(self._machine.failure or "the relay hung up")

    @trio.lowlevel.enable_ki_protection
    async def _read(
        self, deliver: Callable[[list[Run]], None], hear: Callable[[DerpMessage], None], over: trio.CancelScope
    ) -> None:
        machine, data = self._machine, self._early
        try:
            while True:
                now = trio.current_time()
                inbound = machine.receive(data, now)
                for message in machine.take_messages():
                    hear(message)
                if inbound:
                    deliver(inbound)
                if machine.has_answers:
                    self.wake()
                if machine.failure is not None:
                    break
                data = await self._stream.receive_some()
                if not data:
                    break
        except BROKEN as error:
            machine.fail(f"the relay's connection broke: {error!r}")
        over.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _write(self, over: trio.CancelScope) -> None:
        machine = self._machine
        try:
            while True:
                data = machine.transmit(trio.current_time())
                if data:
                    await self._stream.send_all(data)
                else:
                    self._writable = trio.Event()
                    await self._writable.wait()
        except BROKEN as error:
            machine.fail(f"the relay's connection broke: {error!r}")
            over.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _watch(self, over: trio.CancelScope) -> None:
        machine = self._machine
        while machine.failure is None:
            self._earlier_timer = trio.Event()
            with trio.move_on_at(machine.next_timer()):
                await self._earlier_timer.wait()
            machine.handle_timer(trio.current_time())
        over.cancel()
