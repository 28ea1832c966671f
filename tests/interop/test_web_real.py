"""Real web frameworks on our server, and real web servers with our middlewares: Django, Quart, Datasette, FastAPI,
Flask; uvicorn, hypercorn, gunicorn, waitress, werkzeug. Two devices each time, and a caller who lies about himself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from tailscale import aio, http, sync
from tailscale.http import IdentityMiddleware, ReverseProxy, WsgiIdentityMiddleware
from tailscale.testing.threaded import TailnetThread
from tests.interop import web_apps
from tests.interop.processes import PORTS
from tests.interop.test_real_clients import lacking, library, postgres
from tests.interop.web_apps import FORGED, FORWARDED
from tests.tailscale.thread_scripts import introduce

pytestmark = [pytest.mark.interop, pytest.mark.peerless]
__all__ = ["postgres"]  # its fixture is ours too
USER = "user@tailnet.test"
TRUE = {"node": "caller", "user": USER, "logins": [USER], "evil": False}
NOBODY = {"node": None, "user": None, "logins": [], "evil": False}
HOSTILE = [
    b"GET / HTTP/1.1\r\nHost: x\r\nTailscale-User-Login:\r\n root@evil\r\n\r\n",  # folded
    b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET http://u@x/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.fixture(scope="module")
def caller(net: TailnetThread) -> Iterator[sync.Device]:
    with sync.Device("caller", **net.options()) as device:
        yield device


@pytest.fixture
def web(net: TailnetThread, caller: sync.Device) -> Iterator[sync.Device]:
    """A device whose server is no asyncio program."""
    with sync.Device("web", **net.options()) as device:
        introduce(caller, device)
        yield device


@contextlib.contextmanager
def asking(caller: sync.Device, host: str, port: int = 80) -> Iterator[httpx.Client]:
    transport = http.Transport(caller)
    with httpx.Client(transport=transport, base_url=f"http://{host}:{port}", timeout=20) as client:
        yield client


def who(client: httpx.Client, path: str = "/", more: Any = ()) -> dict[str, Any]:
    got = client.get(path, headers=[*FORGED, *more])
    assert got.status_code == 200, got.text
    told: dict[str, Any] = got.json()
    return told


def try_everything(client: httpx.Client, caller: sync.Device) -> None:
    """Who calls, an upload, an upload in chunks, a stream, a view that fails; then callers who are no good."""
    assert who(client).items() >= TRUE.items()
    assert client.post("/upload", content=bytes(700_000)).json() == {"size": 700_000}
    assert client.post("/upload", content=(bytes(10_000) for _ in range(30))).json() == {"size": 300_000}
    stream = client.get("/stream")
    assert (stream.status_code, len(stream.content)) in ((200, 1_000_000), (404, len(stream.content)))
    assert client.get("/bad").status_code == 500
    assert client.head("/").content == b""
    for bad in HOSTILE:
        with caller.connect("web", 80, timeout=20) as sock:
            sock.sendall(bad)
            assert sock.recv(100).startswith(b"HTTP/1.1 400")
    with caller.connect("web", 80, timeout=20) as sock:
        sock.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf of it")
    assert client.get("/").status_code == 200


def under_asyncio(
    net: TailnetThread, caller: sync.Device, serve: Callable[[aio.Device, Callable[[str], object]], Awaitable[None]],
    check: Callable[[], None],
) -> None:  # fmt: skip
    async def main() -> None:
        async with asyncio.timeout(60), aio.Device("web", **net.options()) as device:
            while device.hostname not in [node.hostname for node in caller.peers.values()]:  # noqa: ASYNC110 - the map arrives when it does
                await asyncio.sleep(0.01)
            up = asyncio.Event()
            serving = asyncio.ensure_future(serve(device, lambda _: up.set()))
            rising = asyncio.ensure_future(up.wait())
            await asyncio.wait((serving, rising), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
            try:
                await asyncio.to_thread(check)
            finally:
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving

    asyncio.run(main())


# --- frameworks on our server ---------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["django", "quart", "fastapi"])
def test_asyncio_framework_under_http_serve(
    framework: str, net: TailnetThread, caller: sync.Device, request: pytest.FixtureRequest
) -> None:
    library(framework)
    if framework == "fastapi":
        library("asyncpg")
        port = request.getfixturevalue("postgres")
        app = web_apps.fastapi_app(f"postgresql://app@127.0.0.1:{port}/postgres")
    else:
        app = {"django": web_apps.django_asgi, "quart": web_apps.quart_app}[framework]()

    def check() -> None:
        with asking(caller, "web") as client:
            try_everything(client, caller)
            if framework == "fastapi":
                assert who(client)["sum"] == 42
            if framework == "django":
                assert who(client, "/sync") == TRUE

    under_asyncio(net, caller, lambda device, started: http.serve(app, device, started=started), check)


def test_fastapi_with_aiosqlite_under_http_serve(net: TailnetThread, caller: sync.Device) -> None:
    library("aiosqlite")
    app = web_apps.fastapi_app("")

    def check() -> None:
        with asking(caller, "web") as client:
            assert who(client) == TRUE | {"sum": 42}

    under_asyncio(net, caller, lambda device, started: http.serve(app, device, started=started), check)


def test_datasette_under_http_serve(net: TailnetThread, caller: sync.Device) -> None:
    datasette = library("datasette.app")
    app = datasette.Datasette(memory=True).app()

    def check() -> None:
        with asking(caller, "web") as client:
            answer = client.get("/_memory.json?sql=select+40+%2B+2+as+n&_shape=array", headers=FORGED)
            assert answer.json() == [{"n": 42}]
            assert client.get("/").status_code == 200
            assert client.get("/-/static/app.css").status_code == 200
            assert client.get("/nothing.json").status_code == 404

    under_asyncio(net, caller, lambda device, started: http.serve(app, device, started=started), check)


def test_websockets_under_http_serve(net: TailnetThread, caller: sync.Device) -> None:
    library("quart")

    def check() -> None:
        assert socket_says(caller) == TRUE

    app = web_apps.quart_app()
    under_asyncio(net, caller, lambda device, started: http.serve(app, device, started=started), check)


def socket_says(caller: sync.Device) -> Any:
    client = library("websockets.sync.client")
    import json

    sock = caller.connect("web", 80, timeout=20)
    with client.connect("ws://web/ws", sock=sock, additional_headers=FORGED, proxy=None) as chat:
        return json.loads(chat.recv(20))


@pytest.mark.parametrize("framework", ["flask", "django"])
@pytest.mark.parametrize("face", ["aio", "sync"])
def test_wsgi_framework_under_serve_wsgi(
    framework: str, face: str, net: TailnetThread, caller: sync.Device, request: pytest.FixtureRequest
) -> None:
    library(framework)
    app = {"flask": web_apps.flask_app, "django": web_apps.django_wsgi}[framework]()

    def check() -> None:
        with asking(caller, "web") as client:
            try_everything(client, caller)

    if face == "aio":
        under_asyncio(net, caller, lambda device, started: http.serve_wsgi(app, device, started=started), check)
        return
    web, stop, up = request.getfixturevalue("web"), threading.Event(), threading.Event()
    options = {"shutdown": stop, "started": lambda _: up.set(), "threads": 4}
    serving = threading.Thread(target=http.serve_wsgi, args=(app, web), kwargs=options)
    serving.start()
    assert up.wait(20)
    check()
    stop.set()
    serving.join(20)
    assert not serving.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what Django leaves behind then
def test_an_asyncio_framework_on_a_trio_device_is_told_so(
    net: TailnetThread, caller: sync.Device, caplog: pytest.LogCaptureFixture
) -> None:
    library("django")
    import trio

    import tailscale

    async def main() -> None:
        async with tailscale.Device("web", **net.options()) as device, trio.open_nursery() as nursery:
            await nursery.start(http.serve, web_apps.django_asgi(), device)

            def ask() -> int:
                while "web" not in [node.hostname for node in caller.peers.values()]:
                    time.sleep(0.01)
                with asking(caller, "web") as client:
                    return client.get("/").status_code

            assert await trio.to_thread.run_sync(ask) == 500
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert "give `serve` a tailscale.aio.Device" in caplog.text


# --- our middlewares on other servers -------------------------------------------------------------


@contextlib.contextmanager
def in_thread(run: Callable[[], object], stop: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("door", ["listening socket", "expose"])
@pytest.mark.parametrize("framework", ["starlette", "django"])
def test_identity_under_uvicorn(door: str, framework: str, net: TailnetThread, caller: sync.Device) -> None:
    """Also with uvicorn's own trust in what a loopback address says was forwarded: then the caller is nobody."""
    uvicorn = library("uvicorn")
    library(framework)

    async def serve(device: aio.Device, started: Callable[[str], object]) -> None:
        if framework == "starlette":
            app: Any = web_apps.starlette_app()
            app.add_middleware(IdentityMiddleware, device=device)
        else:
            app = IdentityMiddleware(web_apps.django_asgi(), device)
        port = PORTS.take()
        config = uvicorn.Config(app, port=port, lifespan="off", log_level="warning")
        async with contextlib.AsyncExitStack() as stack:
            if door == "expose":
                await stack.enter_async_context(device.expose(80, local_port=port))
            sockets = [await device.listen(80)] if door != "expose" else None
            server = uvicorn.Server(config)
            running = asyncio.ensure_future(server.serve(sockets=sockets))
            while not server.started:  # noqa: ASYNC110 - it has no event for that
                await asyncio.sleep(0.01)
            started("")
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                server.should_exit = True
                await running

    def check() -> None:
        with asking(caller, "web") as client:
            assert who(client) == TRUE
            told = who(client, more=FORWARDED)
            assert told == (NOBODY if door == "expose" else TRUE)
        if framework == "starlette":
            assert socket_says(caller) == TRUE

    under_asyncio(net, caller, serve, check)


def test_identity_under_hypercorn_by_file_descriptor(net: TailnetThread, caller: sync.Device) -> None:
    """It makes the socket anew from its number and sees loopback addresses: they are known, too."""
    hypercorn_asyncio, config_module = library("hypercorn.asyncio"), library("hypercorn.config")

    async def serve(device: aio.Device, started: Callable[[str], object]) -> None:
        door = await device.listen(80)
        config = config_module.Config()
        config.bind = [f"fd://{os.dup(door.fileno())}"]  # it closes what it is given
        app = IdentityMiddleware(web_apps.starlette_app(), device)
        over = asyncio.Event()
        running = asyncio.ensure_future(hypercorn_asyncio.serve(app, config, shutdown_trigger=over.wait))
        started("")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            over.set()
            await running
            door.close()

    def check() -> None:
        with asking(caller, "web") as client:
            assert who(client) == TRUE
            assert who(client, more=FORWARDED) == TRUE
        assert socket_says(caller) == TRUE

    under_asyncio(net, caller, serve, check)


@pytest.mark.parametrize("framework", ["flask", "django"])
def test_identity_under_waitress(framework: str, web: sync.Device, caller: sync.Device) -> None:
    waitress = library("waitress")
    app = {"flask": web_apps.flask_app, "django": web_apps.django_wsgi}[framework]()
    with web.listen(80) as door:
        server = waitress.create_server(WsgiIdentityMiddleware(app, web), sockets=[door])
        with in_thread(server.run, server.close), asking(caller, "web") as client:
            assert who(client, "/sync" if framework == "django" else "/", FORWARDED) == TRUE
            assert client.post("/upload", content=bytes(300_000)).json() == {"size": 300_000}


@pytest.mark.parametrize("how", ["fd", "expose"])
def test_identity_under_werkzeug(how: str, web: sync.Device, caller: sync.Device) -> None:
    serving = library("werkzeug.serving")
    app = web_apps.flask_app()
    app.wsgi_app = WsgiIdentityMiddleware(app.wsgi_app, web)
    with contextlib.ExitStack() as stack:
        if how == "fd":
            door = stack.enter_context(web.listen(80))
            server = serving.make_server("127.0.0.1", 0, app, threaded=True, fd=door.fileno())
        else:
            server = serving.make_server("127.0.0.1", 0, app, threaded=True)
            stack.enter_context(web.expose(80, local_port=server.server_port))
        stack.callback(server.server_close)
        with in_thread(server.serve_forever, server.shutdown), asking(caller, "web") as client:
            assert who(client, more=FORWARDED) == TRUE


def test_identity_under_wsgiref_which_tells_no_port(web: sync.Device, caller: sync.Device) -> None:
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

        def server_bind(self) -> None:
            self.server_name, self.server_port = "web", 80
            self.setup_environ()

    class Handler(WSGIRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with web.listen(80) as door:
        server = Server(("", 0), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = door
        server.server_bind()
        server.set_app(WsgiIdentityMiddleware(web_apps.plain_wsgi, web))
        with in_thread(server.serve_forever, server.shutdown), asking(caller, "web") as client:
            assert who(client, more=FORWARDED) == TRUE


def test_a_program_of_this_machine_is_nobody(web: sync.Device, caller: sync.Device) -> None:
    serving = library("werkzeug.serving")
    server = serving.make_server("127.0.0.1", 0, WsgiIdentityMiddleware(web_apps.plain_wsgi, web), threaded=True)
    with contextlib.closing(server.socket), web.expose(80, local_port=server.server_port):
        with in_thread(server.serve_forever, server.shutdown):
            with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as local:
                assert who(local, more=[("X-Forwarded-For", str(caller.ipv4))]) == NOBODY
            with asking(caller, "web") as client:
                assert who(client) == TRUE


# --- servers in other processes -------------------------------------------------------------------


@contextlib.contextmanager
def gunicorn(bind: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    library("gunicorn")
    command = [sys.executable, "-m", "gunicorn", "--bind", bind, *options, "tests.interop.web_apps:gunicorn_wsgi"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Booting worker" in line:
                break
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            drain.join()


WORKERS = [["--workers", "2"], ["--workers", "2", "--preload"], ["--worker-class", "gthread", "--threads", "4"]]


@pytest.mark.parametrize("options", WORKERS, ids=" ".join)
def test_gunicorn_behind_a_reverse_proxy_is_told_who_calls(
    options: list[str], web: sync.Device, caller: sync.Device
) -> None:
    port, stop, up = PORTS.take(), threading.Event(), threading.Event()
    with gunicorn(f"127.0.0.1:{port}", *options):
        proxy = ReverseProxy(f"http://127.0.0.1:{port}")
        serve = lambda: http.serve(proxy, web, shutdown=stop, started=lambda _: up.set())  # noqa: E731
        with in_thread(serve, stop.set), asking(caller, "web") as client:
            assert up.wait(20)
            for _ in range(8):  # by either worker
                told = who(client, more=FORWARDED)
                assert told["logins"] == [USER]
                assert (told["forwarded"], told["evil"]) == (caller.ipv4, False)


def test_gunicorn_behind_a_reverse_proxy_on_a_unix_socket(web: sync.Device, caller: sync.Device, tmp_path: Any) -> None:
    stop, up, path = threading.Event(), threading.Event(), tmp_path / "gunicorn.sock"
    with gunicorn(f"unix:{path}", "--umask", "0077"):
        serve = lambda: http.serve(ReverseProxy(f"unix:{path}"), web, shutdown=stop, started=lambda _: up.set())  # noqa: E731
        with in_thread(serve, stop.set), asking(caller, "web") as client:
            assert up.wait(20)
            assert who(client, more=FORWARDED)["logins"] == [USER]


@pytest.mark.parametrize("version", [1, 2])
def test_gunicorn_behind_expose_reads_the_proxy_header(version: int, web: sync.Device, caller: sync.Device) -> None:
    port = PORTS.take()
    options = [f"127.0.0.1:{port}", f"--proxy-protocol=v{version}"]
    with gunicorn(*options), web.expose(80, local_port=port, proxy_protocol=version):
        with asking(caller, "web") as client:
            assert client.get("/").json()["remote"] == caller.ipv4


def _serve_one_request(port: int) -> None:
    """In a child process: a plain server, and a device that is not this process's."""
    from wsgiref.simple_server import make_server

    with make_server("127.0.0.1", port, web_apps.gunicorn_wsgi) as server:
        os.kill(os.getppid(), 0)
        server.handle_request()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_servers_are_told_who_calls(method: str, web: sync.Device, caller: sync.Device) -> None:
    import multiprocessing

    context = multiprocessing.get_context(method)
    port, stop, up = PORTS.take(), threading.Event(), threading.Event()
    child = context.Process(target=_serve_one_request, args=(port,))
    child.start()
    serve = lambda: http.serve(ReverseProxy(f"http://127.0.0.1:{port}"), web, shutdown=stop, started=lambda _: up.set())  # noqa: E731
    try:
        with in_thread(serve, stop.set), asking(caller, "web") as client:
            assert up.wait(20)
            while (got := client.get("/", headers=FORGED)).status_code == 502:  # until the child listens
                time.sleep(0.02)
            assert got.json()["logins"] == [USER]
    finally:
        child.join(20)
    assert child.exitcode == 0


def test_a_forked_child_does_not_speak_for_the_device(web: sync.Device) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            web.caller_at(("127.0.0.1", 1))
            os.write(writing, b"answered")
        except BaseException as error:
            os.write(writing, type(error).__name__.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) != b"answered"
    os.close(reading)
    os.close(writing)


def test_a_thousand_connections_wait_their_turn(net: TailnetThread, caller: sync.Device) -> None:
    """More than a server takes of one peer: some are turned away, and who asks when they are gone is answered."""
    library("flask")
    app = web_apps.flask_app()

    def check() -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(1000):
                with contextlib.suppress(ConnectionError):
                    sock = stack.enter_context(caller.connect("web", 80, timeout=20))
                    sock.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf of it")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError), asking(caller, "web") as client:
                assert client.get("/").status_code == 200
                return
        raise AssertionError("nobody is answered any more")

    under_asyncio(net, caller, lambda device, started: http.serve_wsgi(app, device, started=started), check)


def test_nothing_is_left_out() -> None:
    """On a machine where `make interop` has run, each of these is there."""
    missing = [
        name
        for name in ("django", "quart", "datasette", "flask", "hypercorn", "gunicorn", "waitress")
        if not _has(name)
    ]
    if missing:
        lacking(f"the group web ({', '.join(missing)})")


def _has(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None
