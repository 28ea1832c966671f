"""An ASGI app served on the tailnet, asked by httpx from another device: requests, bodies, identity, shutdown."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from http_scripts import read_all, site
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from tailscale.http import LifespanFailed, Limits, serve
from tailscale.testing import Tailnet

MIB = 1 << 20


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """The smallest app."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello " + scope["path"].encode()})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the request's body as it comes in."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message["more_body"]
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})


async def test_plain_app_answers(tailnet: Tailnet) -> None:
    async with site(tailnet, hello) as s:
        answer = await s.client.get("/a%20b?x=1")
        assert (answer.status_code, answer.text, s.url) == (200, "hello /a b", "http://web.tailnet.test")
        assert answer.headers["transfer-encoding"] == "chunked"
        assert "date" in answer.headers


async def test_scope_says_who_is_calling(tailnet: Tailnet) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await hello(scope, receive, send)

    async with site(tailnet, app) as s:
        await s.client.get("/", headers={"Tailscale-User-Login": "root@evil", "tailscale_user_name": "x", "other": "y"})
        caller, headers = seen[-1]["extensions"]["tailscale"], dict(seen[-1]["headers"])
        assert seen[-1]["client"][0] == s.caller.ipv4
        assert seen[-1]["server"] == (s.server.ipv4, 80)
        assert (caller["node"], caller["hostname"], caller["tags"]) == ("caller.tailnet.test", "caller", [])
        assert caller["user"] == s.caller.node.user
        assert headers[b"other"] == b"y"
        assert headers[b"tailscale-user-login"] == caller["user"].encode()
        assert b"tailscale_user_name" not in headers


async def test_tagged_caller_is_no_user_and_a_policy_grants_capabilities(tailnet: Tailnet) -> None:
    policy = {
        "tagOwners": {"tag:ci": ["*"]},
        "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"], "app": {"example.com/cap/web": [{"role": "editor"}]}}],
    }
    tailnet.policy(policy)
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await hello(scope, receive, send)

    async with site(tailnet, app) as s:
        tailnet.set_tags(s.caller, ["tag:ci"])
        with trio.fail_after(5):
            while s.server.peers["caller"].tags != ("tag:ci",):  # noqa: ASYNC110 - the map arrives when it does
                await trio.sleep(0.005)
        await s.client.get("/", headers={"tailscale-user-login": "root@evil"})
        caller = seen[-1]["extensions"]["tailscale"]
        assert (caller["user"], caller["tags"]) == (None, ["tag:ci"])
        assert caller["capabilities"]["example.com/cap/web"] == [{"role": "editor"}]
        assert not [n for n, _ in seen[-1]["headers"] if n.startswith(b"tailscale")]


async def test_starlette_app_with_state_and_lifespan(tailnet: Tailnet) -> None:
    order: list[str] = []

    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        order.append("start")
        yield {"color": "green"}
        order.append("stop")

    async def who(request: Request) -> JSONResponse:
        return JSONResponse({"color": request.state.color, "body": (await request.body()).decode()})

    from contextlib import asynccontextmanager

    app = Starlette(routes=[Route("/who", who, methods=["POST"])], lifespan=asynccontextmanager(lifespan))
    async with site(tailnet, app) as s:
        answer = await s.client.post("/who", content="abc")
        assert answer.json() == {"color": "green", "body": "abc"}
        assert (await s.client.get("/none")).status_code == 404
        assert order == ["start"]
    assert order == ["start", "stop"]


@pytest.mark.slow
async def test_thousand_requests_use_one_connection(tailnet: Tailnet) -> None:
    clients = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        clients.add(scope["client"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with site(tailnet, app) as s:
        for _ in range(1000):
            assert (await s.client.get("/")).content == b"ok"
    assert len(clients) == 1


async def store(scope: Any, receive: Any, send: Any) -> None:
    """Takes a whole body, then sends it back."""
    assert scope["type"] == "http"
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("size", [0, 1, 65_536, 2 * MIB])
async def test_bodies_go_both_ways(tailnet: Tailnet, size: int) -> None:
    async with site(tailnet, store) as s:
        body = hashlib.shake_128(b"x").digest(size)
        assert (await s.client.post("/", content=body)).content == body


async def test_body_and_answer_flow_at_the_same_time(tailnet: Tailnet) -> None:
    size = 3 * MIB
    async with site(tailnet, echo) as s, await s.connect() as stream, trio.open_nursery() as nursery:
        head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % size
        nursery.start_soon(stream.send_all, head + b"x" * size)
        with trio.fail_after(20):
            assert (await read_all(stream)).count(b"x") == size


@pytest.mark.slow
async def test_fifty_megabytes_up_then_down(tailnet: Tailnet) -> None:
    chunk = bytes(256 << 10)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received, more = 0, True
        while more:
            message = await receive()
            received += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-received", b"%d" % received)]})
        for left in reversed(range(200)):
            await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield chunk

    async with site(tailnet, app) as s, s.client.stream("POST", "/", content=upload(), timeout=60) as answer:
        received = 0
        async for part in answer.aiter_raw():
            received += len(part)
        assert (answer.headers["x-received"], received) == (str(50 * MIB), 50 * MIB)


async def test_slow_reader_holds_the_app_back(autojump_clock: trio.testing.MockClock, tailnet: Tailnet) -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
            sent += 100_000

    async with site(tailnet, app) as s, s.client.stream("GET", "/"):
        before = -1
        with trio.fail_after(10):
            while sent != before:
                before = sent
                await trio.sleep(0.3)
        assert 0 < sent < 20 * MIB


async def test_head_sends_no_body_but_its_headers(tailnet: Tailnet) -> None:
    async with site(tailnet, Starlette(routes=[Route("/", lambda r: PlainTextResponse("12345"))])) as s:
        answer = await s.client.head("/")
        assert (answer.headers["content-length"], answer.content) == ("5", b"")
        assert (await s.client.get("/")).text == "12345"


async def test_expectation_is_met_only_when_the_app_reads(tailnet: Tailnet) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n"
    async with site(tailnet, echo) as s, await s.connect() as stream:
        await stream.send_all(head)
        # The app answers first here, so no 100 is due; a body sent anyway is still understood.
        assert (await stream.receive_some()).startswith(b"HTTP/1.1")


async def test_app_that_reads_first_is_sent_the_body_after_100(tailnet: Tailnet) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": body})

    async with site(tailnet, app) as s, await s.connect() as stream:
        await stream.send_all(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
        )
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"body")
        assert (await read_all(stream)).endswith(b"\r\n\r\nbody")


async def test_pipelined_requests_are_answered_in_order(tailnet: Tailnet) -> None:
    async with site(tailnet, hello) as s:
        request = b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n"
        last = b"GET /3 HTTP/1.0\r\n\r\n"
        answer = await s.exchange(request % 1 + request % 2 + last)
        assert [answer.find(b"hello /%d" % n) > 0 for n in (1, 2, 3)] == [True] * 3
        assert answer.find(b"/1") < answer.find(b"/2") < answer.find(b"/3")


async def test_client_that_finished_sending_still_gets_its_answer(tailnet: Tailnet) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await hello(scope, receive, send)

    async with site(tailnet, app) as s, await s.connect() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await stream.send_eof()
        assert b"hello /" in await read_all(stream)


async def test_client_that_leaves_ends_the_app(tailnet: Tailnet) -> None:
    ended = trio.Event()

    async def forever(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": bytes(10_000), "more_body": True})
        except OSError:
            ended.set()
            raise

    async with site(tailnet, forever) as s:
        with trio.fail_after(10):
            async with await s.connect() as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                await stream.receive_some()
            await ended.wait()


async def test_starlette_stream_ends_quietly_when_the_client_leaves(
    tailnet: Tailnet, caplog: pytest.LogCaptureFixture
) -> None:
    ended = trio.Event()

    class Ticks:
        def __aiter__(self) -> Ticks:
            return self

        async def __anext__(self) -> bytes:
            await trio.sleep(0.01)
            return b"tick"

    starlette = Starlette(routes=[Route("/", lambda r: StreamingResponse(Ticks()))])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await starlette(scope, receive, send)
        finally:
            if scope["type"] == "http":
                ended.set()

    async with site(tailnet, app) as s:
        with trio.fail_after(10):
            async with s.client.stream("GET", "/"):
                pass
            await ended.wait()
    assert not caplog.records


async def test_app_that_crashes_is_a_500_then_a_broken_answer(
    tailnet: Tailnet, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if scope["path"] != "/silent":
            raise ZeroDivisionError

    async with site(tailnet, app) as s:
        for path in ("/", "/silent"):
            answer = await s.client.get(path)
            assert (answer.status_code, answer.text) == (500, "Internal Server Error\n")
        assert (await s.client.head("/")).status_code == 500
        with pytest.raises(httpx.TransportError):
            await s.client.get("/late")
    assert "the app failed on GET /late" in caplog.text


async def test_header_injection_is_stopped(tailnet: Tailnet, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"location", b"/x\r\nset-cookie: evil=1")]
        await send({"type": "http.response.start", "status": 302, "headers": headers})
        await send({"type": "http.response.body"})

    async with site(tailnet, app) as s:
        answer = await s.client.get("/")
        assert (answer.status_code, "set-cookie" in answer.headers) == (500, False)


async def test_shutdown_lets_running_requests_finish(tailnet: Tailnet) -> None:
    entered, release = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            entered.set()
            await release.wait()
        await hello(scope, receive, send)

    async with site(tailnet, app) as s, trio.open_nursery() as nursery:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await s.client.get("/"))

        nursery.start_soon(ask)
        with trio.fail_after(10):
            await entered.wait()
            s.shutdown.set()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not s.done.is_set()
            with pytest.raises(OSError):
                await s.caller.tcp_connect("web", 80)
            release.set()
            await s.done.wait()
        assert answers[0].status_code == 200


async def test_shutdown_closes_idle_connections_at_once_and_stuck_ones_after_grace(tailnet: Tailnet) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/stuck":
            await trio.sleep_forever()
        await hello(scope, receive, send)

    async with site(tailnet, app, limits=Limits(grace=0.2)) as s:
        await s.client.get("/")
        async with await s.connect() as stuck:
            await stuck.send_all(b"GET /stuck HTTP/1.1\r\nhost: x\r\n\r\n")
            await trio.sleep(0.05)
            s.shutdown.set()
            with trio.fail_after(5):
                await s.done.wait()
            with pytest.raises((ConnectionResetError, trio.BrokenResourceError)):
                await stuck.receive_some()


async def test_lifespan_failure_is_raised(tailnet: Tailnet) -> None:
    device = await tailnet.device("web")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(LifespanFailed, match="no database"):
        await serve(app, device)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    with pytest.raises(LifespanFailed, match=r"0\.05 s"):
        await serve(slow, device, limits=Limits(startup_timeout=0.05))


async def test_lifespan_that_will_not_stop_is_left_behind(tailnet: Tailnet, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await trio.sleep_forever()
        await hello(scope, receive, send)

    async with site(tailnet, app, limits=Limits(shutdown_timeout=0.05)) as s:
        assert (await s.client.get("/")).status_code == 200
    assert "did not finish stopping" in caplog.text


async def test_port_in_use_is_a_plain_error(tailnet: Tailnet) -> None:
    async with site(tailnet, hello) as s:
        with pytest.raises(OSError):
            await serve(hello, s.server, 80)


async def test_device_that_closes_ends_the_server(tailnet: Tailnet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, tailnet.device("web") as device:
            await nursery.start(serve, hello, device)
            nursery.cancel_scope.cancel()


async def test_app_that_wants_asyncio_is_told_so(tailnet: Tailnet, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" and has_none:
            raise RuntimeError("no lifespan")
        await asyncio.sleep(0.001)

    has_none = False
    with pytest.raises(ExceptionGroup) as failed:
        async with site(tailnet, app):
            pass
    assert failed.group_contains(LifespanFailed, match=r"wants asyncio, .* tailscale\.aio\.Device", depth=1)
    has_none = True
    async with site(tailnet, app) as s:
        assert (await s.client.get("/")).status_code == 500
    assert "the app failed on GET /: the app wants asyncio" in caplog.text
    assert "Traceback" not in caplog.text
