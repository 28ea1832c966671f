"""Pings of three kinds, each asked again until answered: by the path finder, inside the tunnel, by the peer's stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tailscale.runtime.awaited_answers import AwaitedAnswers
    from tailscale.runtime.dataplane import Dataplane
    from tailscale.runtime.reach import Reach
    from tailscale.status import PathInfo
    from ts_base.who import PeerId
    from ts_netstack.stack import Stack

RETRY = 1.0  # a lost probe is asked again this soon, as long as the caller waits
TOKEN_LENGTH = 8


class _Echo:
    """What the stack wakes when an ICMP echo came back."""

    def __init__(self) -> None:
        self.answered = trio.Event()

    def wake(self) -> None:
        self.answered.set()

    def shut(self) -> None:
        """The caller sets the deadline, also where the stack ends before it."""


class Pinger:
    """One per device. Every ping waits for ever: the caller sets the deadline."""

    def __init__(
        self,
        dataplane: Dataplane,
        stack: Stack,
        answers: AwaitedAnswers,
        reach: Reach,
        entropy: Callable[[int], bytes],
    ) -> None:
        self._dataplane = dataplane
        self._stack = stack
        self._answers = answers
        self._reach = reach
        self._entropy = entropy

    async def ping(self, address: bytes, kind: str, size: int) -> tuple[float, PathInfo]:
        """Seconds, and the way they were spent on."""
        peer = self._reach.peer_for(address)
        if kind == "icmp" or peer is None:
            return await self._ping_stack(address, size)
        ask = self._ask_by_disco if kind == "disco" else self._ask_by_tsmp
        while True:
            with self._answers.pong(ask(peer, size)) as pong:
                self._dataplane.kick()
                with trio.move_on_after(RETRY):
                    await pong.wait()
            if pong.latency is not None:
                path = self._reach.describe(pong.path) if pong.path else self._reach.path_of(peer)
                return pong.latency, path
            await trio.sleep_until(pong.asked_at + RETRY)  # lost at once where no probe can be sent

    def _ask_by_disco(self, peer: PeerId, size: int) -> tuple[str, int]:
        return "disco", self._dataplane.finder.ping(peer, trio.current_time(), size)

    def _ask_by_tsmp(self, peer: PeerId, size: int) -> tuple[str, bytes]:
        secret = self._entropy(TOKEN_LENGTH)
        self._dataplane.engine.ping(peer, secret)
        return "tsmp", secret

    async def _ping_stack(self, address: bytes, size: int) -> tuple[float, PathInfo]:
        while True:
            echo = _Echo()
            ping = self._stack.ping(address, trio.current_time(), size)
            ping.owner = echo
            try:
                self._dataplane.kick()
                with trio.move_on_after(RETRY):
                    await echo.answered.wait()
            finally:
                ping.owner = None
            if ping.round_trip is not None:
                return ping.round_trip, self._reach.path_to(address)
