"""`Serve`: what stands behind which path and port, what servers are told of callers, who is let in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from http_scripts import read_all
from serve_scripts import Echo, published, serve_anybody, tcp_server, web_server
from tailnet_scripts import until

from tailscale.serve import Serve, files, proxy, redirect, tcp, text
from tailscale.testing import Tailnet

FORGED = {
    "Tailscale-User-Login": "root@evil",
    "tailscale_user_login": "root@evil",
    "Tailscale.Headers.Info": "evil",
    "X-Forwarded-For": "6.6.6.6",
    "x_forwarded_for": "6.6.6.6",
    "X-Forwarded-Proto": "evil",
    "X-Real-IP": "6.6.6.6",
    "Forwarded": "for=6.6.6.6",
    "Connection": "close, tailscale-user-login, x-forwarded-for",
}


async def hello_app(scope: Any, receive: Any, send: Any) -> None:
    said = f"{scope['root_path']} {scope['path']} {scope['extensions']['tailscale']['hostname']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
    await send({"type": "http.response.body", "body": said})


async def lifespan_app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["word"] = b"started"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["state"]["word"]})


async def test_each_path_has_its_target_and_the_longest_wins(tailnet: Tailnet, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html>docs")
    echo = Echo()
    async with web_server(echo) as url:

        def say(web: Serve) -> None:
            mounts = {"/": proxy(url), "/docs": files(tmp_path), "/up": text("ok"), "/app": hello_app}
            web.http(
                80,
                mounts | {"/up/deep": redirect("301:https://${HOST}/x${REQUEST_URI}"), "/api": proxy(url + "/v1?a=b")},
            )

        async with published(tailnet, say) as s:
            assert (await s.client.get("/")).text == "GET / "
            assert (await s.client.get("/other/%20x?q=1")).text == "GET /other/%20x?q=1 "
            assert (await s.client.get("/docs/")).text == "<html>docs"
            assert (await s.client.get("/docs")).headers["location"] == "/docs/"
            up = await s.client.get("/up")
            assert (up.text, up.headers["content-type"]) == ("ok", "text/plain; charset=utf-8")
            assert (await s.client.get("/up/any")).text == "ok"
            gone = await s.client.get("/up/deep/er?x=1")
            assert (gone.status_code, gone.headers["location"]) == (301, f"https://{s.device.name}/x/up/deep/er?x=1")
            assert (await s.client.get("/app/x")).text == "/app /app/x caller"
            assert (await s.client.post("/api/x?c=d", content=b"body")).text == "POST /v1/x?a=b&c=d body"
            assert (await s.client.get("/api")).text == "GET /v1?a=b "
            # The mount is found by the clean path and taken off the path as it came, as upstream does it.
            assert (await s.client.get("/x/%2e%2e/api/y")).status_code == 404
            assert (await s.exchange(b"GET /x/../up HTTP/1.0\r\nHost: web\r\n\r\n")).endswith(b"ok")


async def test_server_is_told_who_calls_and_nothing_that_was_forged(tailnet: Tailnet) -> None:
    echo = Echo()
    async with web_server(echo) as url, published(tailnet, lambda web: web.http(80, url)) as s:
        answer = await s.client.get("/", headers=FORGED | {"X-Fine": "1"})
        assert "via" not in answer.headers
        told = echo.headers()
        assert told[b"host"] == told[b"x-forwarded-host"] == s.device.name.encode()
        assert told[b"x-forwarded-for"] == str(s.caller.ipv4).encode()
        assert told[b"tailscale-user-login"] == s.caller.node.user.encode()
        assert told[b"tailscale-headers-info"] == b"https://tailscale.com/s/serve-headers"
        assert told[b"x-fine"] == b"1"
        assert b"x-forwarded-proto" not in told
        assert b"evil" not in repr(told).encode()
        assert b"6.6.6.6" not in repr(told).encode()


async def test_host_header_says_which_site_and_an_address_is_none(tailnet: Tailnet) -> None:
    async with published(tailnet, lambda web: web.http(80, text("mine"))) as s:
        for host, status in (
            ("web", 200),
            (s.device.name, 200),
            ("WEB:80", 200),
            (str(s.device.ipv4), 404),
            ("x", 404),
        ):
            answer = await s.exchange(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 %d" % status), host
        assert b"404 page not found\n" in answer


async def test_only_who_is_allowed_comes_in(tailnet: Tailnet) -> None:
    async with published(tailnet, lambda web: web.http(80, text("in")).tcp(9, "127.0.0.1:9").allow(users=["x"])) as s:
        assert (await s.client.get("/")).status_code == 403
        ws = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n"
        answer = await s.exchange(ws + b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403")
        with pytest.raises(trio.BrokenResourceError):
            await s.exchange(b"x", 9)
        s.web.allow(users=[s.caller.node.user])
        assert (await s.client.get("/")).text == "in"
        s.web.allow(tags=["tag:x"], capability="x.test/cap")
        assert (await s.client.get("/")).status_code == 403


async def test_app_has_its_lifespan_and_changes_count_at_once(tailnet: Tailnet) -> None:
    async with published(tailnet, lambda web: web.http(80, lifespan_app)) as s:
        assert (await s.client.get("/")).text == "started"
        s.web.http(80, {"/new": text("new")}).http(8080, text("other"))
        assert (await s.client.get("/new")).text == "new"
        await until(lambda: "8080" in s.web.statistics().ports)
        assert (await s.client.get(f"http://{s.device.name}:8080/")).text == "other"
        s.web.off(8080)
        await until(lambda: "8080" not in s.web.statistics().ports)
        with pytest.raises(OSError, match="refused"):
            await s.connect(8080)


async def shout(stream: trio.SocketStream) -> None:
    """Answer once the caller has finished, in capitals."""
    await stream.send_all((await read_all(stream)).upper())
    await stream.send_eof()


async def test_tcp_port_leads_to_a_server_and_passes_each_end_on(tailnet: Tailnet) -> None:
    async with tcp_server(shout) as place, published(tailnet, lambda web: web.tcp(5432, place)) as s:
        async with await s.connect(5432) as stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            assert await read_all(stream) == b"HELLO"
        await until(lambda: s.web.statistics().ports["5432"].bytes_sent == 5)


async def repeat(stream: trio.SocketStream) -> None:
    await stream.send_all(await read_all(stream))
    await stream.send_eof()


@pytest.mark.parametrize("version", [1, 2])
async def test_proxy_header_names_the_caller_and_the_servers_port(tailnet: Tailnet, version: int) -> None:
    async with (
        tcp_server(repeat) as place,
        published(tailnet, lambda web: web.tcp(7, tcp(place, proxy_protocol=version))) as s,
    ):
        async with await s.connect(7) as stream:
            own = stream.local_address
            await stream.send_eof()
            header = await read_all(stream)
        port = int(place.rpartition(":")[2])
        if version == 1:
            assert header == f"PROXY TCP4 {own[0]} {s.device.ipv4} {own[1]} {port}\r\n".encode()
        else:
            assert header.endswith(own[1].to_bytes(2, "big") + port.to_bytes(2, "big"))


async def test_unix_socket_is_a_server_for_both(tailnet: Tailnet, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    door = trio.socket.socket(trio.socket.AF_UNIX)
    await door.bind(path)
    door.listen()
    echo = Echo()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_anybody, echo, [trio.SocketListener(door)])
        async with published(tailnet, lambda web: web.http(80, f"unix:{path}").tcp(81, f"unix:{path}")) as s:
            assert (await s.client.get("/x")).text == "GET /x "
            assert echo.headers()[b"host"] == b"localhost"
            assert echo.headers()[b"x-forwarded-host"] == s.device.name.encode()
            raw = await s.exchange(b"GET /y HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 81)
            assert raw.endswith(b"GET /y ")
        nursery.cancel_scope.cancel()


async def test_dead_server_is_502_and_the_next_request_finds_it_alive(tailnet: Tailnet) -> None:
    async with tcp_server(shout) as place:
        pass
    async with published(tailnet, lambda web: web.http(80, f"http://{place}").http(81, text("ok")).tcp(82, place)) as s:
        assert (await s.client.get("/")).status_code == 502
        with pytest.raises((trio.BrokenResourceError, OSError)):
            await s.exchange(b"hello", 82)


@pytest.mark.slow
async def test_connection_from_elsewhere_is_answered_as_one_of_a_port(tailnet: Tailnet) -> None:
    echo = Echo()
    async with (
        web_server(echo) as url,
        published(tailnet, lambda web: web.http(80, url)) as s,
        trio.open_nursery() as n,
    ):
        ours, theirs = trio.testing.memory_stream_pair()
        n.start_soon(lambda: s.web.take(80, theirs, source=(str(s.caller.ipv4), 5), funnel=True))
        await ours.send_all(b"GET /f HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        assert (await read_all(ours)).endswith(b"GET /f ")
        told = echo.headers()
        assert told[b"tailscale-funnel-request"] == b"?1"
        assert b"tailscale-user-login" not in told
        assert told[b"x-forwarded-for"] == str(s.caller.ipv4).encode()


def test_targets_are_read_as_upstream_reads_them() -> None:
    assert proxy("3000").to == "http://127.0.0.1:3000"
    assert proxy(3000).to == "http://127.0.0.1:3000"
    assert proxy("localhost:3000/x").to == "http://localhost:3000/x"
    assert proxy("https+insecure://10.0.0.1").to == "https+insecure://10.0.0.1"
    assert tcp("5432").to == "127.0.0.1:5432"
    assert tcp("tcp://localhost:5432").to == "localhost:5432"
    for wrong in ("", "localhost", "example.com:80", "ftp://x", "0", "70000", "http://u@h:1", "unix:"):
        with pytest.raises(ValueError, match=r"target|port|host|machine|served|unix"):
            proxy(wrong)
    with pytest.raises(ValueError, match="Unix socket does not have"):
        tcp("unix:/x", proxy_protocol=1)


async def test_app_is_started_once_wherever_and_however_often_it_is_said(tailnet: Tailnet) -> None:
    started = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            started.append(scope)
            await send({"type": "lifespan.startup.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"app"})

    async with published(tailnet, lambda web: web.http(80, {"/": app, "/x": app})) as s:
        for _ in range(3):
            s.web.http(80, {"/": app, "/y": app})
            assert (await s.client.get("/y")).text == "app"
    assert len(started) == 1
