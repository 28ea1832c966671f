"""httpx and httpx2 over the tailnet: names, reuse, retries, TLS, HTTP/2, timeouts, and what goes round the tailnet."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest
import trio
import trustme
from http_scripts import site
from tailnet_scripts import runtime_of

from tailscale import Device, NameNotFound
from tailscale.http import AsyncTransport
from tailscale.testing import Tailnet

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


async def raw_server(device: Device, port: int, handler: Any, nursery: trio.Nursery) -> None:
    await nursery.start(trio.serve_listeners, handler, [await device.listen(port)])


async def test_names_addresses_and_bodies(library: Any, tailnet: Tailnet) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = (await receive())["body"]
        await send(
            {"type": "http.response.start", "status": 201, "headers": [(b"x-host", dict(scope["headers"])[b"host"])]}
        )
        await send({"type": "http.response.body", "body": body})

    async with site(tailnet, app) as s, library.AsyncClient(transport=AsyncTransport(s.caller)) as client:
        for host in ("web", "web.tailnet.test", s.server.ipv4, f"[{s.server.ipv6}]"):
            answer = await client.put(f"http://{host}/", content=b"body")
            assert (answer.status_code, answer.content) == (201, b"body")
            assert answer.headers["x-host"] == host


async def test_connection_closed_by_the_server_is_not_reused(library: Any, tailnet: Tailnet) -> None:
    """The pool must see that an idle connection ended: without that every second request would fail."""
    served = 0

    async def once(stream: trio.abc.Stream) -> None:
        nonlocal served
        async with stream:
            await stream.receive_some()
            await stream.send_all(ANSWER)
            served += 1

    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with trio.open_nursery() as nursery:
        await raw_server(b, 80, once, nursery)
        async with library.AsyncClient(transport=AsyncTransport(a)) as client:
            for _ in range(4):
                assert (await client.get("http://b/")).text == "ok"
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert served == 4


async def test_tls_http2_and_client_checks_the_name(library: Any, tailnet: Tailnet) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["scheme"].encode()})

    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("web.tailnet.test").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    async with site(tailnet, app, tls=server_side) as s:
        transport = AsyncTransport(s.caller, verify=client_side, http2=True)
        async with library.AsyncClient(transport=transport) as client:
            for _ in range(3):
                assert (await client.get("https://web.tailnet.test:80/")).text == "https"
            with pytest.raises(library.ConnectError):
                await client.get("https://web:80/")


async def test_http2_by_alpn(library: Any, tailnet: Tailnet) -> None:
    import h2.config
    import h2.connection
    import h2.events

    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.set_alpn_protocols(["h2"])
    authority.issue_cert("b").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    async def speak(tcp: trio.abc.Stream) -> None:
        stream = trio.SSLStream(tcp, server_side, server_side=True)
        machine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        machine.initiate_connection()
        await stream.send_all(machine.data_to_send())
        try:
            while data := await stream.receive_some():
                for event in machine.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        machine.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
                await stream.send_all(machine.data_to_send())
        except trio.BrokenResourceError:
            pass

    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with trio.open_nursery() as nursery:
        await raw_server(b, 443, speak, nursery)
        async with library.AsyncClient(transport=AsyncTransport(a, verify=client_side, http2=True)) as client:
            assert (await client.get("https://b/")).http_version == "HTTP/2"
        nursery.cancel_scope.cancel()


async def test_failures_are_the_librarys_own_and_name_the_cause(library: Any, tailnet: Tailnet) -> None:
    async def silent(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async def cut(stream: Any) -> None:
        await stream.receive_some()
        await stream.send_all(ANSWER[:-1])
        stream.abort()

    a, b = await tailnet.device("a"), await tailnet.device("bee")
    async with trio.open_nursery() as nursery:
        await raw_server(b, 80, silent, nursery)
        await raw_server(b, 81, cut, nursery)
        async with library.AsyncClient(transport=AsyncTransport(a), timeout=5) as client:
            with pytest.raises(library.ReadTimeout):
                await client.get("http://bee/", timeout=0.1)
            with pytest.raises(library.ConnectError, match="refused"):
                await client.get("http://bee:82/")
            with pytest.raises(library.ConnectError, match="did you mean 'bee") as caught:
                await client.get("http://beee.tailnet.test/")
            assert isinstance(caught.value.__cause__, NameNotFound)
            with pytest.raises((library.ReadError, library.RemoteProtocolError)):
                await client.get("http://bee:81/")
            with pytest.raises(library.UnsupportedProtocol):
                await client.get("ftp://bee/")
        nursery.cancel_scope.cancel()


async def test_cancelled_request_leaves_the_pool_usable(library: Any, tailnet: Tailnet) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/slow":
            await trio.sleep_forever()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async with site(tailnet, app) as s, library.AsyncClient(transport=AsyncTransport(s.caller)) as client:
        for _ in range(5):
            with trio.move_on_after(0.02):
                await client.get("http://web/slow")
            assert (await client.get("http://web/")).text == "ok"


async def test_what_the_tailnet_does_not_know_uses_the_machines_network(library: Any) -> None:
    async def answer(stream: trio.abc.Stream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(ANSWER)

    async with Tailnet(real=True) as net, trio.open_nursery() as nursery:
        device = await net.device("a")
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        port = listeners[0].socket.getsockname()[1]
        async with library.AsyncClient(transport=AsyncTransport(device)) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/")).text == "ok"
            assert (await client.get(f"http://localhost:{port}/")).text == "ok"
            await device.set(exit_node="nobody")
            assert (await client.get(f"http://127.0.0.1:{port}/")).text == "ok"
            with pytest.raises(library.ConnectError):
                await client.get("http://192.0.2.1/")  # through the exit node or not at all
        nursery.cancel_scope.cancel()


async def test_tailnet_names_never_reach_the_hosts_resolver(
    library: Any, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def note(host: Any, *args: Any, **options: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "no")

    device = await tailnet.device("alpha")
    monkeypatch.setattr(runtime_of(device).network, "open_tcp", note)
    async with library.AsyncClient(transport=AsyncTransport(device)) as client:
        with pytest.raises(library.ConnectError):
            await client.get("http://db.tailnet.test/")
        assert asked == []
        with pytest.raises(library.ConnectError):
            await client.get("http://example.com/")
        with pytest.raises(library.ConnectError, match="did you mean 'alpha"):
            await client.get("http://alpha2/")
        assert asked == ["example.com", "alpha2"]


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # httpx leaves its own to the collector
async def test_answer_is_streamed_not_collected(library: Any, tailnet: Tailnet) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await receive()
        await receive()

    async with site(tailnet, app) as s, library.AsyncClient(transport=AsyncTransport(s.caller)) as client:
        with trio.fail_after(5):
            async with client.stream("GET", "http://web/") as answer:
                parts = answer.aiter_raw()
                assert await anext(parts) == b"first"
                await parts.aclose()


def test_importing_the_door_loads_nothing() -> None:
    code = "import sys, tailscale.http; print(sorted({'httpx', 'wsproto', 'asyncio', 'h11'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_name_at_the_door_is_there() -> None:
    door = import_module("tailscale.http")
    for name in set(door.__all__) - {"AiohttpConnector", "RequestsAdapter", "urllib3_pool"}:
        assert getattr(door, name).__name__ == name
    with pytest.raises(AttributeError):
        door.nothing  # noqa: B018
