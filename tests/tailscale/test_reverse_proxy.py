"""A web server of this machine behind `http.serve(ReverseProxy(...))`: what it is told, and what it never hears."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from http_scripts import site
from serve_scripts import tcp_server

from tailscale.http import ReverseProxy, serve
from tailscale.http.local import serve_local
from tailscale.http.reverse import head_for_server
from tailscale.testing import Tailnet

FORGED = {
    "Tailscale-User-Login": "root@evil",
    "tailscale_user_login": "root@evil",
    "X-Forwarded-For": "6.6.6.6",
    "x_forwarded_for": "6.6.6.6",
    "X-Forwarded-Proto": "gopher",
    "X-Forwarded-User": "root",
    "X-Real-IP": "6.6.6.6",
    "X_Real_Ip": "6.6.6.6",
    "Forwarded": "for=6.6.6.6",
    "Connection": "close, tailscale-user-login, x-forwarded-for",
}


async def answer(send: Any, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


class Backend:
    """A server of this machine that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        await answer(send, scope["path"].encode() + b" " + str(len(body)).encode(), (b"x-of-server", b"y"))


@asynccontextmanager
async def backend(app: Any) -> AsyncIterator[str]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_local, app, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_server_is_told_who_calls_and_what_was_forged_is_out(tailnet: Tailnet) -> None:
    made = Backend()
    async with backend(made) as url, site(tailnet, ReverseProxy(url)) as s:
        got = await s.client.get("/a%20b?c=d", headers=FORGED | {"Host": "localhost", "X-Fine": "1"})
        assert (got.text, got.headers["x-of-server"]) == ("/a b 0", "y")
        headers = dict(made.asked[0]["headers"])
        assert len(headers) == len(made.asked[0]["headers"])
        assert made.asked[0]["query_string"] == b"c=d"
        assert headers[b"host"] == headers[b"x-forwarded-host"] == b"localhost"
        assert headers[b"x-forwarded-for"] == str(s.caller.ipv4).encode()
        assert headers[b"x-forwarded-proto"] == b"http"
        assert headers[b"tailscale-user-login"] == s.caller.node.user.encode()
        assert headers[b"x-fine"] == b"1"
        assert b"6.6.6.6" not in repr(headers).encode()
        assert b"evil" not in repr(headers).encode()
        assert not {b"x_forwarded_for", b"x-real-ip", b"x_real_ip", b"forwarded", b"x-forwarded-user"} & headers.keys()


async def test_bodies_and_one_connection_for_all_requests_of_a_client(tailnet: Tailnet) -> None:
    made = Backend()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield bytes(10_000)

    async with backend(made) as url, site(tailnet, ReverseProxy(url)) as s:
        s.client.headers["Host"] = "localhost"
        assert (await s.client.post("/1", content=bytes(300_000))).text == "/1 300000"
        assert (await s.client.post("/2", content=pieces())).text == "/2 100000"
        assert (await s.client.head("/3")).headers["content-length"] == "4"
        assert (await s.client.options("/4")).text == "/4 0"


async def test_a_unix_socket_is_a_server_too(tailnet: Tailnet, tmp_path: Path) -> None:
    path = tmp_path / "s"
    door = trio.socket.socket(trio.socket.AF_UNIX)
    await door.bind(str(path))
    door.listen()
    async with trio.open_nursery() as nursery, site(tailnet, ReverseProxy(f"unix:{path}")) as s:
        nursery.start_soon(serve_local, Backend(), [trio.SocketListener(door)])
        assert (await s.client.get("/x", headers={"Host": "localhost"})).text == "/x 0"
        nursery.cancel_scope.cancel()


async def test_an_upgrade_becomes_a_tunnel_without_what_was_forged(tailnet: Tailnet) -> None:
    heads: list[bytes] = []

    async def shout(stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            heads.append(head)
            await stream.send_all(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhi"
            )
            async for data in stream:
                await stream.send_all(bytes(data).upper())

    async with tcp_server(shout) as place, site(tailnet, ReverseProxy(f"http://{place}")) as s:
        with trio.fail_after(10):
            async with await s.connect() as stream:
                await stream.send_all(
                    b"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                    b"tailscale_user_LOGIN: root@evil\r\nX-Forwarded-For: 6.6.6.6\r\n\r\nearly"
                )
                heard = b""
                while not heard.endswith(b"EARLY"):
                    heard += await stream.receive_some()
                assert heard.startswith(b"HTTP/1.1 101")
                await stream.send_all(b"more")
                assert await stream.receive_some() == b"MORE"
                await stream.send_eof()
                assert await stream.receive_some() == b""
    assert b"evil" not in heads[0]
    assert b"6.6.6.6" not in heads[0]
    assert b"tailscale-user-login: user@tailnet.test" in heads[0].lower()


ANSWERS = [
    (b"", 502),
    (b"nonsense\r\n\r\n", 502),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 502),
    (b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", 204),
    (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200),
    (b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200),
]


async def test_what_a_server_answers(tailnet: Tailnet) -> None:
    rest = [said for said, _ in ANSWERS]

    async def speak(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(rest.pop(0))
            await stream.send_eof()
            async for _ in stream:
                pass

    async with tcp_server(speak) as place, site(tailnet, ReverseProxy(f"http://{place}")) as s:
        s.client.headers["Connection"] = "close"
        for said, status in ANSWERS:
            assert (await s.client.get("/")).status_code == status, said


LONG = 1_000_000


async def test_long_answers_are_passed_on_whole_over_one_connection(tailnet: Tailnet) -> None:
    body = random.Random(1).randbytes(LONG)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % LONG
    connections: list[int] = []

    async def speak(stream: trio.SocketStream) -> None:
        connections.append(0)
        async with stream:
            while request := bytes(await stream.receive_some()):
                connections[-1] += 1
                if request.startswith(b"HEAD"):
                    await stream.send_all(head + b"\r\n")
                elif request.startswith(b"GET /last"):
                    await stream.send_all(head + b"Connection: close\r\n\r\n" + body)
                elif request.startswith(b"GET /more"):
                    await stream.send_all(head + b"\r\n" + body + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")
                else:
                    await stream.send_all(head + b"\r\n" + body)

    async with tcp_server(speak) as place, site(tailnet, ReverseProxy(f"http://{place}")) as s:
        for path in ("/", "/", "/last", "/", "/more", "/"):
            assert (await s.client.head("/")).headers["content-length"] == str(LONG)
            assert (await s.client.get(path)).content == body
    assert connections == [6, 4, 2]


@pytest.mark.parametrize("size", [0, 1000, LONG - 1])
async def test_part_of_a_long_answer_is_reset(tailnet: Tailnet, size: int) -> None:
    async def speak(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LONG + bytes(size))

    async with tcp_server(speak) as place, site(tailnet, ReverseProxy(f"http://{place}")) as s:
        with pytest.raises(httpx.TransportError):
            await s.client.get("/")


async def test_half_an_answer_is_reset(tailnet: Tailnet) -> None:
    async def speak(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf")

    async with tcp_server(speak) as place, site(tailnet, ReverseProxy(f"http://{place}")) as s:
        with pytest.raises(httpx.TransportError):
            await s.client.get("/")


async def test_a_server_that_is_not_there_is_502_and_said(tailnet: Tailnet, caplog: pytest.LogCaptureFixture) -> None:
    async with backend(Backend()) as url:
        pass
    async with site(tailnet, ReverseProxy(url)) as s:
        with caplog.at_level(logging.WARNING, "tailscale.http"):
            assert (await s.client.get("/")).status_code == 502
    assert f"{url} cannot be reached" in caplog.text


async def test_what_two_readers_could_take_two_ways_is_not_passed_on(tailnet: Tailnet) -> None:
    made = Backend()
    both = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    async with backend(made) as url, site(tailnet, ReverseProxy(url)) as s:
        assert (await s.exchange(both)).startswith(b"HTTP/1.1 400")
    assert not made.asked


@pytest.mark.parametrize(
    "to", ["127.0.0.1:3000", "ftp://127.0.0.1", "http://", "unix:", "http://a/path", "http://a:b", "http://u@a"]
)
def test_what_is_no_server_is_a_sentence(to: str) -> None:
    with pytest.raises(ValueError, match=r"no server to pass requests on to|[Pp]ort"):
        ReverseProxy(to)


def test_a_secure_request_is_told_so() -> None:
    scope = {"headers": [(b"host", b"x")], "scheme": "wss", "client": ("100.64.0.1", 5), "extensions": {}}
    assert (b"x-forwarded-proto", b"https") in head_for_server(scope, is_modern=True)


async def test_serve_of_a_proxy_runs_no_lifespan(tailnet: Tailnet) -> None:
    device = await tailnet.device("web")
    async with trio.open_nursery() as nursery:
        assert (
            await nursery.start(serve, ReverseProxy("http://127.0.0.1:9"), device, 8080)
            == "http://web.tailnet.test:8080"
        )
        nursery.cancel_scope.cancel()
