"""Connections in the making, and the clients who wait for them: who goes meanwhile ends the dial.

Most dials are over before anybody would look. So one task for all of them looks from time to time, and a client is
listened to only once its dial takes long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from tailscale.carry import LOST, Stream, reset
from tailscale.proxy.outcomes import ClientGone

LOOK = 0.05  # seconds
EARLY_BYTES = 64 << 10  # that a client may send ahead of our reply


class _Dial:
    """One, and what is heard of its client."""

    __slots__ = ("early", "ended", "is_gone", "listening", "making", "near")

    def __init__(self, near: Stream, early: bytearray) -> None:
        self.near = near
        self.early = early
        self.making = trio.CancelScope()
        self.listening: trio.CancelScope | None = None
        self.ended = trio.Event()  # the listening
        self.is_gone = False

    async def listen(self, scope: trio.CancelScope) -> None:
        """What the client sends ahead is kept. One that has sent something, and then only finished, is still there."""
        try:
            with scope:
                while len(self.early) < EARLY_BYTES:
                    data = await self.near.receive_some(EARLY_BYTES)
                    if not data:
                        self.is_gone = not self.early
                        break
                    self.early.extend(data)
        except LOST:
            self.is_gone = True
        finally:
            self.ended.set()
        if self.is_gone:
            self.making.cancel()


class Dials:
    """All that one proxy makes."""

    def __init__(self) -> None:
        self._unheard: set[_Dial] = set()
        self._news = trio.Event()

    async def run(self, nursery: trio.Nursery) -> None:
        """Begin to listen to those whose dials take long. Runs until cancelled."""
        while True:
            await self._news.wait()
            waiting = tuple(self._unheard)
            self._news = trio.Event()
            await trio.sleep(LOOK)
            for dial in waiting:
                if dial in self._unheard:
                    self._unheard.discard(dial)
                    dial.listening = trio.CancelScope()
                    nursery.start_soon(dial.listen, dial.listening)
            if self._unheard:
                self._news.set()

    async def make(self, near: Stream, early: bytearray, opening: Callable[[], Awaitable[Stream]]) -> Stream:
        """What `opening` opens, unless the client goes meanwhile. What it sends ahead is added to `early`."""
        dial = _Dial(near, early)
        self._unheard.add(dial)
        self._news.set()
        made: Stream | None = None
        try:
            with dial.making:
                made = await opening()
        finally:
            self._unheard.discard(dial)
            if dial.listening is not None:
                dial.listening.cancel()
                with trio.CancelScope(shield=True):
                    await dial.ended.wait()
        if made is None or dial.is_gone:
            if made is not None:
                await reset(made)
            raise ClientGone
        return made
