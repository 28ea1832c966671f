"""Listeners for TLS in the two other faces: asyncio's streams, and blocking sockets.

Owns how a handshake is waited for: never by `accept`, so that a slow client holds up nobody. Refuses to know which
certificate is shown.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from tailscale._faces import ClosedByLeaving

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import Address
    from tailscale.threads.loopback import TailnetListener

MOST_WAITING = 128  # streams that were greeted and not taken yet; more are hung up on
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class TlsSockets(ClosedByLeaving):
    """`accept()` returns `(ssl.SSLSocket, (address, port))`; the handshake is made by the first reading or writing."""

    def __init__(self, listener: TailnetListener, context: ssl.SSLContext) -> None:
        self._listener = listener
        self.context = context
        self.port = listener.port

    def accept(self) -> tuple[ssl.SSLSocket, Address]:
        """The next connection."""
        sock, address = self._listener.accept()
        return self._wrapped(sock), address

    def __iter__(self) -> Iterator[tuple[ssl.SSLSocket, Address]]:
        """Connections, until the listener or the device is closed."""
        for sock, address in self._listener:
            yield self._wrapped(sock), address

    def _wrapped(self, sock: object) -> ssl.SSLSocket:
        return self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)  # type: ignore[arg-type]

    def close(self) -> None:
        """Refuse new connections; accepted ones go on."""
        self._listener.close()


class TlsStreams(ClosedByLeaving):
    """`await accept()` returns `(reader, writer)` of a client whose handshake is done; `async for` gives them all."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.port = 0
        self._arrived: asyncio.Queue[Streams | None] = asyncio.Queue(MOST_WAITING)
        self._server: asyncio.Server | None = None

    def serve(self, server: asyncio.Server) -> None:
        """Be closed with it: the one that greets with `greet`."""
        self._server = server
        self.port = server.sockets[0].getsockname()[1]

    def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A client whose handshake is done."""
        try:
            self._arrived.put_nowait((reader, writer))
        except asyncio.QueueFull:
            writer.transport.abort()

    async def accept(self) -> Streams:
        """The next connection. OSError once this is closed."""
        taken = await self._arrived.get()
        if taken is None:
            self._arrived.put_nowait(None)
            raise OSError("nothing arrives here any more: the listener was closed")
        return taken

    async def __aiter__(self) -> AsyncIterator[Streams]:
        while self._server is not None and self._server.is_serving():
            try:
                yield await self.accept()
            except OSError:
                return

    def close(self) -> None:
        """Refuse new connections; accepted ones go on."""
        if self._server is not None and self._server.is_serving():
            self._server.close()
            while self._arrived.full():
                waiting = self._arrived.get_nowait()
                if waiting is not None:
                    waiting[1].transport.abort()
            self._arrived.put_nowait(None)
