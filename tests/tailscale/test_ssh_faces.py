"""serve_ssh with the devices of asyncio and of threads: where the handler runs, and how the server ends."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from ssh_scripts import Way, policy

from tailscale import aio, sync
from tailscale.ssh import Session, SyncSession, serve_ssh
from tailscale.testing import aio as aio_testing
from tailscale.testing import sync as sync_testing

pytestmark = pytest.mark.slow


def test_under_asyncio_the_handler_runs_in_the_loop_that_awaits() -> None:
    async def main() -> None:
        home = asyncio.get_running_loop()

        async def handler(session: Session) -> int:
            assert asyncio.get_running_loop() is home
            session.stdout.write(await session.stdin.readline())
            await session.stdout.drain()
            await asyncio.sleep(0)
            return 4

        async with aio_testing.Tailnet(policy=policy()) as net:
            server, client = await net.device("server"), await net.device("client")
            assert isinstance(server, aio.Device)
            up = asyncio.Event()
            serving = asyncio.create_task(serve_ssh(server, handler, started=lambda port: up.set()))
            await up.wait()
            async with client.forward("server", 22) as way:
                done = await Way(way.host, way.port).in_this_loop("x", b"line\nrest")
                assert (done.code, done.out) == (4, b"line\n")
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving

    asyncio.run(main())


def test_with_threads_the_handler_is_a_function_and_the_call_waits() -> None:
    seen: list[Any] = []

    def handler(session: SyncSession) -> None:
        seen.append((session.peer.hostname, threading.current_thread().name))
        for line in session.stdin:
            session.stdout.write(line.upper())
        print("by print", file=session.stderr)  # type: ignore[call-overload]
        session.exit(9)

    with sync_testing.Tailnet(policy=policy()) as net:
        server, client = net.device("server"), net.device("client")
        assert isinstance(server, sync.Device)
        up = threading.Event()
        serving = threading.Thread(target=serve_ssh, args=(server, handler), kwargs={"started": lambda port: up.set()})
        serving.start()
        assert up.wait(20)
        with client.forward("server", 22) as way:
            done = asyncio.run(Way(way.host, way.port).in_this_loop("x", b"a\nb\n"))
        assert (done.code, done.out, done.err) == (9, b"A\nB\n", b"by print\n")
        assert seen == [("client", "tailscale-ssh-session")]
        server.close()  # which ends the server
        serving.join(20)
        assert not serving.is_alive()
