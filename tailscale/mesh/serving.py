"""HTTP for file bytes, the serving side: one request of a verified peer, read and answered in place.

Owns no connection and no file. https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import TYPE_CHECKING, NamedTuple

import h11
import msgspec

from tailscale.http1.asgi import ClientDisconnected
from tailscale.http1.exchange import abort
from tailscale.mesh.files_client import ROOT, root_in

if TYPE_CHECKING:
    from tailscale.http1.wire import Wire

_encode = msgspec.json.Encoder().encode


class Answered(NamedTuple):
    """What to answer with, in JSON."""

    status: int
    root: bytes | None = None
    name: str = ""
    why: str = ""
    blocks: Sequence[int] = ()
    text: str = ""
    """For a person who asked by curl."""
    files: Sequence[Answered] = ()
    """Of a PUT that brought several, one for each."""

    def encode(self) -> bytes:
        said = {"root": self.root.hex() if self.root else "", "name": self.name, "why": self.why, "text": self.text}
        fields: dict[str, object] = {name: value for name, value in said.items() if value}
        if self.blocks:
            fields["blocks"] = list(self.blocks)
        if self.files:
            fields["files"] = [{"status": each.status, "why": each.why} for each in self.files]
        return _encode(fields) + b"\n"


class Request:
    """One request on a wire: its headers, its body piece by piece, and the answer."""

    def __init__(
        self,
        wire: Wire,
        method: str,
        headers: Sequence[tuple[bytes, bytes]],
        moved: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._wire = wire
        self._moved = moved  # told of bytes of files, either way
        self.method = method
        self._headers = headers
        self._trailers: dict[bytes, bytes] = {}
        self._is_read = False
        self._head = b""

    def header(self, name: bytes) -> str | None:
        """Its value; several of one name count as none of them could alone."""
        values = [bytes(value) for key, value in self._headers if key == name]
        return b",".join(values).decode("latin-1") if values else None

    def root(self) -> bytes | None:
        """`Mesh-Root`, from the trailers of the body that was read, else from the headers."""
        return root_in(self._trailers) or root_in({ROOT: (self.header(ROOT) or "").encode("latin-1")})

    async def read(self) -> bytes:
        """The next piece of the body; b"" at its end. Raises ClientDisconnected."""
        wire = self._wire
        if self._is_read:
            return b""
        if wire.http.they_are_waiting_for_100_continue:
            await wire.write(wire.http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        event = await wire.next_event(wire.limits.stall_timeout)
        if isinstance(event, h11.Data):
            self._moved(len(event.data))
            return event.data  # not copied: a file has many
        if not isinstance(event, h11.EndOfMessage):
            raise ClientDisconnected("the client went away in the middle of a file")
        self._trailers = {bytes(name): bytes(value) for name, value in event.headers}
        self._is_read = True
        return b""

    async def answer(self, answered: Answered) -> None:
        """All of it. A connection whose request was not read to its end carries no other."""
        body = answered.encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        if not self._is_read and not await self._is_read_away():
            headers.append(("connection", "close"))
        self.begin(answered.status, headers)
        await self.end(b"" if self.method == "HEAD" else body)

    async def _is_read_away(self) -> bool:
        """A request without a body ends with its head; one with a body that nobody wants ends the connection."""
        if self._wire.http.they_are_waiting_for_100_continue or self.method not in ("GET", "HEAD"):
            return False
        while await self.read():
            pass
        return True

    def begin(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """The head of an answer, kept back until something goes with it."""
        dated = [*headers, ("date", formatdate(usegmt=True))]
        self._head = self._wire.http.send(h11.Response(status_code=status, headers=dated)) or b""

    async def send(self, data: bytes) -> None:
        """A piece of its body."""
        self._moved(len(data))
        head, self._head = self._head, b""
        for piece in (head, *(self._wire.http.send_with_data_passthrough(h11.Data(data=data)) or ())):
            if piece:
                await self._wire.write(piece)

    async def end(self, last: bytes = b"", trailers: Sequence[tuple[str, str]] = ()) -> None:
        """The last piece and the end, in one write with a head that was kept back."""
        http = self._wire.http
        pieces = [self._head, http.send(h11.Data(data=last)) or b"" if last else b""]
        pieces.append(http.send(h11.EndOfMessage(headers=list(trailers))) or b"")
        self._head = b""
        await self._wire.write(b"".join(pieces))

    def abort(self) -> None:
        """Reset the connection, so that nobody takes the half of an answer for the whole."""
        abort(self._wire.stream)
