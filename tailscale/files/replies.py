"""HTTP for file bytes, the asking side: requests leave one after another, answers come back in the same order.

Owns one connection. Knows no files: what a body means is the caller's. h11 reads the answers; requests are written by
hand, because h11 asks only once the last answer is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import h11
import trio

from tailscale.errors import ConnectionReset, ConnectionTimedOut

if TYPE_CHECKING:
    from tailscale.sockets.tcp import TcpStream

HEAD_LIMIT = 16 << 10
STALL = 120.0  # seconds without a byte, or with an answer outstanding: a disk may sync for long, but not for ever
Headers = Sequence[tuple[str, str]]


def encode_request(method: str, target: str, host: str, headers: Headers) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


class Reply:
    """The head of an answer."""

    def __init__(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status
        self.headers = headers
        self.trailers: dict[bytes, bytes] = {}  # once the body was read
        self.is_last = headers.get(b"connection", b"").lower() == b"close"


class Replies:
    """The answers of one connection, in the order of the requests."""

    def __init__(self, stream: TcpStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        self._reply: Reply | None = None

    async def next(self, method: str, patience: float = STALL) -> Reply:
        """The next answer, to a request that was sent already. The body of the last one has been read."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        # Told what was sent, h11 knows what to expect.
        self._http.send(h11.Request(method=method, target="/", headers=[("host", "peer"), ("content-length", "0")]))
        self._http.send(h11.EndOfMessage())
        event = await self._event(patience)
        if not isinstance(event, h11.Response):
            raise ConnectionReset("the peer closed the connection in the middle of a transfer")
        self._reply = Reply(event.status_code, {bytes(name): bytes(value) for name, value in event.headers})
        return self._reply

    async def read(self) -> bytes:
        """The next piece of the body, or b"" at its end."""
        event = await self._event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if not isinstance(event, h11.EndOfMessage) or self._reply is None:
            raise ConnectionReset("the peer closed the connection in the middle of a file")
        self._reply.trailers = {bytes(name): bytes(value) for name, value in event.headers}
        return b""

    async def read_all(self, limit: int) -> bytes:
        """The body as a whole. ConnectionReset beyond `limit` bytes."""
        text = bytearray()
        while piece := await self.read():
            text += piece
            if len(text) > limit:
                raise ConnectionReset("the peer answered at greater length than any answer has")
        return bytes(text)

    async def _event(self, patience: float = STALL) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                with trio.fail_after(patience):
                    self._http.receive_data(await self._stream.receive_some())
        except h11.RemoteProtocolError as problem:
            raise ConnectionReset(f"the peer does not answer in HTTP: {problem}") from problem
        except trio.TooSlowError:
            raise ConnectionTimedOut(f"the peer said nothing for {patience:g} s in the middle of a transfer") from None
        return event


async def send(stream: TcpStream, data: bytes | memoryview) -> None:
    """All of it, or an error once the peer has stopped taking."""
    try:
        with trio.fail_after(STALL):
            await stream.send_all(data)
    except trio.TooSlowError:
        raise ConnectionTimedOut(f"the peer took nothing for {STALL:g} s in the middle of a transfer") from None
