"""A stream of which somebody has read the beginning already: it is read again first. Owns those bytes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import Address, Bytes


class EarlyStream(trio.abc.HalfCloseableStream):
    """`stream`, with what was read of it before: `early`. What only a TcpStream can, it can where `stream` is one."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, early: bytes) -> None:
        self._stream: Any = stream
        self._early = early

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self._early:
            received: bytes = await self._stream.receive_some(max_bytes)
            return received
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
        address: Address = self._stream.local_address
        return address

    @property
    def remote_address(self) -> Address:
        """As of the stream itself."""
        address: Address = self._stream.remote_address
        return address

    def set_keepalive(self, idle: float | None, interval: float, count: int) -> None:
        """As of the stream itself."""
        self._stream.set_keepalive(idle, interval, count)

    def reset_with_device(self) -> None:
        """As of the stream itself."""
        self._stream.reset_with_device()
