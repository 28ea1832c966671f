"""`python -m bench.funnel`: what a Funnel relay costs over the connection that it is made of, and for each that rests.

    python -m bench.funnel                       # five rounds, about two minutes; needs no Go
    python -m bench.funnel --rounds 1 --size 64

The relay and the control server are in this process; the target and each client have one of their own. All sides are
measured in turn, in the same run.
"""

from __future__ import annotations

import gc
import os
import sys
from functools import partial
from pathlib import Path

import trio

from bench.funnel_sides import BARE, RAW_NAME, TLS_NAME, hello
from bench.proxy import Measure, in_turn, resident
from bench.results import Report, Row, run_measure
from tailscale import Device
from tailscale.ingress import Ingress, IngressLimits, ingress
from tailscale.testing import Tailnet

SIDES = str(Path(__file__).with_name("funnel_sides.py"))
IDLE = 500


async def bare(device: Device, size: int) -> float:
    """Mbit/s over the tailnet, without a relay."""
    async with await device.tcp_connect("target", BARE) as stream:
        began, left = trio.current_time(), size
        await stream.send_all(b"%d\n" % size)
        while left > 0:
            left -= len(await stream.receive_some())
        return size * 8 / (trio.current_time() - began) / 1e6


async def through(kind: str, port: int, size: int) -> float:
    """Mbit/s that a client in a process of its own gets."""
    command = [sys.executable, SIDES, kind, str(port), str(size)]
    return float((await trio.run_process(command, capture_stdout=True)).stdout)


async def idle_memory(relay: Ingress) -> float:
    """KiB of this process for each connection that rests, the client's end included."""
    gc.collect()
    before, streams = resident(), []
    for _ in range(IDLE):
        stream = await trio.open_tcp_stream("127.0.0.1", relay.port)
        await stream.send_all(hello(RAW_NAME.encode()))
        streams.append(stream)
    while relay.statistics().carried < IDLE:  # noqa: ASYNC110
        await trio.sleep(0.05)
    gc.collect()
    used = resident() - before
    for stream in streams:
        await stream.aclose()
    return used / 1024 / IDLE


async def measure(rounds: int, size: int, report: Report) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    async with Tailnet(real=True) as net, trio.open_nursery() as nursery:
        device = await net.device("gate")
        command = [sys.executable, SIDES, "target", net.control.url, net.auth_key()]
        target = await trio.lowlevel.open_process(command, stdout=-1, env=environment)
        try:
            assert target.stdout is not None
            assert (await target.stdout.receive_some()).strip() == b"ready"
            while "target" not in device.peers:  # noqa: ASYNC110
                await trio.sleep(0.1)
            while (await device.ping("target")).path.kind != "direct":  # noqa: ASYNC110
                await trio.sleep(0.1)
            limits = IngressLimits(per_source=4096)
            names = {RAW_NAME: "target", TLS_NAME: "target"}
            relay = await nursery.start(partial(ingress, port=443, limits=limits), device, "127.0.0.1:0", names)
            sides: dict[str, Measure] = {
                "bare stream": partial(bare, device, size),
                "our relay": partial(through, "raw", relay.port, size),
                "our relay and TLS": partial(through, "tls", relay.port, size),
            }
            samples = await in_turn(rounds, sides)
            for side, floor in (("our relay", 0.7), ("our relay and TLS", 0.5)):
                both = {name: samples[name] for name in ("bare stream", side)}
                report.add(Row(f"funnel: {side}", "Mbit/s", both, side, "bare stream", aim=0.9, floor=floor))
            report.add(Row("funnel: an idle connection", "KiB", {"our relay": [await idle_memory(relay)]}, "our relay"))
        finally:
            target.kill()
            await target.wait()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    run_measure("funnel", measure, __doc__, megabytes=200, of="one stream")
