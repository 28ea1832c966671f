"""A network whose every TCP port leads to one of our own relays in memory, and can be cut."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import trio
from trio.testing import memory_stream_pair

from ts_base.keys import NodePrivate
from ts_derp.greeting import RateLimit
from ts_derp.server import DerpServer

REQUEST_END = b"\r\n\r\n"


class MemoryRelay:
    """A DerpServer behind HTTP on memory streams."""

    def __init__(self, nursery: trio.Nursery, *, rate_limit: RateLimit | None = None) -> None:
        self.server = DerpServer(NodePrivate.generate(os.urandom(32)), entropy=os.urandom, rate_limit=rate_limit)
        self.nursery = nursery
        self.streams: list[trio.StapledStream] = []
        self.dials = 0
        self.requests: list[bytes] = []
        self.status = b"101 Switching Protocols"
        self.stalled = False
        self._writers: dict[int, trio.Event] = {}
        nursery.start_soon(self._tick)

    def dial(self) -> trio.StapledStream:
        self.dials += 1
        ours, theirs = memory_stream_pair()
        self.streams.append(theirs)
        self.nursery.start_soon(self._serve, theirs)
        return ours

    def cut(self) -> None:
        for stream in self.streams:
            stream.send_stream.close()  # type: ignore[attr-defined]
            stream.receive_stream.close()  # type: ignore[attr-defined]
        self.streams.clear()

    async def _tick(self) -> None:
        while True:
            await trio.sleep(1.0)
            self.server.handle_timer(trio.current_time())
            self._wake()

    async def _serve(self, stream: trio.StapledStream) -> None:
        try:
            request = b""
            while REQUEST_END not in request:
                if not (more := await stream.receive_some(4096)):
                    return
                request += more
            self.requests.append(request)
            if self.stalled:
                await trio.sleep_forever()
            upgrade = [("Upgrade", "DERP"), ("Connection", "Upgrade"), *self.server.upgrade_headers]
            headers = "".join(f"{name}: {value}\r\n" for name, value in upgrade).encode()
            head = b"HTTP/1.1 " + self.status + b"\r\n" + headers + b"\r\n"
            if not self.status.startswith(b"101"):
                await stream.send_all(head)
                return
            number = self.server.connect(trio.current_time())
            assert number is not None
            # The greeting comes in one piece with the answer, as a busy relay may send it.
            await stream.send_all(head + self.server.transmit(number, trio.current_time()))
            self._writers[number] = trio.Event()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, number, stream)
                    while data := await stream.receive_some(65536):
                        self.server.receive(number, data, trio.current_time())
                        self._wake()
                    nursery.cancel_scope.cancel()
            finally:
                self.server.disconnect(number, trio.current_time())
                self._wake()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _write(self, number: int, stream: trio.StapledStream) -> None:
        while True:
            if data := self.server.transmit(number, trio.current_time()):
                await stream.send_all(data)
            else:
                self._writers[number] = trio.Event()
                await self._writers[number].wait()

    def _wake(self) -> None:
        for number in self.server.take_ready():
            if number in self._writers:
                self._writers[number].set()


class MemoryNetwork:
    """`hosts` says what a name leads to; what it does not name refuses."""

    def __init__(self) -> None:
        self.hosts: dict[str, Callable[[], Awaitable[trio.StapledStream]]] = {}
        self.dialled: list[tuple[float, str, int]] = []

    def add(self, host: str, relay: MemoryRelay) -> None:
        async def dial() -> trio.StapledStream:
            await trio.lowlevel.checkpoint()
            return relay.dial()

        self.hosts[host] = dial

    def refuse(self, host: str) -> None:
        self.hosts.pop(host, None)

    def black_hole(self, host: str) -> None:
        async def dial() -> trio.StapledStream:
            await trio.sleep_forever()
            raise AssertionError

        self.hosts[host] = dial

    async def open_tcp(self, host: str, port: int) -> trio.StapledStream:
        self.dialled.append((trio.current_time(), host, port))
        if host not in self.hosts:
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError(f"{host}:{port} refuses")
        return await self.hosts[host]()

    def wall_clock(self) -> float:
        return 1_900_000_000.0

    def entropy(self, length: int) -> bytes:
        return os.urandom(length)
