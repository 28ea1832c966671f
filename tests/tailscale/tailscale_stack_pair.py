"""Two userspace stacks joined in memory, with the trio streams on top: no tunnel, no device, no sockets."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from tailscale.sockets.tcp import TcpListener, TcpStream
from tailscale.sockets.udp import UdpSocket
from ts_base.ip import parse_address
from ts_netstack.arrivals import USUAL
from ts_netstack.stack import Stack


class StackHome:
    """The home of the sockets of one stack."""

    def __init__(self, address: str, seed: int) -> None:
        self.address = parse_address(address)
        chance = random.Random(seed)
        self.stack = Stack(entropy=chance.randbytes)
        self.stack.set_addresses([self.address])
        self.other: StackHome | None = None
        self._kicked = trio.Event()

    def kick(self) -> None:
        self._kicked.set()

    def now(self) -> float:
        return trio.current_time()

    def identify(self, address: bytes) -> None:
        return None

    def describe_path(self, address: bytes, via: int = 0) -> str:
        return "memory"

    def exit_node(self, via: int) -> None:
        return None

    async def resolve_address(self, host: str, family_of: bytes | None = None, via: int = 0) -> bytes:
        return parse_address(host)

    def close(self) -> None:
        """As a device does that ends."""
        for socket in self.stack.sockets():
            if socket.owner is not None:
                socket.owner.shut()

    async def run(self) -> None:
        """Carry packets to the other side and wake the sockets, as the packet loop does."""
        while True:
            with trio.move_on_at(self.stack.next_timer()):
                await self._kicked.wait()
            self._kicked = trio.Event()
            self.stack.handle_timer(self.now())
            self.flush()

    def flush(self) -> None:
        assert self.other is not None
        for _, packets in self.stack.transmit(self.now()):
            self.other.stack.receive([(USUAL, packets)], self.now())
            self.other.kick()
        for socket in self.stack.take_messages():
            if socket.owner is not None:
                socket.owner.wake()

    def listen(self, port: int) -> TcpListener:
        return TcpListener([self.stack.listen(port)], self)

    def udp(self, port: int = 0) -> UdpSocket:
        return UdpSocket(self.stack.bind_udp(port), self)

    async def connect(self, port: int) -> TcpStream:
        assert self.other is not None
        connection = self.stack.connect((self.other.address, port), self.now())
        stream = TcpStream(connection, self)
        self.kick()
        await stream.wait_connected()
        return stream


@asynccontextmanager
async def stack_pair() -> AsyncIterator[tuple[StackHome, StackHome]]:
    a, b = StackHome("100.64.0.1", 1), StackHome("100.64.0.2", 2)
    a.other, b.other = b, a
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        nursery.start_soon(b.run)
        try:
            yield a, b
        finally:
            a.close()
            b.close()
        nursery.cancel_scope.cancel()


def stream_maker(a: StackHome, b: StackHome, port: int = 80) -> Callable[[], object]:
    """What trio's conformance suite asks for: a fresh connected pair each time."""

    async def make() -> tuple[TcpStream, TcpStream]:
        listener = b.listen(port)
        left = await a.connect(port)
        right = await listener.accept()
        await listener.aclose()
        return left, right

    return make
