"""What callers, servers and folders do to a Serve that they should not: refused, bounded, and nobody else's loss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from http_scripts import read_all
from serve_scripts import Echo, published, tcp_server, web_server

from tailscale.http import Limits
from tailscale.serve import files, proxy, text
from tailscale.testing import Tailnet

HEAD = b"POST / HTTP/1.1\r\nHost: web\r\n"
SMUGGLED = [
    HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Tailscale-User-Login:\r\n root@evil\r\n\r\n",
    b"GET / HTTP/1.1\nHost: web\n\n",
    b"GET / HTTP/1.1\r\nHost: web\r\nX: a\nTailscale-User-Login: root\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: web\r\nHost: other\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : web\r\n\r\n",
    b"GET http://u@web/ HTTP/1.1\r\nHost: web\r\n\r\n",
    b"CONNECT web:80 HTTP/1.1\r\nHost: web\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: web\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: web\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
]


async def test_what_could_be_read_two_ways_never_reaches_the_server(tailnet: Tailnet) -> None:
    echo = Echo()
    async with web_server(echo) as url, published(tailnet, lambda web: web.http(80, url)) as s:
        for request in SMUGGLED:
            answer = await s.exchange(request)
            assert answer[9:12] in (b"400", b"431", b"501"), (request[:80], answer[:40])
            assert (b"431" in answer[:12]) == (len(request) > 65_536)
        assert not echo.asked
        assert (await s.client.get("/")).status_code == 200


# What is asked for, and what the server behind / hears, or the status of an answer of our own.
PATHS: list[tuple[bytes, bytes | int]] = [
    (b"http://web/absolute", b"/absolute"),
    (b"http://other/absolute", 404),
    (b"//evil.test/x", b"//evil.test/x"),
    (b"/%2e%2e/x", b"/%2e%2e/x"),
    (b"/x/..;/y", b"/x/..;/y"),
    (b"/app/%2e%2e/secret", b"/app/%2e%2e/secret"),  # to the server of /, which has it as it came
    (b"/x/%2e%2e/app/y", 404),  # the mount is that of the clean path, and the path as it came is not below it
    (b"/app/..;/secret", b"/v1/..;/secret"),
    (b"/APP/x", b"/APP/x"),
    (b"/%61pp/x", 404),
    (b"/app%2fx", b"/v1/%2fx"),
    (b"/" + b"a/" * 5000, 404),
]


async def test_odd_spellings_of_paths_lead_where_they_lead_or_nowhere(tailnet: Tailnet) -> None:
    echo = Echo()

    def say(web: Any, url: str) -> None:
        web.http(80, {"/": proxy(url), "/app": proxy(f"{url}/v1"), "/app/private": text("no")})

    async with web_server(echo) as url, published(tailnet, lambda web: say(web, url)) as s:
        for path, expected in PATHS:
            answer = await s.exchange(b"GET %s HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n" % path)
            if isinstance(expected, bytes):
                assert answer.endswith(b"GET %s " % expected), (path, answer)
            else:
                assert answer.startswith(b"HTTP/1.1 %d" % expected), (path, answer)


async def test_slow_heads_and_slow_readers_lose_their_connection(
    autojump_clock: trio.testing.MockClock, tailnet: Tailnet
) -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})

    limits = Limits(head_timeout=5, stall_timeout=5)
    async with published(tailnet, lambda web: web.http(80, endless).http(81, text("x")), limits=limits) as s:
        assert (await s.exchange(b"GET / HTT", 81)).startswith(b"HTTP/1.1 408")
        async with await s.connect() as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            await trio.sleep(60)  # of the virtual clock: it reads nothing
            assert not (await read_all(stream)).endswith(b"0\r\n\r\n")


BROKEN = [
    (b"", 502),
    (b"garbage\r\n\r\n", 502),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nhe", 502),
    (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, 502),
    (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100 + b"HTTP/1.1 204 No Content\r\n\r\n", 204),
    (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 101 + b"HTTP/1.1 204 No Content\r\n\r\n", 502),
]


@pytest.mark.parametrize(("said", "status"), BROKEN, ids=range(len(BROKEN)))
async def test_server_that_answers_nonsense_is_502(tailnet: Tailnet, said: bytes, status: int) -> None:
    async def speak(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(said)
        await stream.aclose()

    async with tcp_server(speak) as place, published(tailnet, lambda web: web.http(80, f"http://{place}")) as s:
        assert (await s.client.get("/")).status_code == status


async def test_server_that_dies_in_the_middle_or_never_answers(
    autojump_clock: trio.testing.MockClock, tailnet: Tailnet
) -> None:
    async def die(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf")
        await stream.aclose()

    async def sleep(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with tcp_server(die) as dying, tcp_server(sleep) as asleep:
        mounts = {"/": f"http://{dying}", "/sleep": f"http://{asleep}"}
        async with published(tailnet, lambda web: web.http(80, mounts)) as s:
            with pytest.raises(httpx.TransportError):
                await s.client.get("/")
            s.client.timeout = httpx.Timeout(3600)
            assert (await s.client.get("/sleep")).status_code == 502


async def test_nothing_outside_a_folder_is_served(tailnet: Tailnet, tmp_path: Path) -> None:
    site, secret = tmp_path / "site", tmp_path / "secret"
    site.mkdir()
    secret.mkdir()
    (secret / "key").write_text("secret")
    (site / "fine.txt").write_text("fine")
    (site / ".env").write_text("secret")
    (site / ".git").mkdir()
    (site / ".git" / "config").write_text("secret")
    (site / "link").symlink_to(secret / "key")
    (site / "folder").symlink_to(secret)
    (site / "up").symlink_to("..")
    os.mkfifo(site / "pipe")
    async with published(tailnet, lambda web: web.http(80, {"/s": files(site)})) as s:
        for path in (
            *(
                "/s/../secret/key",
                "/s/%2e%2e/secret/key",
                "/s/..%2fsecret%2fkey",
                "/s/..\\secret\\key",
                "/s//../secret/key",
            ),
            *("/s/.env", "/s/.git/config", "/s/link", "/s/folder/", "/s/folder/key", "/s/up/secret/key", "/s/pipe"),
            *("/s/%00", "/s/fine.txt%00.html", "/s/%2Eenv", "/s/..;/secret/key", "/s/fine.txt/x", "/s/\xff"),
        ):
            request = b"GET %s HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n" % path.encode("latin-1")
            answer = await s.exchange(request)
            assert answer[9:12] in (b"404", b"400"), (path, answer)
            assert b"secret" not in answer
        listed = (await s.client.get("/s/")).text
        assert [name in listed for name in ("fine.txt", ".env", "link", "folder", "up", "pipe")] == [True] + [False] * 5
