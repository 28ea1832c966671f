"""asyncio's servers on ports of the tailnet: what arrives becomes a transport, without a socket in between.

Owns asyncio's contract of a server. How connections get from the device's loop to the program's is `accepting.py`'s.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from typing import TYPE_CHECKING, Any

from tailscale.threads.accepting import Accepting
from tailscale.threads.transports import Factory, Ssl, TailnetEnd, TailnetTransport, tls_below

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tailscale.threads.crossing import Crossing


class TailnetServer(asyncio.Server):
    """An `asyncio.Server` of the tailnet: its verbs, none of its sockets. `sockets[0].getsockname()` is where it is."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, accepting: Accepting, end: TailnetEnd, factory: Factory, ssl: Ssl
    ) -> None:
        self._loop = loop
        self._accepting = accepting
        self._end = end
        self._factory = factory
        self._ssl = ssl
        self._is_serving = False
        self._is_closed = False
        self._open: weakref.WeakSet[TailnetTransport] = weakref.WeakSet()
        self._open_count = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._forever: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """Accept from now on."""
        if not self._is_serving and not self._is_closed:
            self._is_serving = True
            self._accepting.begin(lambda crossing: self._loop.call_soon_threadsafe(self._welcome, crossing))

    def _welcome(self, crossing: Crossing) -> None:
        self._accepting.take()
        if self._is_closed:
            crossing.abort()
            return
        protocol = self._factory()
        if self._ssl:
            protocol = tls_below(self._loop, protocol, self._ssl, server_side=True)
        transport = TailnetTransport(self._loop, crossing, protocol, self._lost)
        self._open.add(transport)
        self._open_count += 1
        try:
            transport.begin()
        except BaseException:
            transport.abort()
            raise

    def _lost(self, transport: TailnetTransport) -> None:
        self._open.discard(transport)
        self._open_count -= 1
        self._tell_if_over()

    def _tell_if_over(self) -> None:
        if self._is_closed and not self._open_count:
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return self._is_serving

    @property
    def sockets(self) -> tuple[Any, ...]:
        """Where it listens, as something that has a `getsockname()`."""
        return () if self._is_closed else (self._end,)

    async def start_serving(self) -> None:
        """It does already."""
        if self._is_closed:
            raise RuntimeError(f"server {self!r} is closed")
        await asyncio.sleep(0)

    async def serve_forever(self) -> None:
        """Until it is cancelled, which closes it, or closed."""
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if self._is_closed:
            raise RuntimeError(f"server {self!r} is closed")
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Refuse new connections; accepted ones go on."""
        if self._is_closed:
            return
        self._is_closed, self._is_serving = True, False
        self._accepting.end()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._tell_if_over()

    async def wait_closed(self) -> None:
        """Until it is closed and, as asyncio has it since Python 3.12, its connections are."""
        if sys.version_info < (3, 12) and self._is_closed:
            await asyncio.sleep(0)
        elif not self._is_closed or self._open_count:
            waiting = self._loop.create_future()
            self._waiting.append(waiting)
            await waiting

    def close_clients(self) -> None:
        """Close the connections that are open."""
        for transport in self._opened():
            transport.close()

    def abort_clients(self) -> None:
        """Reset the connections that are open."""
        for transport in self._opened():
            transport.abort()

    def _opened(self) -> Iterable[TailnetTransport]:
        return tuple(self._open)

    def __repr__(self) -> str:
        return f"<TailnetServer {self._end.getsockname()}{' closed' if self._is_closed else ''}>"
