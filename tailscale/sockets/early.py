"""A stream of which somebody has read the beginning already: it is read again first. Owns those bytes only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import Address, Bytes
    from tailscale.sockets.tcp import TcpStream


class EarlyStream(trio.abc.HalfCloseableStream):
    """`stream`, with what was read of it before: `early`."""

    def __init__(self, stream: TcpStream, early: bytes) -> None:
        self._stream, self._early = stream, early

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self._early:
            return await self._stream.receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        end = len(self._early) if max_bytes is None else max_bytes
        data, self._early = self._early[:end], self._early[end:]
        return data

    async def send_all(self, data: Bytes) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def abort(self) -> None:
        """Reset the connection."""
        self._stream.abort()

    @property
    def local_address(self) -> Address:
        """As of the stream itself."""
        return self._stream.local_address

    def set_keepalive(self, idle: float | None, interval: float, count: int) -> None:
        """As of the stream itself."""
        self._stream.set_keepalive(idle, interval, count)

    def reset_with_device(self) -> None:
        """As of the stream itself."""
        self._stream.reset_with_device()
