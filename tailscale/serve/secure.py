"""TLS of a port that serves several names: which one the client asks for is read before its certificate is fetched.

Owns the first bytes of a connection. No name, or one that is not served, gets the alert internal_error, as stock nodes
send it. Where certificates come from is handed in.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from tailscale.carry import Stream

Certificates = Callable[[str], Awaitable[ssl.SSLContext]]
"""The context for a name. Errors that it raises are told in the log, and end the connection."""
LONGEST_HELLO = 64 << 10  # RFC 8446, 5.1: four records hold what any client says first


class NoSuchName(ConnectionError):
    """A client that asks for a name that is not served here."""


async def hear_hello(stream: Stream, is_served: Callable[[str], bool]) -> tuple[str, Stream]:
    """The name that a TLS client asks for, and the stream with nothing of it taken. Raises NoSuchName."""
    asked: list[str] = []

    def on_name(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int:
        asked.append(name or "")
        return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = on_name
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    listening = context.wrap_bio(incoming, outgoing, server_side=True)
    heard = b""
    while len(heard) < LONGEST_HELLO:
        data = bytes(await stream.receive_some())
        heard += data
        incoming.write(data) if data else incoming.write_eof()
        try:
            listening.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as problem:
            name = asked[0].lower() if asked else ""
            if name and is_served(name):
                return name, Replayed(stream, heard)
            await stream.send_all(outgoing.read())
            raise NoSuchName(f"{name!r} is not served here: {problem}") from None
    raise NoSuchName("a client says hello for ever")


class Replayed(trio.abc.HalfCloseableStream):
    """A stream some of which was read already."""

    def __init__(self, stream: Stream, heard: bytes) -> None:
        self._stream: Any = stream
        self._heard = heard

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self._heard:
            received: bytes = await self._stream.receive_some(max_bytes)
            return received
        await trio.lowlevel.checkpoint()
        size = len(self._heard) if max_bytes is None else max_bytes
        data, self._heard = self._heard[:size], self._heard[size:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    def abort(self) -> None:
        """Reset the connection."""
        self._stream.abort()

    async def aclose(self) -> None:
        await self._stream.aclose()
