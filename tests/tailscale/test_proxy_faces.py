"""A proxy from asyncio and from plain threads: the same server, in the device's thread, held from outside."""

from __future__ import annotations

import socket

import pytest
from proxy_clients import NO_LOGIN, login, socks_request
from thread_scripts import introduce

from tailscale import aio, sync
from tailscale.proxy import DIRECT, ProxyLimits, Request
from tailscale.testing.threaded import TailnetThread

ECHO_PORT = 7


def talk(port: int, sent: bytes, count: int) -> bytes:
    """What a plain socket hears."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(sent)
        got = b""
        while len(got) < count and (data := sock.recv(count - len(got))):
            got += data
        return got


@pytest.fixture(scope="module")
def net() -> TailnetThread:  # type: ignore[misc]
    with TailnetThread() as net:
        yield net


def test_threads_hold_a_proxy(net: TailnetThread) -> None:
    with sync.Device("desk", **net.options()) as desk, sync.Device("web", **net.options()) as web:
        introduce(desk, web)
        with web.listen(ECHO_PORT) as door, sync.serve(desk, None, DIRECT, limits=ProxyLimits(grace=1)) as proxy:
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as sock:
                sock.sendall(NO_LOGIN + socks_request("web", ECHO_PORT) + b"hello")
                accepted, _ = door.accept()
                with accepted:
                    assert accepted.recv(5) == b"hello"
            assert proxy.host == "127.0.0.1"
            assert proxy.statistics().requests == {"socks": 1}
            with pytest.raises(ValueError, match="users="):
                sync.serve(desk, "0.0.0.0:0")
            with pytest.raises(OSError):
                sync.serve(desk, f"127.0.0.1:{proxy.port}")
        desk.status()  # a proxy that could not begin, and one that has ended, end nothing else
        with sync.serve(desk, "tailnet:1080", sync.Exits(desk, nodes=["nobody"])) as other:
            assert other.address == ("tailnet", 1080)


async def _asyncio_holds_a_proxy(net: TailnetThread) -> None:
    import asyncio

    seen: list[Request] = []

    async def known(user: str, password: str) -> bool:
        await asyncio.sleep(0)
        return password == "secret"

    def note(request: Request) -> bool:
        seen.append(request)
        asyncio.get_running_loop()
        return False

    async with aio.Device("desk", **net.options()) as desk:
        async with aio.serve(desk, None, users=known, allow=note) as proxy:
            sent = b"\5\1\2" + login(b"alice", b"secret") + socks_request("web", ECHO_PORT)
            answer = await asyncio.to_thread(talk, proxy.port, sent, 8)
            assert answer[:6] == b"\5\2\1\0\5\2"
            assert [request.user for request in seen] == ["alice"]
        with pytest.raises(ValueError, match="no place"):
            await aio.serve(desk, "nowhere")


def test_asyncio_holds_a_proxy_and_its_functions_run_in_its_loop(net: TailnetThread) -> None:
    import asyncio

    asyncio.run(_asyncio_holds_a_proxy(net))
