"""`http.serve` with a device of another face: the app in an asyncio loop, the server in the device's thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from tailscale import WrongFace, aio, sync
from tailscale.http import AsyncTransport, LifespanFailed, ReverseProxy, Transport, serve, serve_wsgi
from tailscale.testing.threaded import TailnetThread

MIB = 1 << 20
PLACE: contextvars.ContextVar[str] = contextvars.ContextVar("PLACE", default="nowhere")


class Stage:
    """Two devices in one asyncio loop, for all tests of this file."""

    def __init__(self, runner: asyncio.Runner, net: TailnetThread, web: aio.Device, caller: aio.Device) -> None:
        self.runner, self.net, self.web, self.caller = runner, net, web, caller

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(20):
                await test()

        self.runner.run(main())

    @asynccontextmanager
    async def site(
        self, app: Any, verb: Callable[..., Any] = serve, **options: Any
    ) -> AsyncIterator[tuple[httpx.AsyncClient, asyncio.Task[None]]]:
        url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(verb(app, self.web, started=url.set_result, **options))
        await asyncio.wait((url, serving), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
        try:
            async with httpx.AsyncClient(transport=AsyncTransport(self.caller), base_url=await url) as client:
                yield client, serving
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    async def opened() -> tuple[aio.Device, aio.Device]:
        web = await aio.Device("web", **net.options()).open()
        caller = await aio.Device("caller", **net.options()).open()
        for asking, asked in ((web, "caller"), (caller, "web")):
            while True:
                with contextlib.suppress(OSError):
                    await asking.ping(asked)
                    break
                await asyncio.sleep(0.005)
        return web, caller

    with TailnetThread() as net, asyncio.Runner(debug=True) as runner:
        web, caller = runner.run(opened())
        yield Stage(runner, net, web, caller)
        runner.run(web.close())
        runner.run(caller.close())


async def answer(send: Any, body: bytes, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def http_only(app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("none")
        await app(scope, receive, send)

    return guarded


def test_app_runs_in_the_loop_that_awaits_serve_and_knows_who_calls(stage: Stage) -> None:
    seen: list[Any] = []

    @http_only
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((asyncio.get_running_loop(), PLACE.get(), scope, await receive()))
        await asyncio.gather(asyncio.sleep(0), asyncio.to_thread(len, b""))  # what trio has no word for
        await answer(send, b"hello")

    async def test() -> None:
        PLACE.set("here")
        async with stage.site(app) as (client, _):
            forged = {"Tailscale-User-Login": "root@evil", "TAILSCALE_user_login": "root@evil", "Tailscale-Other": "x"}
            got = await client.get("/a?b=c", headers=forged)
            assert (got.status_code, got.text) == (200, "hello")
        loop, place, scope, message = seen[0]
        assert (loop, place) == (asyncio.get_running_loop(), "here")
        assert message == {"type": "http.request", "body": b"", "more_body": False}
        assert scope["client"][0] == stage.caller.ipv4
        assert scope["extensions"]["tailscale"]["hostname"] == "caller"
        ours = [one for one in scope["headers"] if one[0].startswith(b"tailscale")]
        assert ours == [(b"tailscale-user-login", b"user@tailnet.test"), (b"tailscale-user-name", b"user")]

    stage.run(test)


@pytest.mark.slow
def test_bodies_stream_both_ways(stage: Stage) -> None:
    @http_only
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more, buffer = True, bytearray()
        while more:
            message = await receive()
            more = message["more_body"]
            buffer[:] = message["body"]
            await send({"type": "http.response.body", "body": buffer, "more_body": more})  # one buffer for all

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(32):
            yield bytes([number]) * (MIB // 32)

    async def test() -> None:
        async with stage.site(echo) as (client, _):
            sent = b"".join([piece async for piece in pieces()])
            for content in (sent, pieces(), b"", b"x"):
                got = await client.post("/", content=content)
                assert got.content == (content if isinstance(content, bytes) else sent)

    stage.run(test)


def test_lifespan_runs_in_one_task_and_shares_its_state(stage: Stage) -> None:
    order: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await answer(send, scope["state"]["color"])
            return
        order.append((await receive())["type"])
        scope["state"]["color"] = b"green"
        async with asyncio.timeout(None):  # which may not be left by another task
            await send({"type": "lifespan.startup.complete"})
            order.append((await receive())["type"])
            order.append(asyncio.current_task() is not None)
        await send({"type": "lifespan.shutdown.complete"})

    async def test() -> None:
        stop = asyncio.Event()
        async with stage.site(app, shutdown=stop) as (client, serving):
            assert (await client.get("/")).content == b"green"
            assert order == ["lifespan.startup"]
            stop.set()
            await serving
        assert order == ["lifespan.startup", "lifespan.shutdown", True]

    stage.run(test)


def test_client_that_goes_is_told_to_the_app(stage: Stage) -> None:
    heard: list[Any] = []
    over = asyncio.Event()

    @http_only
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        heard.append(await receive())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": bytes(MIB), "more_body": True})
        except OSError as error:
            heard.append(error)
        over.set()

    async def test() -> None:
        async with stage.site(app):
            _, writer = await stage.caller.open_connection("web", 80)
            writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            await writer.drain()
            writer.close()
            await over.wait()
        assert heard[0] == {"type": "http.disconnect"}
        assert isinstance(heard[1], ConnectionResetError)

    stage.run(test)


@pytest.mark.slow
def test_app_cannot_run_ahead_of_a_client_that_does_not_read(stage: Stage) -> None:
    sent = 0

    @http_only
    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(MIB), "more_body": True})
            sent += 1
        await send({"type": "http.response.body"})

    async def test() -> None:
        async with stage.site(app) as (client, _):
            async with client.stream("GET", "/") as got:
                before = -1
                while sent != before:  # until it stands still
                    before = sent
                    await asyncio.sleep(0.05)
                assert sent < 64
                assert sum([len(piece) async for piece in got.aiter_raw()]) == 64 * MIB
            assert sent == 64

    stage.run(test)


async def raises_first(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("before")


async def says_nothing(scope: Any, receive: Any, send: Any) -> None:
    await receive()


async def sends_nonsense(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "no.such.message"})
    await receive()


async def sends_text(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [("a", "b")]})
    await send({"type": "http.response.body", "body": b""})


async def leaves_the_process(scope: Any, receive: Any, send: Any) -> None:
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    await asyncio.sleep(1)


BAD = [raises_first, says_nothing, sends_nonsense, sends_text, leaves_the_process]


def test_apps_that_fail_cost_their_request_only(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    @http_only
    async def app(scope: Any, receive: Any, send: Any) -> None:
        name = scope["path"].strip("/")
        if not name:
            await answer(send, b"fine")
            return
        await next(bad for bad in BAD if bad.__name__ == name)(scope, receive, send)

    async def test() -> None:
        async with stage.site(app) as (client, _):
            for bad in BAD:
                assert (await client.get(f"/{bad.__name__}")).status_code == 500, bad
            assert (await client.get("/")).text == "fine"

    with caplog.at_level(logging.ERROR, "tailscale.http"):
        stage.run(test)
    assert len([record for record in caplog.records if record.name == "tailscale.http"]) == len(BAD)


def test_answer_that_breaks_off_is_reset_and_one_that_is_over_takes_no_more(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    @http_only
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/half":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise ValueError("after")
        await answer(send, b"whole")
        await send({"type": "http.response.body", "body": b"more"})

    async def test() -> None:
        async with stage.site(app) as (client, _):
            with pytest.raises(httpx.TransportError):
                await client.get("/half")
            assert (await client.get("/")).text == "whole"
            while "already complete" not in caplog.text:  # noqa: ASYNC110 - the log is another thread's
                await asyncio.sleep(0.005)

    stage.run(test)


def test_cancelling_serve_cancels_what_the_app_is_doing(stage: Stage) -> None:
    was_cancelled: list[bool] = []

    @http_only
    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            was_cancelled.append(True)
            raise

    begun = asyncio.Event()

    async def test() -> None:
        async with stage.site(app) as (client, serving):
            asking = asyncio.ensure_future(client.get("/"))
            await begun.wait()
            serving.cancel()
            with pytest.raises(httpx.TransportError):
                await asking
        assert was_cancelled == [True]

    stage.run(test)


def test_websocket_of_an_asyncio_app(stage: Stage) -> None:
    websockets = pytest.importorskip("websockets")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept", "headers": []})
        caller = scope["extensions"]["tailscale"]["hostname"]
        names = [name for name, _ in scope["headers"] if b"tailscale" in name]
        await send({"type": "websocket.send", "text": f"{caller} {names}"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"] * 2})

    async def test() -> None:
        async with stage.site(app):
            sock = await stage.caller.socket("web", 80)
            forged = {"Tailscale_User-Login": "root@evil", "tailscale-funnel": "1"}
            async with websockets.connect("ws://web/", sock=sock, additional_headers=forged, proxy=None) as socket:
                assert await socket.recv() == "caller [b'tailscale-user-login', b'tailscale-user-name']"
                for size in (1, 70_000, 400_000):
                    await socket.send(bytes(size))
                    assert len(await socket.recv()) == 2 * size

    stage.run(test)


def test_trio_app_under_asyncio_is_told_so(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    async def sleeps(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" and stop_early:
            raise RuntimeError("none")
        await trio.lowlevel.checkpoint()

    async def at_start() -> None:
        with pytest.raises(LifespanFailed, match=r"wants trio, .* tailscale\.Device"):
            async with stage.site(sleeps):
                pass

    async def at_a_request() -> None:
        async with stage.site(sleeps) as (client, _):
            assert (await client.get("/")).status_code == 500

    stop_early = False
    stage.run(at_start)
    stop_early = True
    stage.run(at_a_request)
    assert "give `serve` a tailscale.Device" in caplog.text


def test_sync_device_serves_while_the_call_waits(stage: Stage) -> None:
    @http_only
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        await answer(send, scope["extensions"]["tailscale"]["hostname"].encode())

    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["tailscale.hostname"].encode()]

    with sync.Device("plain", **stage.net.options()) as plain:
        for verb, served in ((serve, app), (serve_wsgi, wsgi)):
            stop, url = threading.Event(), threading.Event()
            options = {"shutdown": stop, "started": lambda _, url=url: url.set()}
            serving = threading.Thread(target=verb, args=(served, plain), kwargs=options)
            serving.start()
            assert url.wait(10)
            with httpx.Client(transport=Transport(plain)) as client:
                assert client.get("http://plain/").text == "plain"
            stop.set()
            serving.join(10)
            assert not serving.is_alive()

        async def inside() -> None:
            with pytest.raises(WrongFace, match="running event loop"):
                serve(app, plain)

        asyncio.run(inside())


@pytest.mark.slow
def test_an_app_that_blocks_its_loop_holds_up_no_packet(stage: Stage) -> None:
    is_blocked, may_go_on = threading.Event(), threading.Event()

    @http_only
    async def app(scope: Any, receive: Any, send: Any) -> None:
        is_blocked.set()
        assert may_go_on.wait(10)  # what no app should do
        await answer(send, b"late")

    def look(plain: sync.Device) -> None:
        is_blocked.wait(10)
        plain.ping("web")
        with plain.connect("web", 80, timeout=10) as sock:  # the server still takes connections, and refuses nonsense
            sock.sendall(b"nonsense\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 400")
        may_go_on.set()

    async def test() -> None:
        with sync.Device("plain", **stage.net.options()) as plain:
            async with stage.site(app) as (client, _):
                looking = asyncio.ensure_future(asyncio.to_thread(look, plain))
                assert (await client.get("/")).text == "late"
                await looking

    stage.run(test)


def test_serve_ends_with_its_device(stage: Stage) -> None:
    async def test() -> None:
        async with aio.Device("short", **stage.net.options()) as short:
            up = asyncio.Event()
            serving = [
                asyncio.ensure_future(served)
                for served in (
                    serve(http_only(says_nothing), short, 80, started=lambda _: up.set()),
                    serve(ReverseProxy("http://127.0.0.1:9"), short, 81),
                )
            ]
            await up.wait()
        await asyncio.gather(*serving)

    stage.run(test)


def test_shutdown_of_another_world_is_refused(stage: Stage) -> None:
    async def test() -> None:
        with pytest.raises(TypeError, match="nobody would hear"):
            await serve(http_only(says_nothing), stage.web, shutdown=trio.Event())

    stage.run(test)
