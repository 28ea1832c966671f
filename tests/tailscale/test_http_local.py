"""The server for programs of this machine: what it answers, whom it refuses, and that it holds nobody for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from tailnet_scripts import beside

from tailscale.http.local import open_listeners, serve_local, split_listen
from tailscale.http1.asgi import Receive, Scope, Send
from tailscale.http1.limits import Limits

HOST = b"Host: 127.0.0.1\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/fail":
        raise RuntimeError("the app's own mistake")
    body = f"{scope['method']} {scope['path']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def server(limits: Limits | None = None) -> AsyncIterator[int]:
    listeners = await open_listeners("127.0.0.1:0")
    port: int = listeners[0].socket.getsockname()[1]
    async with beside(lambda: serve_local(app, listeners, limits=limits or Limits())):
        yield port


async def said(port: int, data: bytes) -> bytes:
    """All that comes back for these bytes, until the server hangs up."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        return b"".join([piece async for piece in stream])


async def test_requests_of_one_connection_are_answered_in_turn() -> None:
    async with server() as port:
        answer = await said(port, b"GET /a HTTP/1.1\r\n" + HOST + b"\r\nGET /b?c HTTP/1.1\r\n" + HOST + b"\r\n")
        assert answer.count(b"HTTP/1.1 200") == 2
        assert answer.index(b"GET /a") < answer.index(b"GET /b")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),
        (b"GET / HTTP/1.1\r\nHost: evil.example:80\r\n\r\n", b"403"),
        (b"GET http://evil.example/ HTTP/1.1\r\n" + HOST + b"\r\n", b"403"),
        (b"GET / HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", b"403"),
        (b"GET / HTTP/1.1\r\nHost: LOCALHOST:1\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nHost: [::1]:1\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nHost: 100.64.0.1\r\n\r\n", b"200"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
        (b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n", b"501"),
        (b"GET / HTTP/1.1\n" + HOST + b"\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"x" * (512 << 10) + b"\r\n\r\n", b"431"),
        (b"\x16\x03\x01\x00\r\n\r\n", b"400"),
        (b"GET /fail HTTP/1.1\r\n" + HOST + b"\r\n", b"500"),
    ],
)
async def test_what_is_answered_and_what_refused(request_: bytes, status: bytes) -> None:
    async with server() as port:
        assert (await said(port, request_)).split()[1] == status


async def test_a_silent_caller_makes_room_for_the_next() -> None:
    async with server(Limits(connections=1, connections_per_peer=1)) as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as silent:
            assert b"200" in await said(port, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            with pytest.raises(trio.BrokenResourceError):
                await silent.receive_some()


async def test_who_never_finishes_a_head_is_told_so() -> None:
    async with server(Limits(head_timeout=0.05)) as port, await trio.open_tcp_stream("127.0.0.1", port) as slow:
        await slow.send_all(b"GET / HT")
        assert b" 408 " in await slow.receive_some()


@pytest.mark.parametrize("listen", ["9100", ":9100", "host:", "127.0.0.1:http", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_named(listen: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_listen(listen)


def test_addresses_are_taken_apart() -> None:
    assert [split_listen(text) for text in ("[::1]:80", "localhost:0")] == [("::1", 80), ("localhost", 0)]
