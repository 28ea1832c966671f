"""`python -m bench.serve`: what serve costs over our ASGI server, over a bare stream, and for each idle WebSocket.

    python -m bench.serve                       # five rounds, about three minutes; needs no Go
    python -m bench.serve --rounds 1 --size 64

The caller and the control server are in this process; the publisher and the web server behind it have one each. All
sides are measured in turn, in the same run.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from bench.proxy import Measure, in_turn
from bench.results import Report, Row, run_measure
from bench.serve_sides import ASGI, BARE, PAGE, SERVE
from tailscale import Device
from tailscale.testing import Tailnet

SIDES = str(Path(__file__).with_name("serve_sides.py"))
REQUESTS = 200
WEBSOCKETS = 1000
WORD = os.sysconf("SC_PAGE_SIZE")
GET = b"GET %s HTTP/1.1\r\nHost: publisher\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: publisher\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


async def page(device: Device, port: int, path: bytes) -> float:
    """Milliseconds for a page of 64 KiB, over a connection that is kept."""
    async with await device.tcp_connect("publisher", port) as stream:
        began = time.perf_counter()
        for _ in range(REQUESTS):
            await stream.send_all(GET % path)
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            left = len(PAGE) - len(head.partition(b"\r\n\r\n")[2])
            while left:
                left -= len(await stream.receive_some())
        return (time.perf_counter() - began) / REQUESTS * 1e3


async def download(device: Device, port: int, asking: bytes, size: int) -> float:
    """Mbit/s of one long answer."""
    async with await device.tcp_connect("publisher", port) as stream:
        began, got = time.perf_counter(), 0
        await stream.send_all(asking)
        while got < size:
            got += len(await stream.receive_some())
        return got * 8 / (time.perf_counter() - began) / 1e6


async def idle_websockets(device: Device, pid: int) -> float:
    """KiB of the publisher's process for each one that rests."""
    before = resident(pid)
    streams = []
    for _ in range(WEBSOCKETS):
        stream = await device.tcp_connect("publisher", SERVE)
        await stream.send_all(UPGRADE)
        assert b" 101 " in await stream.receive_some()
        streams.append(stream)
    gc.collect()
    used = resident(pid) - before
    for stream in streams:
        stream.abort()
    return used / 1024 / WEBSOCKETS


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * WORD


async def first_line(process: trio.Process) -> str:
    assert process.stdout is not None
    return bytes(await process.stdout.receive_some()).decode().strip()


async def measure(rounds: int, size: int, report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await trio.Path(folder, "page.html").write_bytes(PAGE)
        async with Tailnet(real=True) as net:
            device = await net.device("caller")
            await _measure(rounds, size, report, net, device, folder)


async def _measure(rounds: int, size: int, report: Report, net: Tailnet, device: Device, folder: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = partial(trio.lowlevel.open_process, stdout=-1, env=environment)
    behind = await run([sys.executable, SIDES, "behind"])
    place = f"127.0.0.1:{await first_line(behind)}"
    publisher = await run([sys.executable, SIDES, "publish", net.control.url, net.auth_key(), place, folder])
    try:
        assert await first_line(publisher) == "ready"
        while "publisher" not in device.peers:  # noqa: ASYNC110
            await trio.sleep(0.1)
        while (await device.ping("publisher")).path.kind != "direct":  # noqa: ASYNC110
            await trio.sleep(0.1)
        sides: dict[str, Measure] = {
            "ASGI server": partial(page, device, ASGI, b"/"),
            "a server behind": partial(page, device, SERVE, b"/page"),
            "an app": partial(page, device, SERVE, b"/app"),
            "a file": partial(page, device, SERVE, b"/files/page.html"),
        }
        samples = await in_turn(rounds, sides)
        for side in list(sides)[1:]:
            both = {name: samples[name] for name in ("ASGI server", side)}
            aims = {} if side == "a file" else {"aim": 1.5, "floor": 2.0}  # a file costs a worker thread a turn
            report.add(Row(f"serve: page of {side}", "ms", both, side, "ASGI server", lower_is_better=True, **aims))
        sides = {
            "bare stream": partial(download, device, BARE, b"%d\n" % size, size),
            "serve": partial(download, device, SERVE, GET % (b"/download/%d" % size), size),
        }
        samples = await in_turn(rounds, sides)
        report.add(Row("serve: one download", "Mbit/s", samples, "serve", "bare stream", aim=0.8, floor=0.6))
        used = [await idle_websockets(device, publisher.pid)]
        idle = {"serve": used}
        report.add(Row("serve: an idle WebSocket", "KiB", idle, "serve", lower_is_better=True, aim=30, floor=40))
    finally:
        for process in (publisher, behind):
            process.terminate()
            await process.wait()


if __name__ == "__main__":
    run_measure("serve", measure, __doc__, megabytes=1024, of="one download")
