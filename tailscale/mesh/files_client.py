"""HTTP for file bytes, the asking side: requests leave one after another, answers come back in the same order.

Owns one connection. Knows no files: what a body means is the caller's. h11 reads the answers; requests are written by
hand, because h11 asks only once the last answer is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import h11
import msgspec
import trio

from tailscale.errors import ConnectionReset, ConnectionTimedOut
from ts_mesh.blocks import HASH

if TYPE_CHECKING:
    from tailscale.sockets.tcp import TcpStream

HEAD_LIMIT = 16 << 10
ERROR_LIMIT = 256 << 10  # of an answer that says what is wrong: a list of blocks may be long
STALL = 120.0  # seconds without a byte, or with an answer outstanding: a disk may sync for long, but not for ever
LAST_CHUNK = b"0\r\n"
ROOT = b"mesh-root"
Headers = Sequence[tuple[str, str]]


class FileAnswer(msgspec.Struct):
    """What became of one of several files."""

    status: int
    why: str = ""


class Answer(msgspec.Struct):
    """What the serving side says in JSON."""

    root: str = ""
    name: str = ""
    why: str = ""
    blocks: list[int] = []
    files: list[FileAnswer] = []
    """Of a PUT that brought several, one for each."""


_answers = msgspec.json.Decoder(Answer)


def decode_answer(text: bytes) -> Answer:
    """An empty one for what is none: plain text from whatever stands between."""
    try:
        return _answers.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Answer()


def encode_request(method: str, target: str, host: str, headers: Headers) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def encode_last_chunk(root: bytes | None) -> bytes:
    """The end of a chunked body, with the root of the whole file where this part completes it. RFC 9112, 7.1.2."""
    trailer = b"Mesh-Root: %s\r\n" % root.hex().encode() if root is not None else b""
    return b"%s%s\r\n" % (LAST_CHUNK, trailer)


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

    async def next(self, method: str) -> Reply:
        """The next answer, to a request that was sent already. The body of the last one has been read."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        # Told what was sent, h11 knows what to expect.
        self._http.send(h11.Request(method=method, target="/", headers=[("host", "mesh"), ("content-length", "0")]))
        self._http.send(h11.EndOfMessage())
        event = await self._event()
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

    async def read_answer(self) -> Answer:
        """The body, as what the serving side says of a part."""
        text = bytearray()
        while piece := await self.read():
            text += piece
            if len(text) > ERROR_LIMIT:
                raise ConnectionReset("the peer answered at greater length than any answer has")
        return decode_answer(bytes(text))

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                with trio.fail_after(STALL):
                    self._http.receive_data(await self._stream.receive_some())
        except h11.RemoteProtocolError as problem:
            raise ConnectionReset(f"the peer does not answer in HTTP: {problem}") from problem
        except trio.TooSlowError:
            raise ConnectionTimedOut(f"the peer said nothing for {STALL:g} s in the middle of a transfer") from None
        return event


async def send(stream: TcpStream, data: bytes | memoryview) -> None:
    """All of it, or an error once the peer has stopped taking."""
    try:
        with trio.fail_after(STALL):
            await stream.send_all(data)
    except trio.TooSlowError:
        raise ConnectionTimedOut(f"the peer took nothing for {STALL:g} s in the middle of a transfer") from None


def root_in(headers: dict[bytes, bytes], name: bytes = ROOT) -> bytes | None:
    """A root that came in a header or trailer; None for none, or for what is none."""
    return decode_root(headers.get(name, b"").decode("latin-1"))


def decode_root(text: str) -> bytes | None:
    """From its 64 digits, in quotes or bare."""
    try:
        root = bytes.fromhex(text.strip(' "'))
    except ValueError:
        return None
    return root if len(root) == HASH else None
