"""HTTP/2 of `serve` and `http.serve`: by httpx, which knows nothing of us, and by a client that misbehaves."""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import trio
from serve_scripts import Echo, tcp_server, web_server

from tailscale import Device
from tailscale.http import AsyncTransport, Limits, serve
from tailscale.http1.asgi import ClientDisconnected
from tailscale.http2.exchange import StreamExchange
from tailscale.http2.link import Channel, Link
from tailscale.http2.machine import FRAME_SIZE, PRICE_OF_RESET, PURSE, STREAM_WINDOW, STREAMS, Head, Http2Machine
from tailscale.serve import Serve, text
from tailscale.testing import Tailnet


@dataclass
class Secured:
    """A Serve by HTTPS, and who calls it."""

    net: Tailnet
    caller: Device
    device: Device
    web: Serve

    def client(self) -> httpx.AsyncClient:
        transport = AsyncTransport(self.caller, http2=True, verify=self.context())
        return httpx.AsyncClient(transport=transport, base_url=f"https://{self.device.name}", timeout=600)

    def context(self) -> ssl.SSLContext:
        return self.net.certificates.client_context()

    @asynccontextmanager
    async def raw(self, port: int = 443) -> AsyncIterator[RawClient]:
        context = self.context()
        context.set_alpn_protocols(["h2"])
        async with await self.caller.tcp_connect("web", port) as below:
            stream = trio.SSLStream(below, context, server_hostname=self.device.name, https_compatible=True)
            await stream.do_handshake()
            assert stream.selected_alpn_protocol() == "h2"
            yield RawClient(stream, self.device.name)


class RawClient:
    """h2 itself, with nothing that keeps it from doing harm."""

    def __init__(self, stream: trio.abc.Stream, host: str) -> None:
        self.stream, self.host = stream, host
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.waiting: deque[h2.events.Event] = deque()

    def head(self, path: str, method: str = "GET") -> list[tuple[str, str]]:
        return [(":method", method), (":scheme", "https"), (":authority", self.host), (":path", path)]

    async def send(self, data: bytes | None = None) -> None:
        await self.stream.send_all(self.h2.data_to_send() if data is None else data)

    async def until(self, kind: Any) -> Any:
        """The next event of that kind; what comes before it is forgotten. The end of the connection is none."""
        while True:
            while self.waiting:
                event = self.waiting.popleft()
                if isinstance(event, kind):
                    return event
            data = bytes(await self.stream.receive_some())
            if not data:
                return None
            self.waiting += self.h2.receive_data(data)


@asynccontextmanager
async def secured(mounts: Any, **options: Any) -> AsyncIterator[Secured]:
    async with Tailnet(certificates=True) as net, trio.open_nursery() as nursery:
        caller, device = await net.device("caller"), await net.device("web")
        web = Serve(device, **options).https(443, mounts)
        await nursery.start(web.run)
        yield Secured(net, caller, device, web)
        nursery.cancel_scope.cancel()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """How much came; what is asked for by its length."""
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"x-version", scope["http_version"].encode())]}
    )
    for _ in range(4):
        await send(
            {"type": "http.response.body", "body": bytes(int(scope["query_string"] or b"0") // 4), "more_body": True}
        )
    await send({"type": "http.response.body", "body": b"%d" % size})


async def test_texts_apps_and_servers_answer_as_over_http1(autojump_clock: trio.testing.MockClock) -> None:
    echo = Echo()
    async with (
        web_server(echo) as url,
        secured({"/": url, "/hi": text("hello"), "/app": app}) as s,
        s.client() as client,
    ):
        got = await client.get("/hi")
        assert (got.http_version, got.status_code, got.text) == ("HTTP/2", 200, "hello")
        assert (await client.head("/hi")).headers["content-length"] == "5"
        got = await client.post("/app?2000000", content=bytes(3 * STREAM_WINDOW))
        assert (got.headers["x-version"], len(got.content)) == ("2", 2_000_000 + len(str(3 * STREAM_WINDOW)))
        got = await client.post("/x?y", content=bytes(500_000), headers={"Tailscale-User-Login": "root@evil"})
        assert (got.http_version, len(got.content)) == ("HTTP/2", len("POST /x?y ") + 500_000)
        told = echo.headers()
        assert told[b"tailscale-user-login"] == s.caller.node.user.encode()
        assert (told[b"host"], told[b"x-forwarded-proto"]) == (s.device.name.encode(), b"https")

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield bytes(20_000)

        assert len((await client.post("/x", content=pieces())).content) == len("POST /x ") + 200_000
        assert (await client.options("/x", headers={"Cookie": "a=1; b=2"})).status_code == 200
        assert echo.headers()[b"cookie"] == b"a=1; b=2"


async def test_many_requests_are_answered_at_once(autojump_clock: trio.testing.MockClock) -> None:
    waiting = trio.Event()
    count = 0

    async def together(scope: Any, receive: Any, send: Any) -> None:
        nonlocal count
        if scope["type"] == "http":
            count += 1
            if count == 50:
                waiting.set()
            await waiting.wait()
            await text_app(scope, receive, send)

    async def text_app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    async with secured(together) as s, s.client() as client, trio.open_nursery() as nursery:

        async def ask(path: str) -> None:
            assert (await client.get(path)).text == path

        for number in range(50):
            nursery.start_soon(ask, f"/{number}")


async def test_trailers_of_an_app_and_of_a_server_arrive(autojump_clock: trio.testing.MockClock) -> None:
    async def trailing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            assert "http.response.trailers" in scope["extensions"]
            await send({"type": "http.response.start", "status": 200, "trailers": True, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})
            await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"5")]})

    async def chunked(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        head = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        await stream.send_all(head + b"5\r\nhello\r\n0\r\nX-Sum: 5\r\nProxy-Authenticate: no\r\n\r\n")

    async with (
        tcp_server(chunked) as place,
        secured({"/": trailing, "/server": f"http://{place}"}) as s,
        s.raw() as raw,
    ):
        for path in ("/", "/server"):
            raw.h2.send_headers(raw.h2.get_next_available_stream_id(), raw.head(path), end_stream=True)
            await raw.send()
            trailers = await raw.until(h2.events.TrailersReceived)
            assert [tuple(header) for header in trailers.headers] == [("x-sum", "5")]


async def test_server_that_is_gone_or_breaks_off_is_said(autojump_clock: trio.testing.MockClock) -> None:
    async def half(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf")
        await stream.aclose()

    async def nonsense(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"nonsense\r\n\r\n")
        await stream.aclose()

    async with tcp_server(half) as gone:
        pass
    async with tcp_server(half) as breaking, tcp_server(nonsense) as talking:
        mounts = {"/gone": f"http://{gone}", "/half": f"http://{breaking}", "/bad": f"http://{talking}"}
        async with secured(mounts) as s, s.client() as client:
            assert (await client.get("/gone")).status_code == 502
            assert (await client.get("/bad")).status_code == 502
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/half")
            assert (await client.get("/other")).status_code == 404  # the connection lives


async def test_client_that_gives_a_request_up_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    ends: list[str] = []

    async def patient(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await receive()
            ends.append((await receive())["type"])
            with suppress(ClientDisconnected):
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"late"})
                ends.append("sent")

    async with secured(patient) as s, s.raw() as raw:
        raw.h2.send_headers(1, raw.head("/"), end_stream=True)
        await raw.send()
        await trio.sleep(1)
        raw.h2.reset_stream(1)
        await raw.send()
        await trio.sleep(1)
    assert ends == ["http.disconnect"]


async def test_client_that_goes_is_told_to_every_app_which_may_tidy_up(autojump_clock: trio.testing.MockClock) -> None:
    ends: list[str] = []

    async def tidy(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await receive()
            assert (await receive())["type"] == "http.disconnect"
            await trio.sleep(5)
            ends.append(scope["path"])

    async with secured(tidy) as s:
        async with s.raw() as raw:
            for stream in (1, 3):
                raw.h2.send_headers(stream, raw.head(f"/{stream}"), end_stream=True)
            await raw.send()
            await trio.sleep(1)
        await trio.sleep(10)
    assert sorted(ends) == ["/1", "/3"]


@pytest.mark.parametrize(
    "head",
    [
        [(":method", "GET"), (":scheme", "https"), (":authority", "web"), (":path", "no/slash")],
        [(":method", "GET"), (":scheme", "https"), (":authority", "web"), (":path", "/a b")],
        [(":method", "CONNECT"), (":scheme", "https"), (":authority", "web"), (":path", "/")],
        [(":method", "G E T"), (":scheme", "https"), (":authority", "web"), (":path", "/")],
        [(":method", "GET"), (":scheme", "https"), (":authority", "web"), (":path", "/"), ("host", "other")],
    ],
    ids=range(5),
)
async def test_request_that_could_be_two_things_is_refused(
    autojump_clock: trio.testing.MockClock, head: list[tuple[str, str]]
) -> None:
    async with secured(app) as s, s.raw() as raw:
        raw.h2.config.validate_outbound_headers = raw.h2.config.normalize_outbound_headers = False
        raw.h2.send_headers(1, head, end_stream=True)
        await raw.send()
        answer = await raw.until(h2.events.ResponseReceived)
        assert answer is None or dict(answer.headers)[":status"] == "400"


@pytest.mark.parametrize("name", ["connection", "transfer-encoding", "Upper", "te"])
async def test_field_that_http2_forbids_ends_the_connection(autojump_clock: trio.testing.MockClock, name: str) -> None:
    async with secured(app) as s, s.raw() as raw:
        raw.h2.config.validate_outbound_headers = raw.h2.config.normalize_outbound_headers = False
        raw.h2.send_headers(1, [*raw.head("/"), (name, "chunked")], end_stream=True)
        await raw.send()
        assert (await raw.until(h2.events.ConnectionTerminated)) is not None


@pytest.mark.parametrize("deed", ["ping", "settings", "priority", "reset", "empty"])
async def test_frames_for_their_own_sake_end_the_connection(autojump_clock: trio.testing.MockClock, deed: str) -> None:
    asked = 0

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        nonlocal asked
        if scope["type"] == "http":
            asked += 1
            await trio.sleep_forever()

    async with secured(counting) as s, s.raw() as raw:
        if deed == "empty":
            raw.h2.send_headers(1, raw.head("/", "POST"))
        for number in range(PURSE + 100):
            if deed == "ping":
                raw.h2.ping(bytes(8))
            elif deed == "settings":
                raw.h2.update_settings({1: 4096 - number % 2})
            elif deed == "priority":
                raw.h2.prioritize(1, weight=16)
            elif deed == "reset":
                raw.h2.send_headers(2 * number + 1, raw.head("/"), end_stream=True)
                raw.h2.reset_stream(2 * number + 1)
            else:
                raw.h2.send_data(1, b"")
        with suppress(trio.BrokenResourceError):
            await raw.send()
        ended = await raw.until(h2.events.ConnectionTerminated)
        assert ended is None or ended.error_code == 11  # ENHANCE_YOUR_CALM
    assert asked <= 2 * PURSE // PRICE_OF_RESET


async def test_requests_that_were_given_up_count_while_their_app_runs(autojump_clock: trio.testing.MockClock) -> None:
    running = 0

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running
        if scope["type"] == "http":
            running += 1
            await trio.sleep_forever()

    async with secured({"/": stubborn, "/hi": text("hello")}) as s, s.raw() as raw:
        for number in range(STREAMS + 20):
            raw.h2.send_headers(4 * number + 1, raw.head("/"), end_stream=True)
            raw.h2.reset_stream(4 * number + 1)
            raw.h2.send_headers(4 * number + 3, raw.head("/hi"), end_stream=True)
            await raw.send()
            if await raw.until(h2.events.StreamReset | h2.events.StreamEnded) is None:
                break
    assert running == STREAMS


async def test_client_that_makes_no_room_loses_its_stream_and_nothing_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    began: list[float] = []

    async def sends(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            began.append(trio.current_time())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            with suppress(ClientDisconnected):
                await send({"type": "http.response.body", "body": bytes(1 << 20)})
            began.append(trio.current_time())

    async with secured({"/": sends, "/hi": text("hello")}, limits=Limits(stall_timeout=30)) as s, s.raw() as raw:
        raw.h2.send_headers(1, raw.head("/"), end_stream=True)
        await raw.send()
        gone = await raw.until(h2.events.StreamReset)
        assert gone.stream_id == 1
        raw.h2.increment_flow_control_window(1 << 20)
        raw.h2.send_headers(3, raw.head("/hi"), end_stream=True)
        await raw.send()
        assert (await raw.until(h2.events.DataReceived)).data == b"hello"
    assert began[1] - began[0] == pytest.approx(30, abs=1)


async def test_what_a_client_sends_ahead_is_bounded_by_its_window(autojump_clock: trio.testing.MockClock) -> None:
    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await trio.sleep_forever()

    async with secured(deaf) as s, s.raw() as raw:
        await raw.until(h2.events.WindowUpdated)  # the connection's, at its beginning
        raw.h2.send_headers(1, raw.head("/", "POST"))
        while (room := min(raw.h2.local_flow_control_window(1), FRAME_SIZE)) > 0:
            raw.h2.send_data(1, bytes(min(room, raw.h2.max_outbound_frame_size)))
        await raw.send()
        with trio.move_on_after(100) as waiting:
            await raw.until(h2.events.WindowUpdated)
        assert waiting.cancelled_caught


async def test_silence_ends_a_connection_and_a_request_keeps_it(autojump_clock: trio.testing.MockClock) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await trio.sleep(100)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

    async with secured(slow, limits=Limits(idle_timeout=20)) as s, s.raw() as raw:
        raw.h2.send_headers(1, raw.head("/"), end_stream=True)
        await raw.send()
        assert await raw.until(h2.events.ResponseReceived) is not None
        began = trio.current_time()
        assert (await raw.until(h2.events.ConnectionTerminated)).error_code == 0
        assert trio.current_time() - began == pytest.approx(20, abs=1)


async def test_shutdown_lets_open_requests_end(autojump_clock: trio.testing.MockClock) -> None:
    shutdown = trio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await trio.sleep(5)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

    async with Tailnet(certificates=True) as net, trio.open_nursery() as nursery:
        caller, device = await net.device("caller"), await net.device("web")
        await nursery.start(partial(serve, slow, device, 443, tls="tailnet", shutdown=shutdown))
        s = Secured(net, caller, device, Serve(device))
        async with s.raw() as raw:
            raw.h2.send_headers(1, raw.head("/"), end_stream=True)
            await raw.send()
            await trio.sleep(1)
            shutdown.set()
            await trio.sleep(1)
            raw.h2.send_headers(3, raw.head("/"), end_stream=True)
            await raw.send()
            assert (await raw.until(h2.events.StreamReset)).stream_id == 3
            assert (await raw.until(h2.events.ResponseReceived)).stream_id == 1
            assert await raw.until(h2.events.ConnectionTerminated) is not None


# --- towards servers of gRPC ------------------------------------------------------------------------


@asynccontextmanager
async def grpc_server(answer: Any) -> AsyncIterator[tuple[str, list[Head]]]:
    """A server that speaks HTTP/2 without TLS, and the heads of what it was asked."""
    heads: list[Head] = []

    async def attend(stream: trio.SocketStream) -> None:
        link = Link(stream, Http2Machine(is_client=False, head=1 << 16), 60)
        async with trio.open_nursery() as nursery:

            async def take(channel: Channel, head: Head) -> None:
                heads.append(head)
                scope = {"method": "POST", "path": dict(head.headers)[b":path"].decode(), "type": "http"}
                await StreamExchange(channel, scope, Limits()).run(answer)
                link.leave(channel)

            await link.run(partial(nursery.start_soon, take), 60)
            nursery.cancel_scope.cancel()

    async with tcp_server(attend) as place:
        yield f"http://{place}", heads


async def trailing_only(scope: Any, receive: Any, send: Any) -> None:
    """Echo with a status behind it; or of `/none`, the status alone."""
    status = (b"grpc-status", b"0")
    if scope["path"] == "/none":
        await send({"type": "http.response.start", "status": 200, "headers": [status]})
        await send({"type": "http.response.body"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
    while (message := await receive())["more_body"]:
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
    await send({"type": "http.response.body"})
    await send({"type": "http.response.trailers", "headers": [status]})


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto", "application/grpc;x=y"])
async def test_grpc_is_http2_to_the_end(autojump_clock: trio.testing.MockClock, kind: str) -> None:
    async with grpc_server(trailing_only) as (url, heads), secured(url) as s, s.raw() as raw:
        for stream in (1, 3):
            raw.h2.send_headers(stream, [*raw.head("/a.B/C", "POST"), ("content-type", kind), ("te", "trailers")])
            raw.h2.send_data(stream, b"hello", end_stream=True)
            await raw.send()
            assert (await raw.until(h2.events.DataReceived)).data == b"hello"
            assert [tuple(one) for one in (await raw.until(h2.events.TrailersReceived)).headers] == [
                ("grpc-status", "0")
            ]
        raw.h2.send_headers(5, [*raw.head("/none", "POST"), ("content-type", kind)], end_stream=True)
        await raw.send()
        only = await raw.until(h2.events.ResponseReceived)
        assert dict(only.headers)["grpc-status"] == "0"
        assert only.stream_ended is not None  # one frame: clients take nothing else for a status
        told = dict(heads[0].headers)
        assert told[b":scheme"] == b"http"
        assert told[b"te"] == b"trailers"
        assert told[b"tailscale-user-login"] == s.caller.node.user.encode()
        assert len(heads) == 3


async def test_what_is_nearly_grpc_goes_over_http1(autojump_clock: trio.testing.MockClock) -> None:
    echo = Echo()
    async with web_server(echo) as url, secured(url) as s, s.client() as client:
        assert (
            await client.post("/x", content=b"a", headers={"Content-Type": "application/grpc-web"})
        ).status_code == 200


async def test_server_that_speaks_no_http2_is_502_for_grpc(autojump_clock: trio.testing.MockClock) -> None:
    async def old(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        await stream.aclose()

    async with tcp_server(old) as place, secured(f"http://{place}") as s, s.client() as client:
        got = await client.post("/x", content=b"a", headers={"Content-Type": "application/grpc"})
        assert got.status_code == 502
