"""One HTTP/2 connection on a stream: whoever has a stream of it reads and writes that one, and waits only for that one.

Owns the stream under it, the task that writes it, and what waits for being read. What arrives is held until it is
taken, which the windows bound; what is to leave is held until it is written, and who has more waits (`FULL`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import trio

from tailscale.carry import LOST
from tailscale.http1.asgi import ClientDisconnected
from tailscale.http2.machine import Body, Closing, Ended, Event, Gone, Head, Headers, Http2Machine, Interim, Trailers
from ts_base.errors import BadPacket

log = logging.getLogger("tailscale.http")
FULL = 256 << 10  # bytes that wait for the stream under us
READ_SIZE = 64 << 10

Arrived = Head | Interim | Body | Trailers | Ended


class Channel:
    """One stream of a connection. What breaks it is ClientDisconnected, on both ends."""

    def __init__(self, link: Link, number: int) -> None:
        self.number = number
        self.is_gone = False
        self.code = 0
        """Why the other side gave it up."""
        self._link = link
        self._waiting: deque[Arrived] = deque()
        self._arrived = trio.Event()
        self._room = trio.Event()

    def put(self, event: Arrived | Gone) -> None:
        if isinstance(event, Gone):
            self.is_gone, self.code = True, event.code
            self._waiting.clear()
        else:
            self._waiting.append(event)
        self.wake()

    def wake(self) -> None:
        """Something has changed, perhaps."""
        self._arrived.set()
        self._room.set()

    async def next_event(self, patience: float) -> Arrived:
        """What came next on it."""
        with trio.move_on_after(patience) as waiting:
            while not self._waiting:
                self._raise_if_gone()
                self._arrived = trio.Event()
                await self._arrived.wait()
        if waiting.cancelled_caught and not self._waiting:
            raise ClientDisconnected("nothing came for too long")
        event = self._waiting.popleft()
        if isinstance(event, Body):
            self._link.machine.took(self.number, event.window)
            self._link.flush()
        return event

    async def answer(self, headers: Headers, *, ends: bool = False) -> None:
        """A head, or with `ends` trailers."""
        await self._link.until_drained()
        self._raise_if_gone()
        self._link.machine.answer(self.number, headers, ends=ends)
        self._link.flush()

    async def send(self, data: bytes, patience: float, *, ends: bool = False) -> None:
        """A piece of a body, as the other side makes room for it."""
        machine, rest = self._link.machine, memoryview(data)
        while rest:
            await self._link.until_drained()
            self._raise_if_gone()
            room = min(machine.room(self.number), len(rest), FULL)
            if room > 0:
                machine.send(self.number, rest[:room], ends=ends and room == len(rest))
                rest = rest[room:]
                self._link.flush()
                continue
            self._room = trio.Event()
            with trio.move_on_after(patience) as waiting:
                await self._room.wait()
            if waiting.cancelled_caught:
                raise ClientDisconnected("no room was made for too long")
        if not data and ends:
            self._raise_if_gone()
            machine.send(self.number, rest, ends=True)
            self._link.flush()

    def reset(self) -> None:
        """Give it up."""
        self._link.give_up(self)

    def _raise_if_gone(self) -> None:
        if self.is_gone or self._link.is_over:
            raise ClientDisconnected("the other side gave this stream up")


class Link:
    """The connection. `run` in a task of its own, until it ends; nothing that the other side does is raised."""

    def __init__(self, stream: trio.abc.Stream, machine: Http2Machine, patience: float) -> None:
        self.machine = machine
        self.is_over = False
        self.channels: dict[int, Channel] = {}
        self._stream = stream
        self._patience = patience  # for the other side to read
        self._out = bytearray()
        self._to_write = trio.Event()
        self._drained = trio.Event()
        self._quiet_since = 0.0

    async def run(self, on_head: Callable[[Channel, Head], object] | None, silence: float) -> None:
        """`on_head` is called for streams that the other side opens. Ends after `silence` seconds without one."""
        self.flush()
        self._quiet_since = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, nursery.cancel_scope)
                await self._read(on_head, silence)
                self.end()
                with trio.move_on_after(self._patience):
                    await self._until_written()
                nursery.cancel_scope.cancel()
        finally:
            self.end()

    def end(self) -> None:
        """Nobody waits for anything of it any more."""
        self.is_over = True
        for channel in self.channels.values():
            channel.wake()
        self._drained.set()

    def close(self) -> None:
        """Say goodbye; `run` ends when that is written."""
        self.machine.close()
        self.flush()

    def open(self, headers: Headers, *, ends: bool) -> Channel:
        """A stream of ours. BadPacket where there can be none."""
        if self.is_over:
            raise BadPacket("HTTP/2: the connection is over")
        channel = Channel(self, self.machine.ask(headers, ends=ends))
        self.channels[channel.number] = channel
        self.flush()
        return channel

    def leave(self, channel: Channel) -> None:
        """Its exchange is over: what is left of the stream is given up."""
        if self.channels.pop(channel.number, None) is not None and not self.is_over:
            self._quiet_since = trio.current_time()
            self.machine.reset(channel.number)
            self.flush()

    def give_up(self, channel: Channel) -> None:
        channel.is_gone = True
        self.leave(channel)

    def flush(self) -> None:
        """What the machine has said is written as soon as may be."""
        self._out += self.machine.transmit()
        if self._out:
            self._to_write.set()

    async def until_drained(self) -> None:
        """Until there is room for more; always a checkpoint."""
        await trio.lowlevel.checkpoint()
        while len(self._out) >= FULL and not self.is_over:
            self._drained = trio.Event()
            await self._drained.wait()

    async def _until_written(self) -> None:
        while self._out:
            self._drained = trio.Event()
            await self._drained.wait()

    async def _write(self, connection: trio.CancelScope) -> None:
        while True:
            while not self._out:
                self._to_write = trio.Event()
                await self._to_write.wait()
            piece = bytes(self._out)
            try:
                with trio.fail_after(self._patience):
                    await self._stream.send_all(piece)
            except (*LOST, trio.TooSlowError):
                connection.cancel()
                return
            del self._out[: len(piece)]
            self._drained.set()

    async def _read(self, on_head: Callable[[Channel, Head], object] | None, silence: float) -> None:
        while True:
            await self.until_drained()
            since = trio.current_time() if self.channels else self._quiet_since
            try:
                with trio.move_on_at(since + silence) as waiting:
                    data = bytes(await self._stream.receive_some(READ_SIZE))
            except LOST:
                return
            if waiting.cancelled_caught:
                if not self.channels and trio.current_time() >= self._quiet_since + silence:
                    self.close()
                    return
                continue
            if not data or not self._take(data, on_head):
                return

    def _take(self, data: bytes, on_head: Callable[[Channel, Head], object] | None) -> bool:
        """Whether there may be more."""
        try:
            events = self.machine.receive_untrusted(data)
        except BadPacket as problem:
            log.debug("%s", problem)
            self.flush()
            return False
        for event in events:
            if isinstance(event, Closing):
                return False
            self._hear(event, on_head)
        self.flush()
        return True

    def _hear(self, event: Event, on_head: Callable[[Channel, Head], object] | None) -> None:
        if isinstance(event, Head | Interim | Body | Trailers | Ended | Gone):
            channel = self.channels.get(event.stream)
            if channel is not None:
                channel.put(event)
            elif isinstance(event, Head) and on_head is not None:
                channel = self.channels[event.stream] = Channel(self, event.stream)
                on_head(channel, event)
            elif isinstance(event, Body):
                self.machine.took(event.stream, event.window)
        else:
            for channel in self.channels.values():
                channel.wake()
