"""WSGI apps served on the tailnet: the environ, bodies both ways, and apps and clients that do as they please."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import httpx
import pytest
import trio
from http_scripts import site

from tailscale.http import environ as environs
from tailscale.http import serve_wsgi
from tailscale.http.wsgi import IN_MEMORY, LARGEST_BODY, WHOLE_BODY, WsgiApp
from tailscale.testing import Tailnet

Answer = Callable[..., Any]
FORGED = [
    ("Tailscale-User-Login", "root@evil"),
    ("tailscale_user_login", "root@evil"),
    ("TAILSCALE-user_LOGIN", "root@evil"),
    ("Tailscale-User-Login", "again@evil"),
    ("X_Forwarded_For", "1.2.3.4"),
    ("Proxy", "http://evil"),
    ("X-Fine", "a"),
    ("X-Fine", "b"),
]


def wsgi(app: Any, threads: int = 4, largest_body: int = LARGEST_BODY) -> WsgiApp:
    return WsgiApp(app, threads, largest_body)


def plain(environ: Any, start_response: Answer) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ['QUERY_STRING']}".encode()]


def reads_all(environ: Any, start_response: Answer) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [f"{len(body)} {environ.get('CONTENT_LENGTH')} {sum(body) % 251}".encode()]


async def pieces(count: int, size: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number]) * size


@pytest.mark.slow
async def test_the_standard_librarys_validator_finds_nothing(tailnet: Tailnet) -> None:
    def app(environ: Any, start_response: Answer) -> Iterator[bytes]:
        environ["wsgi.input"].read(10)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"a", b"", b"b"])

    async with site(tailnet, wsgi(validator(app))) as s:
        assert (await s.client.get("/x?y=z")).text == "ab"
        assert (await s.client.post("/x", content=bytes(WHOLE_BODY + 1))).text == "ab"


async def test_environ_is_true_and_what_a_client_forges_is_out(tailnet: Tailnet) -> None:
    seen: list[Any] = []

    def app(environ: Any, start_response: Answer) -> list[bytes]:
        seen.append(environ)
        return plain(environ, start_response)

    async with site(tailnet, wsgi(app)) as s:
        got = await s.client.get("/a%20b%C3%BC?x=%31", headers=[*FORGED, ("Cookie", "a=1"), ("Cookie", "b=2")])
        assert got.text == "GET /a b\u00c3\u00bc x=%31"
        assert got.headers["content-length"] == str(len(got.content))
        environ = seen[0]
        assert (environ["REMOTE_ADDR"], environ["SERVER_NAME"], environ["SERVER_PORT"]) == (
            s.caller.ipv4,
            s.server.ipv4,
            "80",
        )
        assert environ["wsgi.url_scheme"] == "http"
        assert environ["tailscale.user"] == environ["HTTP_TAILSCALE_USER_LOGIN"] == s.caller.node.user
        assert environ["tailscale.caller"]["hostname"] == environ["tailscale.hostname"] == "caller"
        assert (environ["HTTP_X_FINE"], environ["HTTP_COOKIE"]) == ("a,b", "a=1; b=2")
        assert "evil" not in repr(environ)
        assert not {"HTTP_X_FORWARDED_FOR", "HTTP_PROXY"} & environ.keys()


@pytest.mark.slow
async def test_bodies_of_every_size_and_framing(tailnet: Tailnet) -> None:
    async with site(tailnet, wsgi(reads_all)) as s:
        for size in (0, 1, WHOLE_BODY, WHOLE_BODY + 1, 3 << 20):
            got = await s.client.post("/", content=b"\x01" * size)
            assert got.text.split()[0] == str(size)
        for count, size in ((3, 5), (40, IN_MEMORY // 32)):  # in chunks: it has a length by then
            got = await s.client.post("/", content=pieces(count, size))
            assert got.text.split()[:2] == [str(count * size)] * 2


async def test_a_large_upload_is_read_while_it_comes_and_an_answer_leaves_while_it_is_made(tailnet: Tailnet) -> None:
    has_read, may_go_on = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Answer) -> Iterator[bytes]:
        assert environ["wsgi.input"].readline() == b"first\n"
        start_response("200 OK", [])
        yield b"one"
        has_read.set()
        assert may_go_on.wait(10)
        yield str(len(environ["wsgi.input"].read())).encode()

    async with site(tailnet, wsgi(app)) as s:
        with trio.fail_after(10):
            async with await s.connect() as stream:
                rest = bytes(200_000)
                await stream.send_all(
                    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200006\r\n\r\nfirst\n" + rest[:80_000]
                )
                heard = b""
                while b"one" not in heard:
                    heard += await stream.receive_some()
                assert await trio.to_thread.run_sync(has_read.wait, 10)
                may_go_on.set()
                await stream.send_all(rest[80_000:])
                while b"200000" not in heard:
                    heard += await stream.receive_some()


async def test_too_large_a_body_is_413_before_the_app_is_called(tailnet: Tailnet) -> None:
    async with site(tailnet, wsgi(reads_all, largest_body=1000)) as s:
        assert (await s.client.post("/", content=bytes(1000))).status_code == 200
        assert (await s.client.post("/", content=bytes(1001))).status_code == 413
        assert (await s.client.post("/", content=pieces(2, 501))).status_code == 413


async def test_head_has_the_length_and_no_body(tailnet: Tailnet) -> None:
    async with site(tailnet, wsgi(plain)) as s:
        got = await s.client.head("/abc")
        assert (got.content, got.headers["content-length"]) == (b"", str(len("HEAD /abc ")))


async def test_expectation_is_met_when_the_body_is_read(tailnet: Tailnet) -> None:
    async with site(tailnet, wsgi(reads_all)) as s:
        with trio.fail_after(10):
            async with await s.connect() as stream:
                await stream.send_all(
                    b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n"
                    b"Connection: close\r\n\r\n"
                )
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 100")
                await stream.send_all(b"abc")
                assert b"200" in await stream.receive_some()


def says_nothing(environ: Any, start_response: Answer) -> Any:
    return None


def never_starts(environ: Any, start_response: Answer) -> Any:
    return [b"x"]


def starts_twice(environ: Any, start_response: Answer) -> Any:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return [b"x"]


def answers_text(environ: Any, start_response: Answer) -> Any:
    start_response("200 OK", [])
    return ["text"]


def bad_status(environ: Any, start_response: Answer) -> Any:
    start_response("fine", [])
    return [b"x"]


def interim_status(environ: Any, start_response: Answer) -> Any:
    start_response("100 Continue", [])
    return [b"x"]


def hop_by_hop(environ: Any, start_response: Answer) -> Any:
    start_response("200 OK", [("Transfer-Encoding", "chunked")])
    return [b"x"]


def splits_a_header(environ: Any, start_response: Answer) -> Any:
    start_response("200 OK", [("X", "a\r\nY: b")])
    return [b"x"]


def raises(environ: Any, start_response: Answer) -> Any:
    raise ValueError("in the app")


def exits(environ: Any, start_response: Answer) -> Any:
    raise SystemExit(3)


def interrupts(environ: Any, start_response: Answer) -> Any:
    raise KeyboardInterrupt


def raises_while_iterated(environ: Any, start_response: Answer) -> Any:
    start_response("200 OK", [])
    raise ValueError("in the generator")
    yield b"x"


class RaisesOnClose:
    def __init__(self, environ: Any, start_response: Answer) -> None:
        start_response("200 OK", [("Content-Length", "1")])

    def __iter__(self) -> Iterator[bytes]:
        return iter([])

    def close(self) -> None:
        raise ValueError("in close")


BAD = [
    *(says_nothing, never_starts, starts_twice, answers_text, bad_status, interim_status, hop_by_hop),
    *(splits_a_header, raises, exits, interrupts, raises_while_iterated, RaisesOnClose),
]


async def test_apps_that_fail_cost_their_request_only(tailnet: Tailnet, caplog: pytest.LogCaptureFixture) -> None:
    apps = {app.__name__: app for app in (*BAD, plain)}

    def app(environ: Any, start_response: Answer) -> Any:
        return apps[environ["PATH_INFO"].strip("/")](environ, start_response)

    async with site(tailnet, wsgi(app)) as s:
        with caplog.at_level(logging.ERROR, "tailscale.http"):
            for bad in BAD:
                assert (await s.client.get(f"/{bad.__name__}")).status_code == 500, bad
        assert len([record for record in caplog.records if record.name == "tailscale.http"]) == len(BAD)
        assert (await s.client.get("/plain")).status_code == 200


async def test_an_answer_that_breaks_off_is_reset_and_closed(tailnet: Tailnet) -> None:
    closed = threading.Event()

    class Breaks:
        def __iter__(self) -> Iterator[bytes]:
            yield b"half"
            raise ValueError("after the start")

        def close(self) -> None:
            closed.set()

    def app(environ: Any, start_response: Answer) -> Any:
        start_response("200 OK", [("Content-Length", "8")])
        return Breaks()

    async with site(tailnet, wsgi(app)) as s:
        with pytest.raises(httpx.TransportError):
            await s.client.get("/")
        assert await trio.to_thread.run_sync(closed.wait, 10)


async def test_write_and_a_second_start_with_exc_info(tailnet: Tailnet) -> None:
    def writes(environ: Any, start_response: Answer) -> Any:
        write = start_response("200 OK", [])
        write(b"by write, ")
        return [b"by iteration"]

    def changes_its_mind(environ: Any, start_response: Answer) -> Any:
        start_response("200 OK", [("X", "y")])
        try:
            raise ValueError("late")
        except ValueError as error:
            start_response("503 Later", [], (ValueError, error, None))
        return [b"sorry"]

    def app(environ: Any, start_response: Answer) -> Any:
        return (writes if environ["PATH_INFO"] == "/writes" else changes_its_mind)(environ, start_response)

    async with site(tailnet, wsgi(app)) as s:
        assert (await s.client.get("/writes")).text == "by write, by iteration"
        got = await s.client.get("/mind")
        assert (got.status_code, got.text, "x" in got.headers) == (503, "sorry", False)


@pytest.mark.slow
async def test_a_file_wrapper_sends_a_file(tailnet: Tailnet) -> None:
    def app(environ: Any, start_response: Answer) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](io.BytesIO(bytes(100_000)))

    async with site(tailnet, wsgi(app)) as s:
        assert len((await s.client.get("/")).content) == 100_000


async def test_one_caller_leaves_a_thread_to_others_and_stuck_threads_are_counted(
    tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = threading.Event()
    is_in = threading.Semaphore(0)

    def app(environ: Any, start_response: Answer) -> Any:
        if environ["PATH_INFO"] == "/slow":
            is_in.release()
            stuck.wait(20)
        return plain(environ, start_response)

    monkeypatch.setattr("tailscale.http.wsgi.THREAD_PATIENCE", 0.1)
    async with site(tailnet, wsgi(app, threads=2)) as s, trio.open_nursery() as nursery:
        other = await tailnet.device("other")
        try:
            nursery.start_soon(s.client.get, "/slow")
            assert await trio.to_thread.run_sync(is_in.acquire, True, 10)
            assert (await s.client.get("/")).status_code == 503  # all but one are this caller's
            with trio.fail_after(10):
                async with await other.tcp_connect("web", 80) as stream:
                    await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert b"200" in await stream.receive_some()
        finally:
            stuck.set()
        with trio.fail_after(10):
            while (await s.client.get("/")).status_code != 200:
                pass


async def test_a_client_that_goes_in_the_middle_of_its_body_is_an_error_in_read(tailnet: Tailnet) -> None:
    seen: list[BaseException] = []
    over = threading.Event()

    def app(environ: Any, start_response: Answer) -> Any:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            seen.append(error)
            raise
        finally:
            over.set()
        return []

    async with site(tailnet, wsgi(app)) as s:
        async with await s.connect() as stream:
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(WHOLE_BODY))
        assert await trio.to_thread.run_sync(over.wait, 10)
        assert isinstance(seen[0], ConnectionResetError)


async def test_a_thread_whose_server_is_gone_gets_an_error_from_write(tailnet: Tailnet) -> None:
    seen: list[BaseException] = []
    is_in, may_write, over = threading.Event(), threading.Event(), threading.Event()

    def app(environ: Any, start_response: Answer) -> Any:
        write = start_response("200 OK", [])
        is_in.set()
        may_write.wait(10)
        try:
            write(b"too late")
        except BaseException as error:
            seen.append(error)
            raise
        finally:
            over.set()

    async with site(tailnet, wsgi(app)) as s:
        async with await s.connect() as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await trio.to_thread.run_sync(is_in.wait, 10)
    may_write.set()
    assert await trio.to_thread.run_sync(over.wait, 10)
    assert isinstance(seen[0], ConnectionResetError)


async def test_websocket_upgrade_is_a_plain_request_to_a_wsgi_app(tailnet: Tailnet) -> None:
    async with site(tailnet, wsgi(plain)) as s:
        got = await s.exchange(
            b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert got.startswith(b"HTTP/1.1 200")
        assert b"GET /x " in got


def test_environ_of_another_server_is_cleaned() -> None:
    environ = {
        "HTTP_TAILSCALE_USER_LOGIN": "root@evil",
        "HTTP_Tailscale-User_Login": "root@evil",
        "tailscale.user": "root@evil",
        "HTTP_HOST": "x",
    }
    assert environs.with_identity(environ, None) == {"HTTP_HOST": "x"}


async def test_serve_wsgi_says_where_it_is(tailnet: Tailnet) -> None:
    device = await tailnet.device("web")
    async with trio.open_nursery() as nursery:
        assert await nursery.start(serve_wsgi, plain, device) == "http://web.tailnet.test"
        nursery.cancel_scope.cancel()
    with pytest.raises(ValueError, match="threads is 1 or more"):
        serve_wsgi(plain, device, threads=0)
