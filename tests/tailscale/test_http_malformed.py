"""What is not HTTP, too much of it, or too slow: refused with a sentence, never with a crash or a leak."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing
from http_scripts import Site, read_all, site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailscale.http import Limits
from tailscale.http1.exchange import HttpExchange
from tailscale.http1.limits import Limits as ServerLimits
from tailscale.http1.requests import next_request
from tailscale.http1.visits import Visits
from tailscale.http1.wire import Wire
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
        assert (await s.exchange(CHUNKED + b"zz\r\nnonsense")).startswith(b"HTTP/1.1 400 ")


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
LAX_ENDS = [
    b"0\r\n\n",
    b"0\r\nx: a\n\r\n",
    b"0\r\nx: a\r\n\n",
    b"0\r\nx: a\n\n",
    b"0\r\nx: a\r\n b\r\n\r\n",
    b"3\r\nabc\r\n0\r\nx: a\r\n\tb\r\n\r\n",
]


@pytest.mark.parametrize("piece", [1, 1000], ids=["byte by byte", "at once"])
@pytest.mark.parametrize("reads_body", [True, False])
@pytest.mark.parametrize("end", LAX_ENDS)
async def test_trailers_that_two_readers_could_take_differently_end_the_connection(
    end: bytes, reads_body: bool, piece: int
) -> None:
    async def answers(scope: Any, receive: Any, send: Any) -> None:
        while reads_body and (await receive()).get("more_body"):
            pass
        await app(scope, receive, send)

    stream = _Recording(CHUNKED + end + b"GET /second HTTP/1.1\r\nhost: x\r\n\r\n", piece)
    assert await _serve_all(Wire(stream, ServerLimits()), answers) == 1
    assert (b" 400 " in stream.answered) is reads_body


async def test_trailers_as_they_should_be_are_taken_and_the_next_request_follows(tailnet: Tailnet) -> None:
    async with site(tailnet, app) as s:
        ends = b"".join(CHUNKED + end for end in (b"0\r\n\r\n", b"3;ext\r\nabc\r\n0\r\nx: a\r\ny: b\r\n\r\n"))
        answer = await s.exchange(ends + b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 3


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
    """A client that says what it has in pieces and takes every answer."""

    def __init__(self, data: bytes, piece: int = 1 << 20) -> None:
        self._data, self._piece, self.answered = data, piece, b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data, self._data = self._data[: self._piece], self._data[self._piece :]
        return data

    async def send_all(self, data: Any) -> None:
        self.answered += bytes(data)

    async def wait_send_all_might_not_block(self) -> None: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...
    def abort(self) -> None: ...


async def _serve_all(wire: Wire, app: Any) -> int:
    """Every request of a connection; how many reached the app."""
    served = 0
    while (request := await next_request(wire, set())) is not None:
        served += 1
        scope = {"type": "http", "method": "GET", "path": "/"}
        if not await HttpExchange(wire, request, scope).run(app):
            break
        wire.http.start_next_cycle()
    return served


PIECES = st.sampled_from(
    [b"GET ", b"POST ", b"/ ", b"HTTP/1.1\r\n", b"HTTP/1.0\r\n", b"host: x\r\n", b"content-length: 3\r\n", b"\r\n",
     b"transfer-encoding: chunked\r\n", b"expect: 100-continue\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"abc", b"\x00", b"\xff"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=20).map(b"".join) | st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_end_in_an_answer_or_silence(data: bytes) -> None:
    async def main() -> bytes:
        stream = _Recording(data)
        await _serve_all(Wire(stream, ServerLimits()), app)
        return stream.answered

    answered = trio.run(main)
    assert not answered or answered.startswith(b"HTTP/1.1 ")


HOST = b"host: x\r\n"
LAX = [
    # what is sent                                                                     the answer's status
    (b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 4, 4\r\n\r\nabcd", 400),
    (b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 4\r\ncontent-length: 4\r\n\r\nabcd", 400),
    (b"GET / HTTP/1.1\nhost: x\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + HOST + b"x: a\ny: b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + HOST + b"\n", 400),
    (b"GET / HTTP/1.1\r\n" + HOST + b"x: a\r\n b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + HOST + b"x: a\r\n\tb\r\n\r\n", 400),
    (b"GET ftp://evil/adm HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    (b"GET etc HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    (b"GET http:///x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    (b"GET http://a@b/x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    (b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    (b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\nabc", 501),
    (b"POST / HTTP/1.1\r\n" + HOST + b"expect: 200-maybe\r\ncontent-length: 3\r\n\r\nabc", 417),
    (b"HEAD /a#b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
]  # fmt: skip


@pytest.mark.parametrize(("request_bytes", "status"), LAX)
async def test_what_two_readers_could_take_differently_is_refused_and_ends_the_connection(
    tailnet: Tailnet, caplog: pytest.LogCaptureFixture, request_bytes: bytes, status: int
) -> None:
    async with site(tailnet, app) as s:
        answer = await s.exchange(request_bytes + b"GET /second HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()
    assert not caplog.records


TARGETS = [
    # method     target                        host                path      query
    (b"GET",     b"/a?b=c",                    b"x",               b"/a",    b"b=c"),
    (b"GET",     b"http://evil?x=/admin",      b"evil",            b"/",     b"x=/admin"),
    (b"GET",     b"HTTPS://evil:1/a/b?c",      b"evil:1",          b"/a/b",  b"c"),
    (b"GET",     b"http://evil",               b"evil",            b"/",     b""),
    (b"OPTIONS", b"*",                         b"x",               b"*",     b""),
]  # fmt: skip


@pytest.mark.parametrize(("method", "target", "host", "path", "query"), TARGETS)
async def test_the_target_of_a_request_is_read_in_each_of_its_forms(
    tailnet: Tailnet, method: bytes, target: bytes, host: bytes, path: bytes, query: bytes
) -> None:
    seen: list[Any] = []

    async def tell(scope: Any, receive: Any, send: Any) -> None:
        seen.append((dict(scope["headers"])[b"host"], scope["raw_path"], scope["query_string"]))
        await app(scope, receive, send)

    async with site(tailnet, tell) as s:
        await s.exchange(method + b" " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert seen == [(host, path, query)]


async def test_a_pipelined_request_is_read_as_strictly_as_the_first(tailnet: Tailnet) -> None:
    async with site(tailnet, app) as s:
        good = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
        answer = await s.exchange(good + good + b"GET / HTTP/1.1\nhost: x\r\n\r\n" + good)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"400"]


@pytest.mark.slow
async def test_a_peer_with_a_thousand_silent_connections_does_not_shut_others_out(
    autojump_clock: trio.testing.MockClock, tailnet: Tailnet
) -> None:
    visits = Visits()
    async with site(tailnet, app, visits=visits) as s:
        crowd = [await s.connect() for _ in range(1001)]
        other = await tailnet.device("other")
        began = trio.current_time()
        async with await other.tcp_connect("web", 80) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        assert trio.current_time() - began < 2
        counted = visits.statistics()
        assert (counted.connections, counted.hung_up) == (1002, 751)
        assert counted.open <= 251
        for stream in crowd:
            stream.abort()


async def test_a_peer_whose_connections_are_all_busy_is_refused_more_and_counted(tailnet: Tailnet) -> None:
    go = trio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await go.wait()
        await app(scope, receive, send)

    visits = Visits()
    async with site(tailnet, slow, visits=visits, limits=Limits(connections_per_peer=1)) as s:
        async with await s.connect() as first:
            await first.send_all(b"GET / HTTP/1.0\r\n\r\n")
            while not visits.statistics().refused:
                with pytest.raises(trio.BrokenResourceError):  # by the dial already, if the reset is that quick
                    async with await s.connect() as second:
                        await second.receive_some()
            go.set()
            assert (await read_all(first)).endswith(b"ok")
        assert list(visits.statistics().refused) == [tailnet_id(s)]


def tailnet_id(s: Site) -> str:
    return s.server.peers[s.caller.hostname].stable_id


async def test_a_full_server_hangs_up_on_who_has_been_silent_longest(
    autojump_clock: trio.testing.MockClock, tailnet: Tailnet
) -> None:
    async with site(tailnet, app, limits=Limits(connections=2)) as s:
        first, second = await s.connect(), await s.connect()
        began = trio.current_time()
        async with await s.connect() as third:
            await third.send_all(b"GET / HTTP/1.0\r\n\r\n")
            assert (await read_all(third)).endswith(b"ok")
        assert 4 < trio.current_time() - began < 7
        assert await first.receive_some() == b""
        await first.aclose()
        await second.aclose()


@pytest.mark.slow
async def test_a_head_that_is_too_long_is_refused_also_in_one_piece() -> None:
    head = b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 20_000 + b"\r\n"
    with trio.fail_after(60):
        ours, theirs = trio.testing.memory_stream_pair()
        await ours.send_all(head)  # all of it is there at once
        assert await next_request(Wire(theirs, Limits()), set()) is None
        assert (await ours.receive_some()).startswith(b"HTTP/1.1 431")
