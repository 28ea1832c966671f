"""A Serve of a device of `tailscale.aio` and of `tailscale.sync`: apps run in an asyncio loop, changes count."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from thread_scripts import introduce

from tailscale import aio, http, sync
from tailscale.serve import Serve, text
from tailscale.testing.threaded import TailnetThread


@pytest.fixture
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await asyncio.sleep(0)  # under trio this would fail
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["extensions"]["tailscale"]["hostname"].encode()})


def pages(caller: sync.Device, *paths: str) -> list[str]:
    with httpx.Client(transport=http.Transport(caller), base_url="http://web", timeout=20) as client:
        return [client.get(path).text for path in paths]


def test_under_asyncio_it_is_awaited_and_ends_by_cancelling(net: TailnetThread) -> None:
    with sync.Device("caller", **net.options()) as caller:

        async def main() -> None:
            async with asyncio.timeout(60), aio.Device("web", **net.options()) as device:
                up = asyncio.Event()
                web = Serve(device).http(80, {"/": app, "/t": text("t")})
                urls: list[tuple[str, ...]] = []
                running = asyncio.ensure_future(web.run(started=lambda told: (urls.append(told), up.set())))
                await up.wait()
                assert urls == [("http://web.tailnet.test",)]
                while "web" not in caller.peers:  # noqa: ASYNC110 - the map arrives when it does
                    await asyncio.sleep(0.01)
                assert await asyncio.to_thread(pages, caller, "/", "/t") == ["caller", "t"]
                web.http(80, {"/t": text("changed"), "/again": app})
                assert await asyncio.to_thread(pages, caller, "/t", "/again") == ["changed", "caller"]
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running

        asyncio.run(main())


def test_with_a_blocking_device_it_blocks_until_the_device_closes(net: TailnetThread) -> None:
    with sync.Device("caller", **net.options()) as caller:
        up = threading.Event()
        with sync.Device("web", **net.options()) as device:
            introduce(caller, device)
            web = Serve(device).http(80, app)
            serving = threading.Thread(target=lambda: web.run(started=lambda _: up.set()))
            serving.start()
            assert up.wait(20)
            assert pages(caller, "/") == ["caller"]
            assert web.statistics().ports["80"].connections == 1
        serving.join(20)
        assert not serving.is_alive()


def test_blocking_run_inside_a_loop_says_which_device_to_use(net: TailnetThread) -> None:
    with sync.Device("web", **net.options()) as device:

        async def main() -> None:
            with pytest.raises(TypeError, match=r"tailscale\.aio\.Device for asyncio"):
                Serve(device).http(80, app).run()

        asyncio.run(main())
