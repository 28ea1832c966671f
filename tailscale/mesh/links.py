"""One connection of a session: a WebSocket over a stream of the Device, on either side of it, and the first hello.

Owns the bytes and their framing. Refuses to know peers and what messages mean. One task reads, one task writes.
No compression: a few bytes must not become many megabytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import h11
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from tailscale.errors import ConnectionRefused
from tailscale.mesh.parting import ABNORMAL, NORMAL, LinkLost
from ts_base.errors import BadPacket
from ts_mesh import hello as hellos
from ts_mesh.hello import PATH, Hello, decode_hello_untrusted
from ts_mesh.limits import LARGEST_FRAME, MeshLimits

if TYPE_CHECKING:
    from tailscale.sockets.tcp import TcpStream

MOST_CONTROL_FRAMES = 16  # pings and pongs before a hello
STALL = 30.0  # for a peer that does not read
GOODBYE = 1.0  # for its answer to a close
BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, OSError)


class Link:
    """Whole messages out and in. `receive` and `send` belong to one task each."""

    def __init__(self, stream: TcpStream, machine: WSConnection) -> None:
        self.stream = stream
        self._machine = machine
        self._pieces: list[Any] = []
        self._size = 0
        self._largest = LARGEST_FRAME
        self._control_frames = 0
        self._is_greeted = False
        self._ping = self._pong = b""  # written with what is written next
        self._turn = trio.Lock()  # to write: a goodbye may come from another task than messages do
        self._writing = trio.CancelScope()
        self._is_torn = False
        self._is_read = False  # by a task that will notice the end
        self._is_over = trio.Event()
        self.parting = 0  # the code we closed it with

    # Opening

    @classmethod
    async def connect(cls, stream: TcpStream, host: str) -> Link:
        """The client's side of the upgrade. Raises ConnectionRefused where no mesh answers, or LinkLost."""
        machine = WSConnection(ConnectionType.CLIENT)
        link = cls(stream, machine)
        await link._write(machine.send(Request(host=host, target=PATH)))
        while True:
            await link._read_bytes()
            for event in link._events():
                if isinstance(event, AcceptConnection):
                    return link
                if isinstance(event, RejectConnection):
                    raise ConnectionRefused(f"{host} answers, but not as a mesh: HTTP {event.status_code}")

    @classmethod
    async def accept(cls, stream: TcpStream, request: h11.Request, early: bytes) -> Link:
        """The server's side. Raises RemoteProtocolError for what is no upgrade, or LinkLost."""
        machine = WSConnection(ConnectionType.SERVER)
        headers = [(bytes(name), bytes(value)) for name, value in request.headers]
        machine.initiate_upgrade_connection(headers, request.target.decode("latin-1"))
        for _ in machine.events():
            pass
        link = cls(stream, machine)
        await link._write(machine.send(AcceptConnection()))
        if early:
            machine.receive_data(early)
        return link

    async def say_hello(self, text: str) -> None:
        await self._write(self._machine.send(TextMessage(data=text)))

    async def hear_hello(self, limits: MeshLimits) -> Hello:
        """The peer's. What is wrong is told to it: `4002` for one that is late or malformed. Raises LinkLost."""
        self._largest = limits.hello
        try:
            with trio.fail_after(limits.hello_time):
                while (data := self._next_message()) is None:
                    if self._pong:
                        await self.send(())
                    await self._read_bytes()
            hello = decode_hello_untrusted(data, largest=limits.hello)
        except (BadPacket, trio.TooSlowError) as problem:
            await self.refuse(hellos.MALFORMED, str(problem) or "no hello came in time")
        except LinkLost as problem:
            if problem.is_told:
                code = hellos.MALFORMED if problem.code == hellos.TOO_LARGE else problem.code
                await self.refuse(code, str(problem))
            raise
        self._largest, self._is_greeted = LARGEST_FRAME, True
        return hello

    async def refuse(self, code: int, reason: str) -> NoReturn:
        """Close with a code of ours, and raise it."""
        await self.close(code, reason)
        raise LinkLost(code, reason)

    # Messages

    async def receive(self) -> list[str | bytes]:
        """The messages that came with the next bytes, if any. Raises LinkLost when the connection is over."""
        self._is_read = True
        messages = self._messages()
        if not messages:
            await self._read_bytes()
            messages = self._messages()
        return messages

    async def send(self, frames: Sequence[str | bytes]) -> None:
        """All of them and what is to be answered, as one write. Raises LinkLost."""
        machine = self._machine
        if machine.state is not ConnectionState.OPEN:
            raise LinkLost(ABNORMAL, "the connection is closing")
        out = [
            machine.send(TextMessage(data=frame) if isinstance(frame, str) else BytesMessage(data=frame))
            for frame in frames
        ]
        ping, pong = self._ping, self._pong
        self._ping = self._pong = b""
        await self._write(b"".join((ping, pong, *out)))

    def ask(self) -> None:
        """Queue a ping."""
        if self._machine.state is ConnectionState.OPEN:
            self._ping = self._machine.send(Ping())

    @property
    def has_output(self) -> bool:
        """Whether a ping, or the answer to one, waits for `send`."""
        return bool(self._ping or self._pong)

    @property
    def is_free(self) -> bool:
        """Whether a little can be written without waiting for anybody."""
        return not self._turn.locked() and self.stream.is_writable

    def abandon(self) -> None:
        """Whoever waits to write need not: another connection is in use, or this one is dead."""
        self._writing.cancel()

    async def close(self, code: int, reason: str, *, by_reader: bool = False) -> None:
        """Say why, wait a moment for the peer to agree, then end."""
        self.parting = code
        with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE):
            try:
                if self._machine.state is ConnectionState.OPEN:
                    await self._write(self._machine.send(CloseConnection(code=code, reason=reason[:100])))
                    await self.stream.send_eof()
                if self._is_read and not by_reader:
                    await self._is_over.wait()
                else:
                    while await self.stream.receive_some():
                        pass
            except (LinkLost, *BROKEN):
                pass  # nobody is there: it ends all the same
        self.end()

    async def agree(self) -> None:
        """The peer closed: say that we heard it (RFC 6455, 5.5.1). Whoever is in the middle of writing says it all."""
        if self._machine.state is ConnectionState.REMOTE_CLOSING:
            with trio.move_on_after(GOODBYE), contextlib.suppress(LinkLost):
                await self._write(self._machine.send(CloseConnection(code=NORMAL)))

    def end(self) -> None:
        """Whatever state it is in; what was written of a goodbye still leaves."""
        self._is_over.set()
        self._writing.cancel()
        if self._is_torn or self._machine.state in (ConnectionState.OPEN, ConnectionState.CONNECTING):
            self.stream.abort()
        else:
            self.stream.shut()

    # Inside

    async def _read_bytes(self) -> None:
        try:
            data = await self.stream.receive_some()
            self._machine.receive_data(data or None)
        except (RemoteProtocolError, LocalProtocolError) as problem:
            raise LinkLost(CloseReason.PROTOCOL_ERROR, str(problem), is_told=True) from None
        except BROKEN as problem:
            raise LinkLost(ABNORMAL, str(problem)) from None
        if not data:
            raise LinkLost(ABNORMAL, "the peer hung up")

    def _events(self) -> Iterator[Event]:
        try:
            yield from self._machine.events()
        except (RemoteProtocolError, LocalProtocolError) as problem:
            raise LinkLost(CloseReason.PROTOCOL_ERROR, str(problem), is_told=True) from None

    def _next_message(self) -> str | bytes | None:
        """The next whole message; what follows it stays where it is."""
        for event in self._events():
            if (message := self._sort(event)) is not None:
                return message
        return None

    def _messages(self) -> list[str | bytes]:
        return [message for event in self._events() if (message := self._sort(event)) is not None]

    def _sort(self, event: Event) -> str | bytes | None:
        """One event of the WebSocket; a message when it ends with this one."""
        if isinstance(event, TextMessage | BytesMessage):
            return self._collect(event)
        if isinstance(event, Ping | Pong):
            if not self._is_greeted:
                self._control_frames += 1
                if self._control_frames > MOST_CONTROL_FRAMES:
                    raise BadPacket(f"more than {MOST_CONTROL_FRAMES} control frames before a hello")
            if isinstance(event, Ping) and self._machine.state is ConnectionState.OPEN:
                self._pong = self._machine.send(event.response())  # RFC 6455, 5.5.3: the latest is enough
        elif isinstance(event, CloseConnection):
            # wsproto's own word for frames that make no sense is the same event, in another state.
            is_theirs = self._machine.state is ConnectionState.REMOTE_CLOSING
            is_told = not is_theirs and self._machine.state is ConnectionState.OPEN
            raise LinkLost(int(event.code), event.reason or "", is_told=is_told)
        return None

    def _collect(self, event: TextMessage | BytesMessage) -> str | bytes | None:
        data: Any = event.data
        self._size += len(data)
        if self._size > self._largest:
            raise LinkLost(hellos.TOO_LARGE, "too large", is_told=True)
        if not event.message_finished:
            self._pieces.append(data if isinstance(data, str) else bytes(data))
            return None
        self._size = 0
        if not self._pieces:
            return data if isinstance(data, str) else bytes(data)
        pieces, self._pieces = [*self._pieces, data], []
        return "".join(pieces) if isinstance(data, str) else b"".join(pieces)

    async def _write(self, data: bytes) -> None:
        async with self._turn:
            if self._is_torn:
                raise LinkLost(ABNORMAL, "half a frame was written")
            deadline = trio.current_time() + STALL
            with trio.CancelScope(deadline=deadline) as self._writing:
                self._is_torn = True
                try:
                    await self.stream.send_all(data)
                except BROKEN as problem:
                    raise LinkLost(ABNORMAL, str(problem)) from None
                self._is_torn = False
                return
        is_late = trio.current_time() >= deadline
        raise LinkLost(ABNORMAL, "the peer does not read" if is_late else "another connection is in use")
