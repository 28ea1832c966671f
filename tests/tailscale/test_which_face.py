"""Which Device a program holds: the wrong one names the right one; a right one opens, closes, and says when lost."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import trio
from thread_scripts import introduce, our_threads

import tailscale
from tailscale import WrongFace, aio, sync
from tailscale.testing.threaded import TailnetThread


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.fixture(scope="module")
def server(net: TailnetThread) -> Iterator[sync.Device]:
    with sync.Device("server", **net.options()) as server:
        yield server


# --- the wrong one --------------------------------------------------------------------------------


async def enter(device: Any) -> None:
    async with device:
        raise AssertionError("entered")


def test_trio_device_elsewhere_names_the_face_that_fits() -> None:
    for run in (asyncio.run, lambda main: anyio.run(lambda: main)):
        with pytest.raises(WrongFace, match=r"outside of trio: .*tailscale\.aio\.Device for asyncio"):
            run(enter(tailscale.Device()))
    with pytest.raises(WrongFace, match=r"not with `with`: .*tailscale\.sync\.Device for"), tailscale.Device():
        pass


def test_asyncio_device_elsewhere_names_the_face_that_fits() -> None:
    async def under_trio() -> None:
        await enter(aio.Device())

    with pytest.raises(WrongFace, match=r"outside of asyncio: tailscale\.Device is for trio"):
        trio.run(under_trio)
    with pytest.raises(WrongFace, match=r"tailscale\.sync\.Device"), aio.Device():
        pass


def test_plain_device_in_async_with_names_both_others() -> None:
    with pytest.raises(
        WrongFace, match=r"not with `async with`: tailscale\.Device is for trio, tailscale\.aio\.Device for"
    ):
        asyncio.run(enter(sync.Device()))


def wait_gone(server: sync.Device, hostname: str) -> None:
    """Control forgets an ephemeral node that said goodbye."""
    deadline = time.monotonic() + 10
    while hostname in {node.hostname for node in server.peers.values()}:
        assert time.monotonic() < deadline, f"{hostname} is still there"
        time.sleep(0.005)


# --- opened and closed by hand --------------------------------------------------------------------


def test_asyncio_device_stays_open_between_open_and_close(net: TailnetThread) -> None:
    async def main() -> None:
        device = await aio.Device("cells", **net.options()).open()
        assert device.hostname == "cells"
        await device.close()
        await device.close()  # as with files, once more is no mistake
        with pytest.raises(tailscale.DeviceClosed):
            await device.open()

    before = our_threads()
    asyncio.run(main())
    assert our_threads() == before


def test_asyncio_device_that_was_never_opened_can_be_closed() -> None:
    asyncio.run(aio.Device("never").close())


def test_asyncio_device_leaves_when_its_loop_ends(net: TailnetThread, server: sync.Device) -> None:
    kept = []

    async def main() -> None:
        kept.append(await aio.Device("forgotten", **net.options()).open())

    before = our_threads()
    with pytest.warns(ResourceWarning, match="left open until its event loop ended"):
        asyncio.run(main())
    assert our_threads() == before
    wait_gone(server, "forgotten")


@pytest.mark.parametrize("kind", ["aio", "sync"])
def test_device_that_is_lost_leaves_with_a_warning(net: TailnetThread, kind: str) -> None:
    options = net.options()

    async def lose() -> None:
        await aio.Device("lost", **options).open()
        gc.collect()

    before = our_threads()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if kind == "aio":
            asyncio.run(lose())
        else:
            sync.Device("lost", **options).open()
        gc.collect()
    assert ["was lost without being closed" in str(w.message) for w in told if w.category is ResourceWarning] == [True]
    deadline = time.monotonic() + 10
    while our_threads() != before:
        assert time.monotonic() < deadline, "its thread is still there"
        time.sleep(0.005)


@pytest.mark.slow
def test_program_that_forgets_an_asyncio_device_ends_cleanly(net: TailnetThread, server: sync.Device) -> None:
    program = (
        "import asyncio, sys; from tailscale import aio; loop = asyncio.new_event_loop(); "
        "device = aio.Device('at-exit', control_url=sys.argv[1], auth_key=sys.argv[2]); "
        "loop.run_until_complete(device.open()); print(device.hostname)"
    )
    options = net.options()
    command = [sys.executable, "-c", program, options["control_url"], options["auth_key"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "at-exit\n"), done.stderr
    wait_gone(server, "at-exit")


# --- the same verbs -------------------------------------------------------------------------------


def test_dialling_and_listening_have_one_name(net: TailnetThread, server: sync.Device) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), aio.Device("caller", **net.options()) as caller:
            await asyncio.to_thread(introduce, server, Waiting(caller, asyncio.get_running_loop()))
            loop = asyncio.get_running_loop()
            with await caller.listen(7000) as door:
                sock = await asyncio.to_thread(server.tcp_connect, "caller", 7000, timeout=5)
                accepted, address = await loop.sock_accept(door)
                assert address[0] == server.ipv4
                with sock, accepted:
                    await loop.sock_sendall(accepted, b"hello")
                    assert sock.recv(100) == b"hello"
            with server.listen(7001) as there:
                for dialled in (caller.tcp_connect(("server", 7001)), caller.connect_anywhere("server", 7001)):
                    reader, writer = await dialled
                    assert writer.get_extra_info("peername") == (server.ipv4, 7001)
                    answering = asyncio.to_thread(answer, there)
                    assert (await asyncio.gather(reader.read(), answering))[0] == b"hello"
                    writer.close()
            with socket.create_server(("127.0.0.1", 0)) as here:
                reader, writer = await caller.connect_anywhere("127.0.0.1", here.getsockname()[1], timeout=5)
                answering = asyncio.to_thread(answer, here)
                assert (await asyncio.gather(reader.read(), answering))[0] == b"hello"
                writer.close()

    asyncio.run(main())


def answer(listener: socket.socket) -> None:
    sock, _ = listener.accept()
    with sock:
        sock.sendall(b"hello")


class Waiting:
    """An asyncio device, for a thread that waits."""

    def __init__(self, device: aio.Device, loop: asyncio.AbstractEventLoop) -> None:
        self.hostname = device.hostname
        self._device, self._loop = device, loop

    def ping(self, name: str) -> Any:
        return asyncio.run_coroutine_threadsafe(self._device.ping(name), self._loop).result(10)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio_programs_take_the_device_of_their_backend(net: TailnetThread, server: sync.Device, backend: str) -> None:
    """Behind a forwarded port anyio's own streams are the same on both."""
    options = net.options()

    async def main() -> None:
        kind = aio.Device if backend == "asyncio" else tailscale.Device
        with anyio.fail_after(20):
            async with kind("any", **options) as device:
                while "server" not in {node.hostname for node in device.peers.values()}:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
                async with device.forward("server", 7002) as way:
                    stream = await anyio.connect_tcp(way.host, way.port)
                    async with stream:
                        assert await stream.receive() == b"hello"

    with server.listen(7002) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        anyio.run(main, backend=backend)
        thread.join()
