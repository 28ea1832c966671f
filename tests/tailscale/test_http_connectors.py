"""aiohttp, urllib3 and requests over the tailnet: names, reuse, TLS, WebSockets, timeouts, and errors that say why."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trustme
from thread_scripts import introduce

import tailscale
from tailscale import aio, sync
from tailscale.testing.threaded import TailnetThread

aiohttp = pytest.importorskip("aiohttp")
urllib3 = pytest.importorskip("urllib3")
requests = pytest.importorskip("requests")
from aiohttp import web  # noqa: E402 - only where it is installed

from tailscale.http import AiohttpConnector, RequestsAdapter, urllib3_pool  # noqa: E402


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.fixture(scope="module")
def pair(net: TailnetThread) -> Iterator[tuple[sync.Device, sync.Device]]:
    with sync.Device("left", **net.options()) as left, sync.Device("right", **net.options()) as right:
        introduce(left, right)
        yield left, right


async def handle(request: web.Request) -> web.StreamResponse:
    if request.path == "/socket":
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data.upper())
        return socket
    if request.path == "/never":
        await asyncio.sleep(60)
    return web.Response(text=f"{request.remote} {request.transport.get_extra_info('peername')[1]}")


@contextlib.asynccontextmanager
async def site(door: sync.TailnetListener, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.SockSite(runner, door, ssl_context=tls).start()
        yield
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def session(net: TailnetThread, **options: Any) -> AsyncIterator[tuple[aio.Device, aiohttp.ClientSession]]:
    async with aio.Device("caller", **net.options()) as device:
        async with asyncio.timeout(10):
            while not device.known_way("right"):  # noqa: ASYNC110 - no event is of this one name
                await asyncio.sleep(0.01)
        async with aiohttp.ClientSession(connector=AiohttpConnector(device, **options)) as made:
            yield device, made


def test_aiohttp_reaches_names_and_addresses_and_keeps_connections(
    net: TailnetThread, pair: tuple[sync.Device, sync.Device]
) -> None:
    right = pair[1]

    async def main() -> None:
        async with site(right.listen(80)), session(net) as (device, client):
            for host in ("right", "right.tailnet.test", right.ipv4, f"[{right.ipv6}]"):
                async with client.get(f"http://{host}/") as answer:
                    first = await answer.text()
                assert first.split()[0] in (device.ipv4, device.ipv6)
                async with client.get(f"http://{host}/") as answer:
                    assert await answer.text() == first  # by the same connection
            async with client.ws_connect("http://right/socket") as socket:
                await socket.send_str("hello")
                assert await socket.receive_str() == "HELLO"
            answers = await asyncio.gather(*(client.get("http://right/") for _ in range(20)))
            assert len({await answer.text() for answer in answers}) == 20

    asyncio.run(main())


def test_aiohttp_checks_certificates_by_the_name_that_was_asked(
    net: TailnetThread, pair: tuple[sync.Device, sync.Device]
) -> None:
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("right").configure_cert(theirs)
    authority.configure_trust(ours)

    async def main() -> None:
        async with site(pair[1].listen(443), theirs), session(net) as (_, client):
            async with client.get("https://right/", ssl=ours) as answer:
                assert answer.status == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await client.get("https://right.tailnet.test/", ssl=ours)

    asyncio.run(main())


def test_aiohttp_errors_are_its_own_and_say_why(net: TailnetThread, pair: tuple[sync.Device, sync.Device]) -> None:
    async def main() -> None:
        async with site(pair[1].listen(81)), session(net) as (device, client):
            for host in ("rigth", "rigth.tailnet.test"):
                with pytest.raises(aiohttp.ClientConnectorDNSError, match="did you mean 'right'") as caught:
                    await client.get(f"http://{host}/")
                assert isinstance(caught.value.os_error, tailscale.NameNotFound)
            with pytest.raises(aiohttp.ClientConnectorError, match="nothing listens on that port"):
                await client.get("http://right:9/")
            with pytest.raises(aiohttp.ClientConnectorError, match=r"no peer owns or routes 100\.64\.99\.99"):
                await client.get("http://100.64.99.99/")
            with pytest.raises(aiohttp.ServerTimeoutError):
                await client.get("http://right:81/never", timeout=aiohttp.ClientTimeout(sock_read=0.05))
            with pytest.raises(TimeoutError):
                await client.get("http://right:81/", timeout=aiohttp.ClientTimeout(sock_connect=0.000001))
            async with client.get("http://right:81/") as answer:
                assert answer.status == 200
            await device.close()
            with pytest.raises(aiohttp.ClientConnectionError, match="has been closed"):
                await client.get("http://right:81/again")

    asyncio.run(main())


def test_aiohttp_goes_the_machines_way_for_others(net: TailnetThread, pair: tuple[sync.Device, sync.Device]) -> None:
    made: list[int] = []

    def factory(info: Any) -> Any:
        import socket

        made.append(info[0])
        return socket.socket(*info[:3])

    async def main() -> None:
        async with session(net, socket_factory=factory) as (_, client):
            app = web.Application()
            app.router.add_get("/", handle)
            runner = web.AppRunner(app)
            await runner.setup()
            here = web.TCPSite(runner, "127.0.0.1", 0)
            await here.start()
            for host in ("127.0.0.1", "localhost"):
                async with client.get(f"http://{host}:{runner.addresses[0][1]}/") as answer:
                    assert answer.status == 200
            await runner.cleanup()

    asyncio.run(main())
    assert made


def test_a_device_of_another_kind_is_refused(pair: tuple[sync.Device, sync.Device]) -> None:
    with pytest.raises(tailscale.WrongFace, match=r"takes a tailscale\.aio\.Device, not a tailscale\.sync\.Device"):
        AiohttpConnector(pair[0])
    for make in (urllib3_pool, lambda device: requests.Session().mount("http://", RequestsAdapter(device))):
        with pytest.raises(
            tailscale.WrongFace, match=r"take a tailscale\.sync\.Device, not a tailscale\.device\.Device"
        ):
            make(tailscale.Device("x"))


def test_urllib3_and_requests_say_why(net: TailnetThread, pair: tuple[sync.Device, sync.Device]) -> None:
    left, right = pair

    def ask() -> None:
        with urllib3_pool(left, retries=False) as pool:
            for host in ("right", right.ipv4, f"[{right.ipv6}]"):
                assert pool.request("GET", f"http://{host}:82/").status == 200
            for url, sentence in ((":9", "nothing listens"), ("x:82", "did you mean 'right'")):
                with pytest.raises(urllib3.exceptions.HTTPError, match=sentence):
                    pool.request("GET", f"http://right{url}/")
        with requests.Session() as client:
            client.mount("http://", RequestsAdapter(left))
            assert client.get("http://right:82/").status_code == 200
            with pytest.raises(requests.ConnectionError, match="did you mean 'right'"):
                client.get("http://rigth/")

    async def main() -> None:
        async with site(right.listen(82)):
            await asyncio.to_thread(ask)

    asyncio.run(main())
