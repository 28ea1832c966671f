"""What somebody waits for from the packet path: the answers to pings, and a peer's word against a dial.

Owns the table of who waits for what. Refuses to know who asked, and what the answer means to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from ts_dataplane.path_messages import PingAnswered, PingLost
from ts_dataplane.tsmp import REASONS, TsmpPong, TsmpReject

if TYPE_CHECKING:
    from tailscale.runtime.dataplane import Dataplane
    from tailscale.runtime.home import Home
    from ts_netstack.icmp import Ping
    from ts_netstack.tcp import TcpConnection

PING_RETRY = 1.0  # a lost probe is asked again this soon, as long as the caller waits


class _Waiter:
    """One ping in flight."""

    def __init__(self, asked_at: float) -> None:
        self.asked_at = asked_at
        self.answered = trio.Event()
        self.latency: float | None = None
        self.path: tuple[Any, ...] | None = None

    def wake(self) -> None:
        self.answered.set()


class Replies:
    """One per device."""

    def __init__(self, home: Home, dataplane: Dataplane) -> None:
        self._home = home
        self._dataplane = dataplane
        self._pings: dict[object, _Waiter] = {}
        self._dials: dict[tuple[object, object], tuple[TcpConnection, list[str]]] = {}

    @contextmanager
    def rejections(self, connection: TcpConnection) -> Iterator[list[str]]:
        """While a dial is open, a peer's refusal lands here in words, and ends it."""
        words: list[str] = []
        key = (connection.local, connection.remote)
        self._dials[key] = connection, words
        try:
            yield words
        finally:
            self._dials.pop(key, None)

    async def ping(self, address: bytes, kind: str, size: int) -> tuple[float, str]:
        """Ask until answered; the caller sets the deadline."""
        peer = self._dataplane.engine.tables.peer_for(address)
        if kind == "icmp" or peer is None:
            return await self._ping_icmp(address, size)
        while True:
            waiter = _Waiter(self._home.now())
            token: object
            if kind == "disco":
                token = ("disco", self._dataplane.finder.ping(peer, waiter.asked_at, size))
            else:
                secret = self._home.network.entropy(8)
                token = ("tsmp", secret)
                self._dataplane.engine.ping(peer, secret)
            self._pings[token] = waiter
            try:
                self._home.kick()
                with trio.move_on_after(PING_RETRY):
                    await waiter.answered.wait()
            finally:
                del self._pings[token]
            if waiter.latency is not None:
                path = self._home.path_text(waiter.path) if waiter.path else self._home.describe_peer_path(peer)
                return waiter.latency, path
            await trio.sleep_until(waiter.asked_at + PING_RETRY)  # lost at once where no probe can be sent

    async def _ping_icmp(self, address: bytes, size: int) -> tuple[float, str]:
        while True:
            waiter = _Waiter(self._home.now())
            ping: Ping = self._home.stack.ping(address, self._home.now(), size)
            ping.owner = waiter
            try:
                self._home.kick()
                with trio.move_on_after(PING_RETRY):
                    await waiter.answered.wait()
            finally:
                ping.owner = None
            if ping.round_trip is not None:
                return ping.round_trip, self._home.describe_path(address)

    def hear(self, message: Any) -> None:
        """A rare fact from the packet path."""
        if isinstance(message, PingAnswered):
            self._answer(("disco", message.token), message.latency, message.path)
        elif isinstance(message, PingLost):
            self._answer(("disco", message.token), None, None)
        elif isinstance(message, TsmpPong):
            waiter = self._pings.get(("tsmp", message.token))
            if waiter is not None:
                self._answer(("tsmp", message.token), self._home.now() - waiter.asked_at, None)
        elif isinstance(message, TsmpReject):
            self._hear_rejection(message)

    def _hear_rejection(self, message: TsmpReject) -> None:
        dial = self._dials.get((message.local, message.remote))
        if dial is None or message.maybe_broken:
            return
        connection, words = dial
        words.append(f"its tailnet policy does not let us in ({REASONS.get(message.reason, message.reason)})")
        connection.abort(self._home.now())
        connection.owner.wake()

    def _answer(self, token: object, latency: float | None, path: tuple[Any, ...] | None) -> None:
        waiter = self._pings.get(token)
        if waiter is not None:
            waiter.latency, waiter.path = latency, path
            waiter.answered.set()
