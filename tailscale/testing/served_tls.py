"""The server's end of TLS: every record that has come is handed over at once.

trio's own stream hands out one record per task switch, and a relay's clients send one record per packet. Owns the
handshake, made when it is first read from; refuses to know what is inside.
"""

from __future__ import annotations

import ssl

import trio

from ts_derp.dial import PlainStream, TlsStream


class ServedTls(trio.abc.Stream):
    """`receive_some` may be one task's and `send_all` another's, as on every trio stream."""

    def __init__(self, transport: trio.abc.Stream, context: ssl.SSLContext) -> None:
        self._transport = transport
        self._tls = TlsStream(PlainStream(transport), context, None)
        self._greeted = False
        self._left = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            if not self._greeted:
                await self._tls.do_handshake()
                self._greeted = True
            data = self._left or await self._tls.receive_some()
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(f"TLS broke: {error}") from error
        await trio.lowlevel.checkpoint_if_cancelled()
        size = len(data) if max_bytes is None else max_bytes
        self._left = data[size:]
        return data[:size]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._tls.send_all(bytes(data))
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(f"TLS broke: {error}") from error

    async def wait_send_all_might_not_block(self) -> None:
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._transport.aclose()
