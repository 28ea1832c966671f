"""A real tailnet on loopback, in a thread of its own: what the tests of the threaded and asyncio faces join."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from tailscale import NameNotFound, NoRoute
from tailscale.testing import Tailnet


class ThreadedTailnet:
    """`do(function, ...)` runs something inside; `options` are what a device needs to join."""

    def __init__(self, net: Tailnet, token: trio.lowlevel.TrioToken) -> None:
        self.net = net
        self._token = token

    @property
    def options(self) -> dict[str, Any]:
        return {"control_url": self.net.control.url, "auth_key": self.do(self.net.auth_key)}

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)


@contextmanager
def tailnet_thread() -> Iterator[ThreadedTailnet]:
    started: queue.Queue[Any] = queue.Queue()

    async def main() -> None:
        async with Tailnet(real=True) as net:
            stop = trio.Event()
            started.put((net, trio.lowlevel.current_trio_token(), stop))
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    net, token, stop = started.get(timeout=10)
    try:
        yield ThreadedTailnet(net, token)
    finally:
        token.run_sync_soon(stop.set)
        thread.join(timeout=15)
        assert not thread.is_alive()


def read_all(sock: socket.socket) -> bytes:
    received = bytearray()
    while data := sock.recv(1 << 18):
        received += data
    return bytes(received)


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "tailscale"]


def introduce(*devices: Any) -> None:
    """Wait until all of them know each other."""
    deadline = time.monotonic() + 10
    for asking in devices:
        for asked in devices:
            while asking is not asked and not reaches(asking, asked.hostname):
                assert time.monotonic() < deadline, "the devices never met"
                time.sleep(0.005)


def reaches(device: Any, hostname: str) -> bool:
    try:
        return device.ping(hostname) is not None
    except (NameNotFound, NoRoute):
        return False
