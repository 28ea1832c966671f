"""Unmodified clients and servers through two live devices: PostgreSQL, Redis, requests, aiohttp, uvicorn.

The servers come from Debian packages and the clients from the `clients` group (tests/interop/install_servers.sh); what
is missing skips its tests with a loud line.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tailscale import aio, sync
from tailscale.testing.threaded import TailnetThread
from tests.interop.postgresql import POSTGRES, cluster, running
from tests.interop.processes import PORTS
from tests.tailscale.thread_scripts import introduce

pytestmark = pytest.mark.interop
ROWS = 20_000


def library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        lacking(f"the Python package {name}")


def lacking(what: str) -> None:
    pytest.skip(f"REAL CLIENTS SKIPPED: no {what} here: bash tests/interop/install_servers.sh")


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.fixture(scope="module")
def pair(net: TailnetThread) -> Iterator[tuple[sync.Device, sync.Device]]:
    with sync.Device("app", **net.options()) as app, sync.Device("db", **net.options()) as db:
        introduce(app, db)
        yield app, db


@pytest.fixture(scope="module")
def postgres() -> Iterator[int]:
    """A cluster of our own; its port on this machine."""
    if POSTGRES is None:
        lacking("PostgreSQL")
    with cluster() as port:
        yield port


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if shutil.which("redis-server") is None:
        lacking("redis-server")
    port, home = PORTS.take(), tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(home)]
    with running(command, port, "Ready to accept connections"):
        yield port


Pair = tuple[sync.Device, sync.Device]


def test_psycopg_over_a_private_unix_socket(pair: Pair, postgres: int, tmp_path: Path) -> None:
    """libpq dials by itself: it is given a Unix socket where it expects PostgreSQL's."""
    psycopg = library("psycopg")
    app, db = pair
    with db.expose(5432, local_port=postgres), app.forward("db", 5432, path=tmp_path / ".s.PGSQL.5432"):
        with psycopg.connect(host=str(tmp_path), port=5432, user="app", dbname="postgres") as connection:
            with connection.cursor() as cursor:
                cursor.execute("create table numbers (n int, words text)")
                with cursor.copy("copy numbers from stdin") as copy:
                    for n in range(ROWS):
                        copy.write_row((n, "x" * 100))
                assert cursor.execute("select sum(n), sum(length(words)) from numbers").fetchone() == (
                    sum(range(ROWS)),
                    ROWS * 100,
                )
                assert len(cursor.execute("select * from numbers").fetchall()) == ROWS
            connection.rollback()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(host=str(tmp_path), port=5432, user="nobody", dbname="postgres")


def test_asyncpg_over_a_loopback_forward(net: TailnetThread, pair: Pair, postgres: int) -> None:
    asyncpg = library("asyncpg")

    async def main() -> None:
        async with aio.Device("async-app", **net.options()) as app, asyncio.timeout(30):
            while "db" not in [node.hostname for node in app.peers.values()]:  # noqa: ASYNC110 - the map arrives when it does
                await asyncio.sleep(0.01)
            with pair[1].expose(5433, local_port=postgres), await app.forward("db", 5433) as way:
                pool = await asyncpg.create_pool(
                    host=way.host, port=way.port, user="app", database="postgres", ssl=False, min_size=4
                )
                async with pool:
                    query = "select generate_series(1, $1::int), repeat('x', 100)"
                    answers = await asyncio.gather(*(pool.fetch(query, ROWS) for _ in range(8)))
                    assert [len(rows) for rows in answers] == [ROWS] * 8
                    with pytest.raises(asyncpg.PostgresError):
                        await pool.execute("select nonsense")

    asyncio.run(main())


def test_redis_over_a_forward_and_over_our_own_socket(pair: Pair, redis_port: int) -> None:
    redis = library("redis")
    app, db = pair

    class OverTailnet(redis.Connection):
        def _connect(self) -> socket.socket:
            return app.connect(self.host, self.port, timeout=self.socket_timeout)

    big = os.urandom(5 << 20)
    with db.expose(6379, local_port=redis_port), app.forward("db", 6379) as way:
        pool = redis.ConnectionPool(connection_class=OverTailnet, host="db", port=6379)
        for client in (redis.Redis(host=way.host, port=way.port), redis.Redis(connection_pool=pool)):
            with client:
                assert client.ping()
                client.set("big", big)
                assert client.get("big") == big
                with client.pipeline() as pipe:
                    for n in range(1000):
                        pipe.incrby("count", n)
                    assert pipe.execute()[-1] % 499500 == 0
                with client.pubsub() as channel:
                    channel.subscribe("news")
                    assert channel.get_message(timeout=5)["type"] == "subscribe"
                    client.publish("news", "hello")
                    assert channel.get_message(timeout=5)["data"] == b"hello"
        pool.disconnect()


@contextlib.contextmanager
def uvicorn_on(server: Any, sock: socket.socket) -> Iterator[None]:
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def test_uvicorn_serves_the_tailnet_and_sees_tailnet_addresses(pair: Pair) -> None:
    """requests and a plain ASGI app on uvicorn, neither of which knows about us."""
    uvicorn, requests = library("uvicorn"), library("requests")
    from tailscale.http import RequestsAdapter

    app, db = pair

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        more, size = True, 0
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{scope['client'][0]} {size}".encode()})

    sock = db.listen(8000)
    server = uvicorn.Server(uvicorn.Config(asgi, lifespan="off", log_level="warning", loop="asyncio"))
    with uvicorn_on(server, sock), requests.Session() as session:
        session.mount("http://", RequestsAdapter(app))
        for size in (0, 1, 3 << 20):
            answer = session.post("http://db:8000/", data=bytes(size), timeout=10)
            assert answer.text == f"{app.ipv4} {size}"
    sock.close()


def test_aiohttp_both_sides(net: TailnetThread) -> None:
    aiohttp, web = library("aiohttp"), library("aiohttp.web")

    async def main() -> None:
        async with (
            asyncio.timeout(30),
            aio.Device("web", **net.options()) as server,
            aio.Device("browser", **net.options()) as client,
        ):
            while "web" not in [node.hostname for node in client.peers.values()]:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)

            async def handle(request: Any) -> Any:
                if request.path == "/ws":
                    socket = web.WebSocketResponse()
                    await socket.prepare(request)
                    async for message in socket:
                        await socket.send_str(message.data.upper())
                    return socket
                return web.Response(text=f"{request.remote} {len(await request.read())}")

            app = web.Application()
            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app)
            await runner.setup()
            listening = await server.create_server(runner.server, 80)
            with await client.forward("web", 80) as way:
                async with aiohttp.ClientSession(f"http://{way.host}:{way.port}") as session:
                    async with session.post("/", data=bytes(500_000)) as answer:
                        assert await answer.text() == f"{client.ipv4} 500000"
                    async with session.ws_connect("/ws") as socket:
                        await socket.send_str("hello")
                        assert await socket.receive_str() == "HELLO"
            listening.close()
            await runner.cleanup()

    asyncio.run(main())
