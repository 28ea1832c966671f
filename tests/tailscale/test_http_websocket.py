"""WebSockets served on the tailnet, spoken to by an unmodified client library over a stream of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from http_scripts import Site, read_all, site
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from tailnet_scripts import until
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from tailscale.http import Limits
from tailscale.testing import Tailnet

UPGRADE = b"GET / HTTP/1.1\r\nhost: web\r\nupgrade: websocket\r\nconnection: keep-alive, Upgrade\r\n"


class Client:
    """A WebSocket client of few words."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.machine = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []

    async def send(self, event: Event) -> None:
        await self.stream.send_all(self.machine.send(event))

    async def next(self) -> Event:
        with trio.fail_after(5):
            while not self._events:
                self.machine.receive_data(await self.stream.receive_some() or None)
                self._events.extend(self.machine.events())
        return self._events.pop(0)


@asynccontextmanager
async def websocket(s: Site, path: str = "/", **options: Any) -> AsyncIterator[Client]:
    async with await s.connect() as stream:
        client = Client(stream)
        await client.send(Request(host="web", target=path, **options))
        yield client


async def echo(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "websocket"
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


async def test_echo_of_text_and_bytes(tailnet: Tailnet) -> None:
    async with site(tailnet, echo) as s, websocket(s, subprotocols=["chat"]) as client:
        accepted = await client.next()
        assert isinstance(accepted, AcceptConnection)
        assert accepted.subprotocol == "chat"
        await client.send(TextMessage(data="grüße"))
        assert await client.next() == TextMessage(data="grüße")
        await client.send(BytesMessage(data=b"ab", message_finished=False))
        await client.send(BytesMessage(data=b"cd"))
        received = await client.next()
        assert isinstance(received, BytesMessage)
        assert bytes(received.data) == b"abcd"
        await client.send(CloseConnection(code=1000))
        assert isinstance(await client.next(), CloseConnection)
        assert await read_all(client.stream) == b""


async def test_starlette_knows_the_caller_and_hears_the_close(tailnet: Tailnet) -> None:
    codes: list[int] = []
    closed = trio.Event()

    async def endpoint(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_json({"who": socket.scope["extensions"]["tailscale"]["hostname"], "ip": socket.client.host})
        codes.append((await socket.receive())["code"])
        closed.set()

    async with site(tailnet, Starlette(routes=[WebSocketRoute("/ws", endpoint)])) as s:
        async with websocket(s, "/ws") as client:
            await client.next()
            assert f'"who":"caller","ip":"{s.caller.ipv4}"' in (await client.next()).data  # type: ignore[attr-defined]
            await client.send(CloseConnection(code=4001, reason="bye"))
        with trio.fail_after(5):
            await closed.wait()
    assert codes == [4001]


async def test_ping_is_answered_while_the_app_is_busy(tailnet: Tailnet) -> None:
    async def busy(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await send({"type": "websocket.accept"})
        await trio.sleep_forever()

    async with site(tailnet, busy) as s, websocket(s) as client:
        await client.next()
        await client.send(Ping(payload=b"x"))
        assert await client.next() == Pong(payload=b"x")


async def test_refusals(tailnet: Tailnet) -> None:
    async def picky(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        if scope["path"] == "/denial":
            await WebSocket(scope, receive, send).send_denial_response(PlainTextResponse("members only", 402))
        elif scope["path"] == "/close":
            await receive()
            await send({"type": "websocket.close"})
        elif scope["path"] == "/crash":
            raise ZeroDivisionError

    async with site(tailnet, picky) as s:
        for path, status in {"/close": 403, "/silent": 403, "/crash": 500, "/denial": 402}.items():
            async with websocket(s, path) as client:
                refused = await client.next()
                assert isinstance(refused, RejectConnection)
                assert refused.status_code == status
                if path == "/denial":
                    body = await client.next()
                    assert isinstance(body, RejectData)
                    assert bytes(body.data) == b"members only"
        assert (await s.exchange(UPGRADE + b"\r\n")).startswith(b"HTTP/1.1 400 ")
        bad_version = UPGRADE + b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 7\r\n\r\n"
        assert (await s.exchange(bad_version))[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 426")


async def test_crash_after_accepting_closes_with_1011(tailnet: Tailnet) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await send({"type": "websocket.accept"})
        raise ZeroDivisionError

    async with site(tailnet, app) as s, websocket(s) as client:
        await client.next()
        closed = await client.next()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1011


async def test_message_too_big_closes_with_1009(tailnet: Tailnet) -> None:
    async with site(tailnet, echo, limits=Limits(websocket_message=1000)) as s, websocket(s) as client:
        await client.next()
        await client.send(BytesMessage(data=bytes(1001)))
        closed = await client.next()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1009


async def test_nonsense_closes_with_1002(tailnet: Tailnet) -> None:
    async with site(tailnet, echo) as s, websocket(s) as client:
        await client.next()
        await client.stream.send_all(b"\xff\xff\xff\xff")
        closed = await client.next()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1002


async def test_app_that_does_not_read_holds_the_client_back(
    autojump_clock: trio.testing.MockClock, tailnet: Tailnet
) -> None:
    release = trio.Event()
    received = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal received
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        await release.wait()
        while (message := await receive())["type"] == "websocket.receive":
            received += len(message["bytes"])

    async with site(tailnet, app, limits=Limits(websocket_message=10_000)) as s, websocket(s) as client:
        await client.next()
        sent = 0
        with trio.move_on_after(1):
            while True:
                await client.send(BytesMessage(data=bytes(10_000)))
                sent += 10_000
        assert sent < 20_000_000
        release.set()
        await until(lambda: received >= sent - 2_000_000)


async def test_client_that_vanishes_is_1006_and_send_says_so(tailnet: Tailnet) -> None:
    seen: list[Any] = []
    done = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        seen.append((await receive())["code"])
        try:
            await send({"type": "websocket.send", "text": "x"})
        except OSError as error:
            seen.append(error)
        done.set()

    async with site(tailnet, app) as s:
        async with websocket(s) as client:
            await client.next()
        with trio.fail_after(5):
            await done.wait()
    assert seen[0] == 1006
    assert isinstance(seen[1], ConnectionResetError)


async def test_shutdown_tells_both_sides(autojump_clock: trio.testing.MockClock, tailnet: Tailnet) -> None:
    codes: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        codes.append((await receive())["code"])

    async with site(tailnet, app) as s, websocket(s) as client:
        await client.next()
        s.shutdown.set()
        closed = await client.next()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1012
        with trio.fail_after(5):
            await s.done.wait()
    assert codes == [1012]


async def test_missing_wsproto_is_said(
    tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "tailscale.http.websocket", raising=False)
    monkeypatch.setitem(sys.modules, "wsproto.utilities", None)
    async with site(tailnet, echo) as s:
        assert (await s.exchange(UPGRADE + b"\r\n")).startswith(b"HTTP/1.1 501 ")
    assert "pytailscale[asgi]" in caplog.text
