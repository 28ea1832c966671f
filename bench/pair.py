"""Two Devices of ours in one process over real loopback sockets, direct and through our relay.

Owns a program of public verbs only, so that it runs unchanged on any revision: `bench.against` gives it two of them.
What is counted is CPU time of the process, in which both ends live; other work on the machine disturbs that least.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from tailscale.testing import Tailnet

MIB = 1 << 20
BULK, ROUND_TRIPS, CONNECTS, DATAGRAMS = 24, 600, 150, 600
REPEATS = 3  # the best of these is the sample

Figure = tuple[float, str, bool]  # figure, unit, is lower better


async def echo(stream: Any) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


async def sink(stream: Any) -> None:
    """Reads all of it, then says one byte."""
    async with stream:
        async for _ in stream:
            pass
        await stream.send_all(b".")


async def udp_echo(socket: Any) -> None:
    while True:
        data, source = await socket.receive_from()
        await socket.send_to(data, source)


async def bulk(device: Any) -> None:
    async with await device.tcp_connect("b", 9) as stream:
        block = bytes(MIB // 2)
        for _ in range(2 * BULK):
            await stream.send_all(block)
        await stream.send_eof()
        await stream.receive_some()


async def round_trips(device: Any) -> None:
    async with await device.tcp_connect("b", 7) as stream:
        for _ in range(ROUND_TRIPS):
            await stream.send_all(bytes(64))
            got = 0
            while got < 64:
                got += len(await stream.receive_some())


async def connects(device: Any) -> None:
    for _ in range(CONNECTS):
        async with await device.tcp_connect("b", 7) as stream:
            await stream.send_all(b"x")
            await stream.receive_some()


async def datagrams(device: Any) -> None:
    """One after the other; a lost one is asked again."""
    async with await device.udp() as socket:
        for _ in range(DATAGRAMS):
            with trio.move_on_after(1.0):
                await socket.send_to(bytes(1000), ("b", 7))
                await socket.receive_from()


WORK: dict[str, tuple[Callable[[Any], Awaitable[None]], int, str]] = {
    "stream": (bulk, BULK, "ms CPU/MiB"),
    "round trip": (round_trips, ROUND_TRIPS, "ms CPU"),
    "connect, byte, close": (connects, CONNECTS, "ms CPU"),
    "UDP echo": (datagrams, DATAGRAMS, "ms CPU"),
}


@contextmanager
def spent(into: list[float], share: int) -> Iterator[None]:
    began = time.process_time()
    yield
    into.append((time.process_time() - began) / share * 1e3)


async def run(kind: str) -> dict[str, Figure]:
    """`kind` is direct or relay."""
    figures: dict[str, Figure] = {}
    async with Tailnet(real=True) as net, trio.open_nursery() as nursery:
        a, b = await net.device("a"), await net.device("b")
        if kind == "relay":
            net.block_udp(a, b)
        for port, serve in ((7, echo), (9, sink)):
            nursery.start_soon(trio.serve_listeners, serve, [await b.listen(port)])
        nursery.start_soon(udp_echo, await b.udp(7, host=b.ipv4))
        await acquainted(a, kind)
        for name, (work, share, unit) in WORK.items():
            await work(a)  # windows are open and verdicts remembered
            taken: list[float] = []
            for _ in range(REPEATS):
                with spent(taken, share):
                    await work(a)
            figures[f"{kind}: {name}"] = (min(taken), unit, True)
        nursery.cancel_scope.cancel()
    return figures


async def acquainted(device: Any, kind: str) -> None:
    """Traffic until the path is the wanted one."""
    with trio.fail_after(20):
        async with await device.tcp_connect("b", 7) as stream:
            while True:
                await stream.send_all(b"?")
                await stream.receive_some()
                if str(stream.path).startswith("direct") == (kind == "direct"):
                    return
                await trio.sleep(0.05)


def sample(kind: str) -> dict[str, Figure]:
    return trio.run(run, kind)
