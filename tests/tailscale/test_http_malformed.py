"""What is not HTTP, too much of it, or too slow: refused with a sentence, never with a crash or a leak."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from http_scripts import read_all, site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailscale.http import Limits
from tailscale.http.exchange import HttpExchange
from tailscale.http.limits import Limits as ServerLimits
from tailscale.http.server import _Server
from tailscale.http.wire import Wire
from tailscale.testing import Tailnet


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS where there is none
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000, 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ],
)
async def test_what_is_not_http_is_refused(
    tailnet: Tailnet, caplog: pytest.LogCaptureFixture, request_bytes: bytes, status: int
) -> None:
    async with site(tailnet, app) as s:
        answer = await s.exchange(request_bytes)
        assert answer[:12] in (b"HTTP/1.1 %d" % status, b"HTTP/1.1 400", b"HTTP/1.1 505")
        assert b"connection: close" in answer.lower()
        assert (await s.client.get("/")).status_code == 200
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_body_that_lies_about_its_chunks_ends_the_connection(tailnet: Tailnet) -> None:
    async def reads(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await app(scope, receive, send)

    async with site(tailnet, reads) as s:
        head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        assert (await s.exchange(head + b"zz\r\nnonsense")).startswith(b"HTTP/1.1 400 ")


async def test_request_line_may_name_the_whole_url(tailnet: Tailnet) -> None:
    paths: list[str] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        paths.append(scope.get("path", ""))
        await app(scope, receive, send)

    async with site(tailnet, note) as s:
        await s.exchange(b"GET http://web/a?b HTTP/1.0\r\n\r\n")
        await s.exchange(b"GET http://web HTTP/1.0\r\n\r\n")
    assert paths[-2:] == ["/a", "/"]


async def test_ignored_body_costs_the_connection_only_when_it_is_large(tailnet: Tailnet) -> None:
    async with site(tailnet, app) as s:
        small = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n12345"
        assert (await s.exchange(small + b"GET / HTTP/1.0\r\n\r\n")).count(b"HTTP/1.1 200") == 2
        large = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 500000\r\n\r\n" + bytes(500_000)
        answer = await s.exchange(large)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"ok")


async def test_slow_head_and_idle_connection_are_closed(tailnet: Tailnet) -> None:
    async with site(tailnet, app, limits=Limits(head_timeout=0.1, idle_timeout=0.1)) as s:
        assert (await s.exchange(b"GET / HTTP/1.1\r\nho")).startswith(b"HTTP/1.1 408 ")
        assert await s.exchange(b"") == b""


async def test_stalled_body_and_stalled_reader_are_given_up(tailnet: Tailnet) -> None:
    seen: list[str] = []

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["method"] == "POST":
            seen.append((await receive())["type"])
            seen.append((await receive())["type"])
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        except OSError:
            seen.append("stalled")
            raise

    async with site(tailnet, reads, limits=Limits(stall_timeout=0.2)) as s:
        stalled = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc"
        assert b" 200 " not in await s.exchange(stalled)
        async with await s.connect() as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            with trio.fail_after(10):
                while len(seen) < 3:  # noqa: ASYNC110 - the app says when
                    await trio.sleep(0.02)
    assert seen == ["http.request", "http.disconnect", "stalled"]


async def test_connections_beyond_the_limit_wait_their_turn(tailnet: Tailnet) -> None:
    async with site(tailnet, app, limits=Limits(connections=1)) as s:
        first = await s.connect()
        async with await s.connect() as second:
            await second.send_all(b"GET / HTTP/1.0\r\n\r\n")
            with trio.move_on_after(0.1) as waiting:
                await second.receive_some()
            assert waiting.cancelled_caught
            await first.aclose()
            with trio.fail_after(5):
                assert (await read_all(second)).endswith(b"ok")


class _Recording(trio.abc.Stream):
    """A client that says all it has at once and takes every answer."""

    def __init__(self, data: bytes) -> None:
        self._data, self.answered = data, b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data, self._data = self._data, b""
        return data

    async def send_all(self, data: Any) -> None:
        self.answered += bytes(data)

    async def wait_send_all_might_not_block(self) -> None: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...
    def abort(self) -> None: ...


PIECES = st.sampled_from(
    [b"GET ", b"POST ", b"/ ", b"HTTP/1.1\r\n", b"HTTP/1.0\r\n", b"host: x\r\n", b"content-length: 3\r\n", b"\r\n",
     b"transfer-encoding: chunked\r\n", b"expect: 100-continue\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"abc", b"\x00", b"\xff"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=20).map(b"".join) | st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_end_in_an_answer_or_silence(data: bytes) -> None:
    async def main() -> bytes:
        stream = _Recording(data)
        wire = Wire(stream, ServerLimits())
        server = _Server(app, None, None, None, ServerLimits(), {})  # type: ignore[arg-type] # neither is asked here
        while (request := await server._next_request(wire)) is not None:
            scope = {"type": "http", "method": "GET", "path": "/"}
            if not await HttpExchange(wire, request, scope).run(app):
                break
            wire.http.start_next_cycle()
        return stream.answered

    answered = trio.run(main)
    assert not answered or answered.startswith(b"HTTP/1.1 ")
