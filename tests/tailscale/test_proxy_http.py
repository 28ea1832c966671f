"""The HTTP half of a proxy over raw bytes, in virtual time: tunnels, requests passed on, and what is refused."""

from __future__ import annotations

import base64
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from proxy_clients import (
    ECHO_PORT,
    Scene,
    bytewise,
    echoed,
    read_all,
    read_exactly,
    read_head,
    scene,
)
from tailnet_scripts import beside, held_by, until
from trio.testing import MockClock

from tailscale import TcpStream
from tailscale.proxy import ProxyLimits, Request
from tailscale.testing import Tailnet

WEB = 80
ALICE = b"Proxy-Authorization: Basic " + base64.b64encode(b"alice+session=shop:secret") + b"\r\n"


class Server:
    """A web server that answers as it is told and remembers what it was sent."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0

    async def serve(self, stream: TcpStream) -> None:
        self.connections += 1
        async with stream:
            try:
                while True:
                    self.requests.append(await read_head(stream))
                    self.bodies.append(await self._body(stream, self.requests[-1].lower()))
                    await stream.send_all(self.answer)
                    if b"connection: close" in self.answer.lower():
                        return
            except (AssertionError, trio.BrokenResourceError):
                return

    async def _body(self, stream: TcpStream, head: bytes) -> bytes:
        if b"content-length: " in head:
            return await read_exactly(stream, int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        body = b""
        if b"transfer-encoding: chunked" in head:
            while not body.endswith(b"\r\n\r\n"):
                body += await read_exactly(stream, 1)
        return body

    @property
    def last(self) -> list[bytes]:
        return sorted(self.requests[-1].strip().split(b"\r\n")[1:])


@asynccontextmanager
async def site(s: Scene, server: Server, port: int = WEB) -> AsyncIterator[Server]:
    listener = await s.web.listen(port)
    async with beside(partial(trio.serve_listeners, server.serve, [listener])):
        yield server


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


# --- CONNECT --------------------------------------------------------------------------------------


async def test_connect_makes_a_tunnel_and_keeps_what_came_with_it(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s:
        for host in ("web", s.web.ipv4 or "", f"[{s.web.ipv6}]", "web.tailnet.test."):
            request = f"CONNECT {host}:{ECHO_PORT} HTTP/1.1\r\nHost: {host}:{ECHO_PORT}\r\n\r\nahead".encode()
            for pieces in ([request], list(bytewise(request))):
                async with await s.connect() as stream:
                    for piece in pieces:
                        await stream.send_all(piece)
                    head = await read_head(stream)
                    assert head == b"HTTP/1.1 200 Connection established\r\n\r\n"
                    assert await read_exactly(stream, 5) == b"ahead"
                    assert await echoed(stream) == b"hello"
        assert s.proxy.statistics().requests == {"connect": 8}


async def test_connect_reads_no_request_behind_itself(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    """What is pipelined behind CONNECT belongs to the tunnel, or, where there is none, to nobody."""
    second = b"GET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n"
    async with scene(tailnet) as s, site(s, Server()) as server:
        async with await s.connect() as stream:
            await stream.send_all(b"CONNECT web:%d HTTP/1.0\r\n\r\n" % ECHO_PORT + second)
            await read_head(stream)
            assert await read_exactly(stream, len(second)) == second
        refused = await s.exchange(b"CONNECT web:9 HTTP/1.1\r\nHost: web\r\n\r\n" + second)
        assert status_of(refused) == 502
        assert refused.count(b"HTTP/1.1") == 1
        assert server.requests == []


IN_THE_WAY = (
    (b"nobody:80", 502, b"dns_error"),
    (b"8.8.8.8:80", 503, b"destination_ip_unroutable"),
    (b"web:9", 502, b"connection_refused"),
    (b"127.0.0.1:80", 403, b"http_request_denied"),
    (b"[::1]:80", 403, b"http_request_denied"),
    (b"169.254.169.254:80", 403, b"http_request_denied"),
    (b"desk:1080", 508, b"proxy_loop_detected"),
    (b"web:13", 403, b"http_request_denied"),  # by allow=
)


async def test_connect_says_what_stands_in_the_way(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet, allow=lambda request: request.port != 13) as s:
        for target, status, error in IN_THE_WAY:
            answer = await s.exchange(b"CONNECT " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status_of(answer) == status, target
            assert b'proxy-status: pytailscale; error=%s; details="' % error in answer
            assert b"connection: close" in answer
        counted = Counter(error.decode() for _, _, error in IN_THE_WAY)
        assert s.proxy.statistics().failures == dict(counted)


async def test_connect_tells_silence(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet, limits=ProxyLimits(dial=3)) as s:
        tailnet.block("desk", "web")
        tailnet.block("relay", "web")
        answer = await s.exchange(b"CONNECT web:80 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(answer) == 504
        assert b"error=connection_timeout" in answer


NOT_FOR_A_PROXY = (
    b"CONNECT web HTTP/1.1",  # no port
    b"CONNECT web: HTTP/1.1",
    b"CONNECT web:0 HTTP/1.1",
    b"CONNECT web:65536 HTTP/1.1",
    b"CONNECT web:+80 HTTP/1.1",
    b"CONNECT fd7a::1:80 HTTP/1.1",  # no brackets
    b"CONNECT alice@web:80 HTTP/1.1",
    b"CONNECT web%00:80 HTTP/1.1",
    b"CONNECT http://web/ HTTP/1.1",
    b"GET /page HTTP/1.1",
    b"POST / HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"GET web HTTP/1.1",
    b"GET http:///x HTTP/1.1",
    b"GET http://alice@web/ HTTP/1.1",
    b"GET http://web/#x HTTP/1.1",
    b"GET http://web:x/ HTTP/1.1",
)


async def test_request_line_that_is_no_proxys_is_answered_400(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s:
        for line in NOT_FOR_A_PROXY:
            assert status_of(await s.exchange(line + b"\r\nHost: web\r\n\r\n")) == 400, line
        assert s.proxy.statistics().requests == {}


NOT_SERVED = (
    (b"GET https://web/ HTTP/1.1", 501),
    (b"GET ftp://web/ HTTP/1.1", 501),
    (b"GET http://web/ HTTP/2.0", 505),
    (b"PRI * HTTP/2.0", 505),
    (b"GET / HTTP/1.1", 200),  # a person looks at the proxy with a browser
)


async def test_what_is_not_served_is_answered_by_its_own_status(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s:
        for line, status in NOT_SERVED:
            assert status_of(await s.exchange(line + b"\r\nHost: web\r\n\r\n")) == status, line


# --- smuggling ------------------------------------------------------------------------------------

POST = b"POST http://web/ HTTP/1.1\r\nHost: web\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


SMUGGLERS = (
    POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    POST + b"Content-Length: 5, 5\r\n\r\nhello",
    POST + b"Content-Length: +5\r\n\r\nhello",
    POST + b"Content-Length: -5\r\n\r\nhello",
    POST + b"Content-Length: 0x5\r\n\r\nhello",
    POST + b"Content-Length : 5\r\n\r\nhello",
    POST + b"Content-Length: 5\r\n 6\r\n\r\nhello",  # obs-fold
    POST + b"X: a\rContent-Length: 5\r\n\r\nhello",  # bare CR
    POST + b"X: a\nContent-Length: 5\r\n\r\nhello",  # bare LF
    POST + b"X: a\r\n\tb\r\n\r\n",
    POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Host: other\r\n\r\n",
    POST + b"X\0: a\r\n\r\n",
    b"POST http://web/ HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",  # no Host
    b"CONNECT web:7 HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello",
    b"CONNECT web:7 HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
)
SMUGGLED = b"GET http://web/smuggled HTTP/1.1\r\nHost: web\r\n\r\n"


async def test_what_two_readers_could_end_differently_is_answered_400_and_closed(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    async with scene(tailnet) as s, site(s, Server()) as server:
        for request in SMUGGLERS:
            for pieces in ([request + SMUGGLED], list(bytewise(request + SMUGGLED, 9))):
                answer = (await s.exchange(*pieces)).removesuffix(b"<reset>")
                assert status_of(answer) == 400, request
                assert answer.count(b"HTTP/1.1 ") == 1, request
        assert server.requests == []


async def test_body_that_two_readers_could_end_differently_reaches_no_server_whole(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    async with scene(tailnet) as s, site(s, Server()) as server:
        for end in (b"0\r\n\n", b"0\r\nx: a\n\r\n", b"0\r\nx: a\r\n b\r\n\r\n", b"zz\r\n", b"-1\r\n"):
            answer = (await s.exchange(CHUNKED + end + SMUGGLED)).removesuffix(b"<reset>")
            assert status_of(answer) == 400, end
            assert answer.count(b"HTTP/1.1 ") == 1, end
        assert not [r for r in server.requests if b"smuggled" in r]
        assert server.bodies == []


async def test_chunk_extensions_end_here(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s, site(s, Server()) as server:
        body = b'3;name="a;b"\r\nabc\r\n0;x\r\nX-Sum: 7\r\nContent-Length: 9\r\n\r\n'
        assert b"200 OK" in await s.exchange(CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
        assert server.bodies == [b"3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n"]


async def test_head_has_64_kib_and_not_one_byte_more(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    start, end = b"GET http://web/ HTTP/1.1\r\nHost: web\r\nConnection: close\r\nX: ", b"\r\n\r\n"
    room = (64 << 10) - len(start + end)
    async with scene(tailnet) as s, site(s, Server()):
        assert status_of(await s.exchange(start + b"y" * room + end)) == 200
        assert status_of(await s.exchange(start + b"y" * (room + 1) + end)) == 431
        assert status_of(await s.exchange(start + b"y" * 500_000)) == 431


async def test_head_has_twenty_seconds(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s:
        began = trio.current_time()
        assert status_of(await s.exchange(b"GET http://web/ HTTP/1.1\r\nHost: w")) == 408
        assert 19 < trio.current_time() - began < 23


# --- requests passed on ---------------------------------------------------------------------------


async def test_request_is_passed_on_without_what_concerns_the_proxy_only(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    server = Server(
        b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nKeep-Alive: timeout=5\r\nConnection: x-private\r\n"
        b"X-Private: 1\r\nProxy-Authenticate: Basic\r\nX-Public: 2\r\n\r\nok"
    )
    async with scene(tailnet) as s, site(s, server), await s.connect() as stream:
        await stream.send_all(
            b"GET HTTP://web:80/a?b=c HTTP/1.1\r\nHost: evil\r\nProxy-Connection: keep-alive\r\nProxy-Foo: 1\r\n"
            b"Connection: keep-alive, X-Hop, Host, content-length\r\nX-Hop: 1\r\nTE: trailers\r\nKeep-Alive: 5\r\n"
            b"Upgrade-Insecure-Requests: 1\r\nAccept: a\r\nAccept: b\r\nVia: 1.0 fred\r\n\r\n"
        )
        answer = await read_head(stream)
        assert await read_exactly(stream, 2) == b"ok"
    assert server.requests[-1].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert sorted(line.lower() for line in server.last) == [
        b"accept: a",
        b"accept: b",
        b"host: web:80",
        b"upgrade-insecure-requests: 1",
        b"via: 1.0 fred",
        b"via: 1.1 pytailscale",
    ]
    assert sorted(line.lower() for line in answer.strip().split(b"\r\n")[1:]) == [
        b"content-length: 2",
        b"via: 1.1 pytailscale",
        b"x-public: 2",
    ]
    assert answer.startswith(b"HTTP/1.1 200 Fine\r\n")


async def test_every_method_is_passed_on_and_bodies_with_it(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    methods = (b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"PROPFIND", b"OPTIONS", b"HEAD")
    async with scene(tailnet) as s, site(s, Server()) as server, await s.connect() as stream:
        for method, body in itertools.product(methods, (b"", b"x" * 100_000)):
            if method == b"HEAD":
                server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
            head = b"%s http://web HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % (method, len(body))
            await stream.send_all(head + body)
            assert status_of(await read_head(stream)) == 200
            if method != b"HEAD":
                assert await read_exactly(stream, 2) == b"ok"
            assert server.bodies[-1] == body
            assert server.requests[-1].split()[:2] == [method, b"*" if method == b"OPTIONS" else b"/"]
        assert server.connections == 1  # kept for the next request of the same client


async def test_requests_of_one_client_to_two_servers_take_two_connections(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    first, second = Server(), Server()
    async with scene(tailnet) as s, site(s, first), site(s, second, 81), await s.connect() as stream:
        pipelined = b"".join(b"GET http://web:%d/ HTTP/1.1\r\nHost: web\r\n\r\n" % port for port in (80, 81, 80, 80))
        await stream.send_all(pipelined)
        for _ in range(4):
            assert status_of(await read_head(stream)) == 200
            assert await read_exactly(stream, 2) == b"ok"
    assert (first.connections, second.connections) == (2, 1)
    assert len(first.requests) == 3


@pytest.mark.parametrize(
    ("answer", "received"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end", b"d\r\nuntil the end\r\n0\r\n\r\n"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"
            b"5\r\nhello\r\n0\r\nX: 1\r\n\r\n",
            b"5\r\nhello\r\n0\r\nx: 1\r\n\r\n",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", b""),
        (b"HTTP/1.0 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    ],
)
async def test_answer_is_framed_anew(
    tailnet: Tailnet, autojump_clock: MockClock, answer: bytes, received: bytes
) -> None:
    async with scene(tailnet) as s, site(s, Server(answer)), await s.connect() as stream:
        for _ in range(2):
            await stream.send_all(b"GET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n")
            head = (await read_head(stream)).lower()
            assert not (b"content-length" in head and b"transfer-encoding" in head)
            got = await read_exactly(stream, len(received))
            assert got == received or got.lower() == received


@pytest.mark.parametrize(
    ("answer", "is_cut"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nhalf", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhel", True),
        (b"nonsense connection: close\r\n\r\n", False),
        (b"HTTP/1.1 101 Whatever\r\nUpgrade: x\r\nConnection: close, upgrade\r\n\r\n", False),  # nobody asked
    ],
)
async def test_answer_that_breaks_off_is_never_taken_for_whole(
    tailnet: Tailnet, autojump_clock: MockClock, answer: bytes, is_cut: bool
) -> None:
    async with scene(tailnet) as s, site(s, Server(answer)):
        got = await s.exchange(b"GET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n")
        if is_cut:
            assert got.endswith(b"<reset>")
        else:
            assert status_of(got) == 502
            assert b"error=connection_terminated" in got


async def test_server_that_only_ever_announces_an_answer_is_left(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    async with scene(tailnet) as s, site(s, Server(early * 1000)):
        got = await s.exchange(b"GET http://web/ HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
    *interim, final = got.split(b"HTTP/1.1 ")[1:]
    assert [head[:3] for head in interim] == [b"103"] * 100
    assert final.startswith(b"502")


async def test_expectation_is_passed_on_and_so_is_the_go_ahead(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    seen = b""

    async def careful(stream: TcpStream) -> None:
        nonlocal seen
        async with stream:
            seen = await read_head(stream)
            await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n")
            body = await read_exactly(stream, 5)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)

    async with scene(tailnet) as s:
        listener = await s.web.listen(WEB)
        async with beside(partial(trio.serve_listeners, careful, [listener])), await s.connect() as stream:
            await stream.send_all(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            assert status_of(await read_head(stream)) == 100
            assert status_of(await read_head(stream)) == 103
            await stream.send_all(b"hello")
            assert status_of(await read_head(stream)) == 200
            assert await read_exactly(stream, 5) == b"hello"
    assert b"expect: 100-continue" in seen.lower()


async def test_answer_that_comes_before_the_whole_request_is_passed_on(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    async def strict(stream: TcpStream) -> None:
        async with stream:
            await read_head(stream)
            await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await stream.send_eof()
            await read_all(stream)

    async with scene(tailnet) as s:
        listener = await s.web.listen(WEB)
        async with beside(partial(trio.serve_listeners, strict, [listener])):
            answer = await s.exchange(POST + b"Content-Length: 1000000\r\n\r\n" + bytes(1000))
            assert status_of(answer) == 413


async def test_upgrade_passes_through_and_becomes_a_tunnel(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    seen = b""

    async def switching(stream: TcpStream) -> None:
        nonlocal seen
        async with stream:
            seen = await read_head(stream)
            await stream.send_all(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: x\r\n\r\nfirst"
            )
            async for data in stream:
                await stream.send_all(data.upper())

    async with scene(tailnet) as s:
        listener = await s.web.listen(WEB)
        async with beside(partial(trio.serve_listeners, switching, [listener])), await s.connect() as stream:
            await stream.send_all(
                b"GET http://web/chat HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, Upgrade\r\n"
                b"Upgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\nahead"
            )
            head = (await read_head(stream)).lower()
            assert head.startswith(b"http/1.1 101 ")
            assert b"connection: upgrade" in head
            assert b"upgrade: websocket" in head
            assert await read_exactly(stream, 5) == b"first"
            assert await read_exactly(stream, 5) == b"AHEAD"
            assert (await echoed(stream, b"again")).lower() == b"again"
            assert s.proxy.statistics().carried == 1
    assert b"upgrade: websocket" in seen.lower()


async def test_request_that_comes_back_is_a_loop(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s:
        for via in (b"1.1 pytailscale", b"1.0 fred, 1.1 PyTailscale (x)"):
            answer = await s.exchange(b"GET http://web/ HTTP/1.1\r\nHost: web\r\nVia: " + via + b"\r\n\r\n")
            assert status_of(answer) == 508
            assert b"error=proxy_loop_detected" in answer
        assert status_of(await s.exchange(b"GET http://desk:1080/ HTTP/1.1\r\nHost: desk\r\n\r\n")) == 508


async def test_trace_stops_where_max_forwards_says(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    ask = b"%s http://web/ HTTP/1.1\r\nHost: web\r\nConnection: close\r\nMax-Forwards: %d\r\n\r\n"
    async with scene(tailnet) as s, site(s, Server()) as server:
        assert status_of(await s.exchange(ask % (b"TRACE", 0))) == 405
        assert status_of(await s.exchange(ask % (b"OPTIONS", 0))) == 200
        assert server.requests == []
        assert status_of(await s.exchange(ask % (b"TRACE", 3))) == 200
        assert b"max-forwards: 2" in server.requests[-1].lower()


async def test_client_that_goes_while_the_server_thinks_ends_the_request(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    gone = trio.Event()

    async def thinking(stream: TcpStream) -> None:
        await read_head(stream)
        try:
            await stream.receive_some()
        except trio.BrokenResourceError:
            gone.set()

    async with scene(tailnet) as s:
        listener = await s.web.listen(WEB)
        async with beside(partial(trio.serve_listeners, thinking, [listener])):
            stream = await s.connect()
            await stream.send_all(b"GET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n")
            await trio.sleep(5)
            stream.abort()
            with trio.fail_after(1):
                await gone.wait()
            await until(lambda: s.proxy.statistics().open == 0)


async def test_client_that_goes_while_we_dial_ends_the_dial(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s:
        tailnet.block("desk", "web")
        tailnet.block("relay", "web")
        for request in (b"CONNECT web:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET http://web/ HTTP/1.1\r\nHost: x\r\n\r\n"):
            stream = await s.connect()
            await stream.send_all(request)
            await until(lambda: held_by(s.desk)["dials"] == 1)
            stream.abort()
            await until(lambda: held_by(s.desk)["dials"] == 0, 1.0)


# --- who asks -------------------------------------------------------------------------------------


async def test_login_is_asked_for_and_the_session_is_told(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    seen: list[Request] = []

    def note(request: Request) -> bool:
        seen.append(request)
        return True

    connect = b"CONNECT web:%d HTTP/1.1\r\nHost: web\r\n" % ECHO_PORT
    get = b"GET http://web/ HTTP/1.1\r\nHost: web\r\nConnection: close\r\n"
    async with scene(tailnet, users={"alice": "secret"}, allow=note) as s, site(s, Server()) as server:
        for head in (connect, get):
            answer = await s.exchange(head + b"\r\n")
            assert status_of(answer) == 407
            assert b'proxy-authenticate: Basic realm="pytailscale"' in answer
            for wrong in (b"Basic !!!", b"Basic", b"Bearer x", b"Basic " + base64.b64encode(b"alice:wrong")):
                assert status_of(await s.exchange(head + b"Proxy-Authorization: " + wrong + b"\r\n\r\n")) == 407
        assert status_of(await s.exchange(connect + ALICE + b"\r\nhello", eof=True)) == 200
        assert status_of(await s.exchange(get + ALICE + b"\r\n")) == 200
        assert b"authorization" not in server.requests[-1].lower()
    assert [(r.kind, r.user, r.session, r.method) for r in seen] == [
        ("connect", "alice", "shop", "CONNECT"),
        ("http", "alice", "shop", "GET"),
    ]


async def test_nothing_of_a_password_is_logged(
    tailnet: Tailnet, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with scene(tailnet, users={"alice": "secret"}) as s:
        await s.exchange(b"CONNECT web:9 HTTP/1.1\r\nHost: web\r\n" + ALICE + b"\r\n")
        wrong = base64.b64encode(b"alice:hunter2")
        await s.exchange(b"CONNECT web:9 HTTP/1.1\r\nHost: web\r\nProxy-Authorization: Basic " + wrong + b"\r\n\r\n")
        await s.exchange(b"\5\1\2\1\5alice\7hunter2")
    for word in ("hunter2", "secret", wrong.decode(), base64.b64encode(b"alice+session=shop:secret").decode()):
        assert word not in caplog.text
