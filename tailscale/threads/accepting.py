"""Connections that arrive at a port of the tailnet, on their way to the program's thread.

Owns the listening and the bound on those that nobody has taken yet. Refuses to know how the program waits for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from tailscale.errors import DeviceClosed, TailscaleError
from tailscale.threads.crossing import Crossing

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import Address
    from tailscale.sockets.tcp import TcpListener
    from tailscale.threads.loop_thread import LoopThread


class Accepting:
    """Takes a listener's connections, inside, and hands them outside; never more than `backlog` that wait there."""

    def __init__(self, thread: LoopThread, listener: TcpListener, backlog: int) -> None:
        self._thread, self._listener, self._backlog = thread, listener, max(1, backlog)
        self._scope = trio.CancelScope()
        self._handed = self.taken = 0
        self._is_waited_for = False
        self._room = trio.Event()
        self._hand: Callable[[Crossing], object] = _refuse
        self._on_end: Callable[[], object] = _nothing
        self._is_given_away = False

    # Outside

    def begin(self, hand: Callable[[Crossing], object], on_end: Callable[[], object] | None = None) -> None:
        """From now on `hand` is called, inside, with every connection, and `on_end` when there will be no more."""
        self._hand = hand
        if on_end is not None:
            self._on_end = on_end
        self._thread.call_soon(self._thread.spawn, self._accept)

    def take(self) -> None:
        """One that was handed out waits no more."""
        self.taken += 1
        if self._is_waited_for:
            with contextlib.suppress(TailscaleError):
                self._thread.call_soon(self._make_room)

    def end(self) -> None:
        """Refuse new connections."""
        with contextlib.suppress(TailscaleError):  # the loop has ended: so has this
            self._thread.call_soon(self._stop)

    # Inside

    def _stop(self) -> None:
        self._scope.cancel()
        self._listener.shut()  # where nobody has begun

    def _make_room(self) -> None:
        self._room.set()

    def give_away(self) -> TcpListener:
        """The listener, for whoever accepts from now on. Inside."""
        self._is_given_away = True
        self._scope.cancel()
        return self._listener

    async def _accept(self) -> None:
        try:
            with self._scope, contextlib.suppress(trio.ClosedResourceError):  # the device is closing
                while True:
                    stream = await self._listener.accept()
                    crossing = Crossing.take(stream, self._thread)
                    crossing.stand_for(self._thread.device)
                    self._handed += 1
                    try:
                        self._hand(crossing)
                    except RuntimeError:  # the program's loop has been closed
                        crossing.shut()
                        return
                    await self._wait_for_room()
        finally:
            if not self._is_given_away:
                self._listener.shut()
                self._on_end()

    async def _wait_for_room(self) -> None:
        while self._handed - self.taken >= self._backlog:
            self._room = trio.Event()
            self._is_waited_for = True
            if self._handed - self.taken >= self._backlog:
                await self._room.wait()
            self._is_waited_for = False


def _refuse(crossing: Crossing) -> None:
    crossing.shut()


def _nothing() -> None:
    """Nobody wants to know."""


async def accepting(
    thread: LoopThread, port: int, host: str | None, backlog: int, announce: str
) -> tuple[Accepting, Address]:
    """Listen, and say where. Inside."""
    listener = await thread.device.listen(port, host=host, backlog=backlog, announce=announce)
    device = thread.device
    return Accepting(thread, listener, backlog), (host or device.ipv4 or device.ipv6 or "", listener.port)


def discard(made: tuple[Accepting, Address]) -> None:
    """Nobody wants it any more."""
    with contextlib.suppress(DeviceClosed):
        made[0].end()
