"""Exits by policy in asyncio and in threads: the same object, by an exit that answers in place of the internet."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from exit_scripts import WEB, Internet, exit_node

import tailscale
from tailscale import aio, sync
from tailscale.proxy import BadPolicy, Exits, NoExit
from tailscale.proxy.exits import ExitsOptions
from tailscale.testing.threaded import TailnetThread

DIFFERENT = {"tcp_connect", "connect_anywhere", "on"}  # each face has its own streams, and belongs to a device


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        net.wait_for(partial(play_exit, net.inner))
        yield net


async def play_exit(tailnet: Any) -> None:
    device = await exit_node(tailnet, "swiss")
    Internet(device, SimpleNamespace(start_soon=device.spawn))  # type: ignore[arg-type]


def test_asyncio_programs_connect_by_exits(net: TailnetThread) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), aio.Device("desk", **net.options()) as desk:
            while not await desk.exit_nodes():
                await desk.ping("swiss")
            exits = aio.Exits(desk, nodes=["swiss"])
            news = exits.events()
            first = asyncio.ensure_future(anext(news))
            reader, writer = await exits.open_connection(WEB, 80)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            await writer.wait_closed()
            assert [one.node.hostname for one in await exits.candidates()] == ["swiss"]
            current = await exits.current()
            assert current is not None
            assert current.node.hostname == "swiss"
            await exits.pin("swiss")
            assert (await exits.status()).pinned == "swiss"
            await exits.pin(None)
            async with await exits.udp() as udp:
                await udp.send_to(b"hello", (WEB, 53))
                assert await udp.receive() == b"hello"
            assert type(await first).__name__ == "ExitChosen"
            assert repr(exits) == "<Exits node:swiss>"
            with pytest.raises(tailscale.NoRoute, match="no exit is to be used"):
                await aio.Exits.from_spec(desk, "none").open_connection(WEB, 80)

    asyncio.run(main())


def test_threads_connect_by_exits(net: TailnetThread) -> None:
    with sync.Device("desk", **net.options()) as desk:
        while not desk.exit_nodes:
            desk.ping("swiss")
        exits = sync.Exits(desk, nodes=["swiss"])
        with exits.connect(WEB, 80, timeout=10, session="shop") as sock:
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"
        assert [one.node.hostname for one in exits.candidates] == ["swiss"]
        assert exits.current is not None
        exits.pin("swiss")
        assert exits.status().to_dict()["pinned"] == "swiss"
        with exits.udp() as udp:
            udp.send_to(b"hello", (WEB, 53))
            assert udp.receive(timeout=10) == b"hello"
        news = exits.events()
        exits.pin(None)
        assert repr(sync.Exits.from_spec(desk, "NL/ams")) == "<Exits NL/ams>"
        with pytest.raises(BadPolicy):
            sync.Exits(desk, country="XX")
        with pytest.raises(NoExit):
            sync.Exits(desk, tag="tag:exit").connect(WEB, 80, timeout=0.1)
    assert list(news) == []


def test_exits_of_a_device_that_is_not_open_say_so() -> None:
    for face in (aio, sync):
        with pytest.raises(tailscale.DeviceNotReady):
            face.Exits(face.Device("desk"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("face", [aio.Exits, sync.Exits])
def test_every_face_has_the_members_of_exits(face: type) -> None:
    for name in vars(Exits):
        if not name.startswith("_") and name not in DIFFERENT:
            assert inspect.getdoc(getattr(face, name)), f"{face.__module__}.Exits.{name}"


def test_every_face_takes_what_exits_take() -> None:
    taken = list(inspect.signature(Exits).parameters)
    assert taken == ["device", *ExitsOptions.__annotations__]


@pytest.mark.slow
def test_nobody_loads_exits_who_needs_none() -> None:
    code = (
        "import sys, tailscale.aio, tailscale.sync, tailscale.proxy; tailscale.Device; "
        "print([m for m in sys.modules if m.startswith(('ts_proxy', 'tailscale.proxy.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = (
        "import sys, tailscale; tailscale.Device; from tailscale.proxy import Exits; "
        "print([m for m in ('httpx', 'rich', 'asyncio', 'dpkt', 'h2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['h2']", "which the Device has loaded"
