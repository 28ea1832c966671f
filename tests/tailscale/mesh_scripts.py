"""What tests of meshes share: devices of one app in a tailnet of their own, and peers that are not of this make."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from tailnet_scripts import runtime_of
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError

from tailscale import Device
from tailscale.mesh import Lagged, Mesh, Message, Subscription
from tailscale.testing import Tailnet

APP = "notes"
PORT = 9417
EPOCH = "0123456789abcdef"
FEATURES = ["ack", "bin", "files", "store"]


@asynccontextmanager
async def meshes(net: Tailnet, *names: str, app: str = APP, **options: Any) -> AsyncIterator[list[Mesh]]:
    """A mesh on each of these devices; every one knows every other."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(Mesh(await net.device(name), app, **options)) for name in names]
        for mesh in found:
            await until_met(mesh, len(names) - 1)
        yield found
    assert not [mesh for mesh in found if mesh.drops["mesh.failed_task"]], "a task failed: see the log"


async def until_met(mesh: Mesh, count: int) -> None:
    """Wait until a mesh has so many members besides us."""
    with trio.fail_after(10):
        while len(mesh.peers) < count:  # noqa: ASYNC110 - a fact
            await trio.sleep(0.01)


async def next_of(inbox: Subscription[Any], timeout: float = 10) -> Message[Any]:
    """The next message, which is no `Lagged`."""
    with trio.fail_after(timeout):
        message = await inbox.__anext__()
    assert not isinstance(message, Lagged)
    return message


def break_streams(*devices: Device) -> None:
    """Every TCP connection of these devices is reset; listeners stay."""
    for device in devices:
        for socket in tuple(runtime_of(device).stack.sockets()):
            if hasattr(socket.owner, "abort"):
                socket.owner.abort()


def hello_of(device: Device, **changes: Any) -> dict[str, Any]:
    """A hello that is true, but for the changes: of the identity, or (features, epoch, ...) beside it."""
    identity = {
        "app_id": APP,
        "device_id": f"ID-OF-{device.hostname}",
        "device_name": device.hostname,
        "os": "plan9",
        "tailscale_id": device.node.stable_id,
    }
    identity.update({name: value for name, value in changes.items() if name in identity})
    rest = {name: value for name, value in changes.items() if name not in identity}
    return {"kind": "hello", "version": 2, "identity": identity, **rest}


class Bare:
    """One end of a session that does what the test says, over a stream of the Device."""

    def __init__(self, stream: trio.abc.Stream, kind: ConnectionType) -> None:
        self.stream = stream
        self.machine = WSConnection(kind)
        self._events: list[Event] = []
        self._turn = trio.Lock()
        self._pieces: list[str] = []
        self.closed_with: int | None = None

    async def send(self, *events: Event) -> None:
        async with self._turn:
            await self.stream.send_all(b"".join(self.machine.send(event) for event in events))

    async def say(self, *values: Any) -> None:
        """JSON, each in a text frame."""
        await self.send(*(TextMessage(data=v if isinstance(v, str) else json.dumps(v)) for v in values))

    async def event(self) -> Event:
        with trio.fail_after(60):
            while not self._events:
                data = await self.stream.receive_some()
                self.machine.receive_data(data or None)
                self._events.extend(self.machine.events())
                if not data and not self._events:
                    raise trio.EndOfChannel
        return self._events.pop(0)

    async def hear(self) -> Any:
        """The next message, decoded; pings are answered. None at the end, whose code is in `closed_with`."""
        try:
            while True:
                event = await self.event()
                if isinstance(event, TextMessage):
                    self._pieces.append(event.data)
                    if event.message_finished:
                        whole, self._pieces = "".join(self._pieces), []
                        return json.loads(whole)
                elif isinstance(event, BytesMessage):
                    return bytes(event.data)
                if isinstance(event, Ping):
                    await self.send(event.response())
                elif isinstance(event, CloseConnection):
                    self.closed_with = int(event.code)
                    await self.send(event.response())
                    return None
        except (trio.BrokenResourceError, trio.EndOfChannel, LocalProtocolError):
            return None

    async def hear_until(self, kind: str) -> Any:
        """The first message of this msg_type."""
        while (message := await self.hear()) is not None:
            if isinstance(message, dict) and message.get("msg_type") == kind:
                return message
        raise AssertionError(f"the session ended with {self.closed_with} before any {kind}")

    async def code(self) -> int | None:
        """Read to the end; the code it was closed with."""
        while await self.hear() is not None:
            pass
        return self.closed_with


@asynccontextmanager
async def bare_client(device: Device, host: str, port: int = PORT) -> AsyncIterator[Bare]:
    """A WebSocket to a mesh port; what is said over it is up to the test."""
    async with await device.tcp_connect(host, port) as stream:
        bare = Bare(stream, ConnectionType.CLIENT)
        await bare.send(Request(host=host, target="/ws"))
        event = await bare.event()
        assert isinstance(event, AcceptConnection | RejectConnection)
        yield bare


async def greeted(bare: Bare, hello: dict[str, Any]) -> dict[str, Any]:
    """Exchange hellos: theirs."""
    await bare.say(hello)
    answer = await bare.hear()
    assert answer is not None, f"closed with {bare.closed_with}"
    assert answer["kind"] == "hello"
    return dict(answer)


@asynccontextmanager
async def bare_server(device: Device, hello: dict[str, Any]) -> AsyncIterator[list[Bare]]:
    """Listens on the mesh port without announcing it, and says this hello to whoever says one first."""
    sessions: list[Bare] = []

    async def serve(stream: trio.abc.Stream) -> None:
        bare = Bare(stream, ConnectionType.SERVER)
        await bare.event()
        await bare.send(AcceptConnection())
        await bare.hear()
        await bare.say(hello)
        sessions.append(bare)
        await trio.sleep_forever()

    async with await device.listen(PORT) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield sessions
        nursery.cancel_scope.cancel()


def payloads(messages: Iterable[Message[Any]]) -> list[Any]:
    return [message.data for message in messages]
