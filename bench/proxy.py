"""`python -m bench.proxy`: what a proxy costs over the connections it is made of, and beside tailscaled's own.

    python -m bench.proxy                  # five rounds, about two minutes; needs the Go peers of `make interop`
    python -m bench.proxy --rounds 1 --size 50

A tsnet node is the server. Our Device and its proxy are in this process; clients are processes of their own, on plain
sockets. All sides are measured in turn, in the same run.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from bench.results import Report, Row, run_measure
from tailscale import Device
from tailscale.proxy import serve
from tests.interop.ours import joined
from tests.interop.rig import rig

CLIENT = str(Path(__file__).with_name("proxy_client.py"))
ECHO, GENERATE = 7, 19
CONNECTS = 200
AT_ONCE = 8
IDLE = 400
MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")

Measure = Callable[[], Awaitable[float]]


async def asked(what: str, proxy_port: int, host: str, port: int, amount: int) -> dict[str, float]:
    """What a client in a process of its own has measured."""
    command = [sys.executable, "-S", CLIENT, what, str(proxy_port), host, str(port), str(amount)]
    done = await trio.run_process(command, capture_stdout=True)
    said: dict[str, float] = json.loads(done.stdout)
    return said


async def through(key: str, what: str, proxy_port: int, host: str, port: int, amount: int) -> float:
    return (await asked(what, proxy_port, host, port, amount))[key]


async def bare_connects(device: Device, host: str) -> float:
    took = []
    for _ in range(CONNECTS):
        began = time.perf_counter()
        stream = await device.tcp_connect(host, ECHO)
        took.append(time.perf_counter() - began)
        await stream.aclose()
    return statistics.median(took) * 1e3


async def bare_rate(device: Device, host: str) -> float:
    async def one() -> None:
        for _ in range(CONNECTS // AT_ONCE):
            await (await device.tcp_connect(host, ECHO)).aclose()

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(one)
    return CONNECTS / (time.perf_counter() - began)


async def bare_stream(device: Device, host: str, size: int) -> float:
    async with await device.tcp_connect(host, GENERATE) as stream:
        began, left = time.perf_counter(), size
        await stream.send_all(b"%d\n" % size)
        while left:
            left -= len(await stream.receive_some())
        return size * 8 / (time.perf_counter() - began) / 1e6


async def idle_memory(proxy_port: int, host: str) -> float:
    """KiB of this process for each connection that rests, the client's end included."""
    gc.collect()
    before = resident()
    streams = []
    for _ in range(IDLE):
        stream = await trio.open_tcp_stream("127.0.0.1", proxy_port)
        name = host.encode()
        await stream.send_all(b"\5\1\0\5\1\0\3" + bytes([len(name)]) + name + ECHO.to_bytes(2, "big"))
        got = b""
        while len(got) < 12:
            got += await stream.receive_some(12 - len(got))
        streams.append(stream)
    gc.collect()
    used = resident() - before
    for stream in streams:
        await stream.aclose()
    return used / 1024 / IDLE


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


async def in_turn(rounds: int, sides: dict[str, Measure]) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in list(sides)[:: -1 if number % 2 else 1]:
            samples[side].append(await sides[side]())
    return samples


async def measure(rounds: int, size: int, report: Report) -> None:
    async with rig("bench-proxy") as r, r.derper() as relay, r.headscale(regions=[relay.region]) as hs:
        key = await hs.auth_key()
        async with (
            r.tsnet(hs, key, "server", verbose=False) as server,
            r.tailscaled("stock", control=hs, auth_key=key) as stock,
            joined(hs, auth_key=key) as device,
            trio.open_nursery() as nursery,
        ):
            host, theirs = server.ip4, stock.socks_port
            proxy = await nursery.start(serve, device, None)
            while (await device.ping(host)).path.kind != "direct":  # noqa: ASYNC110
                await trio.sleep(0.1)
            await asked("connects", theirs, host, ECHO, 3)
            sides: dict[str, Measure] = {
                "tcp_connect": partial(bare_connects, device, host),
                "our proxy": partial(through, "ms", "connects", proxy.port, host, ECHO, CONNECTS),
                "tailscaled": partial(through, "ms", "connects", theirs, host, ECHO, CONNECTS),
            }
            report.add(Row("proxy: one connect", "ms", await in_turn(rounds, sides), "our proxy", "tcp_connect", True))
            sides = {
                "tcp_connect": partial(bare_rate, device, host),
                "our proxy": partial(through, "per_second", "rate", proxy.port, host, ECHO, CONNECTS),
                "tailscaled": partial(through, "per_second", "rate", theirs, host, ECHO, CONNECTS),
            }
            samples = await in_turn(rounds, sides)
            report.add(Row("proxy: connects", "/s", samples, "our proxy", "tcp_connect", aim=0.7, floor=0.5))
            sides = {
                "bare stream": partial(bare_stream, device, host, size),
                "our proxy": partial(through, "mbit_s", "stream", proxy.port, host, GENERATE, size),
                "tailscaled": partial(through, "mbit_s", "stream", theirs, host, GENERATE, size),
            }
            samples = await in_turn(rounds, sides)
            report.add(Row("proxy: one stream", "Mbit/s", samples, "our proxy", "bare stream", aim=0.9, floor=0.7))
            report.add(
                Row("proxy: beside tailscaled's", "Mbit/s", samples, "our proxy", "tailscaled", aim=1.5, floor=1)
            )
            memory = [await idle_memory(proxy.port, host)]
            report.add(Row("proxy: an idle connection", "KiB", {"our proxy": memory}, "our proxy"))
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    run_measure("proxy", measure, __doc__, megabytes=200, of="one stream")
