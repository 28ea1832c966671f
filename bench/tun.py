"""`python -m bench.tun`: one TCP stream of the kernel's through a TUN device, beside one of our own sockets.

`alone` is a socket of ours while there is no TUN device, `ours` beside one. All go over the same tunnel to the same far
device, in turn, so that the ratio is good on a busy machine as well. Needs root and network namespaces; touches nothing
outside its own.

    python -m bench.tun [--mib 64] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

import tailscale
from tests.interop import natlab
from tests.interop.rig import Headscale, Rig

MIB = 1 << 20
SINK, SOURCE = 9, 19
CLIENT = """
import socket, sys, time
host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
s = socket.create_connection((host, port))
began, block = time.perf_counter(), bytes(1 << 18)
if port == 9:
    for _ in range(size >> 18):
        s.sendall(block)
    s.shutdown(socket.SHUT_WR)
    assert s.recv(100).startswith(str(size).encode())
else:
    s.sendall(b"%d\\n" % size)
    while size:
        size -= len(s.recv(1 << 18))
print(time.perf_counter() - began)
"""


async def kernel(host: str, size: int, port: int) -> float:
    command = [sys.executable, "-c", CLIENT, host, str(port), str(size)]
    return float((await trio.run_process(command, capture_stdout=True)).stdout)


async def ours(device: tailscale.Device, host: str, size: int, port: int) -> float:
    async with await device.tcp_connect(host, port) as stream:
        began = time.perf_counter()
        if port == SINK:
            for _ in range(size >> 18):
                await stream.send_all(bytes(1 << 18))
            await stream.send_eof()
            assert bytes(await stream.receive_some(100)).startswith(str(size).encode())
        else:
            await stream.send_all(b"%d\n" % size)
            while size:
                size -= len(await stream.receive_some(1 << 18))
        return time.perf_counter() - began


async def alone(device: tailscale.Device, host: str, size: int, port: int) -> float:
    """The same without a TUN device."""
    await device.tun_down()
    try:
        return await ours(device, host, size, port)
    finally:
        await device.tun_up(tailscale.tun("pt-bench", dns=False))


async def compare(what: str, sides: dict[str, Callable[[], Awaitable[float]]], size: int, rounds: int) -> None:
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            rates[name].append(size / MIB / await measure())
    middle = {name: statistics.median(found) for name, found in rates.items()}
    rate = ", ".join(f"{name} {found:.1f} MiB/s" for name, found in middle.items())
    print(f"{what:>5}: {rate}; kernel / alone = {middle['kernel'] / middle['alone']:.2f}", flush=True)


async def main(mib: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        async with natlab.lab(rig) as (made, hs):
            await measure(rig, made.site("none").client, hs, mib * MIB, rounds)


async def measure(r: Rig, namespace: str, hs: Headscale, size: int, rounds: int) -> None:
    key = await hs.auth_key()
    async with r.ours(hs, key, "far", namespace=namespace) as far:
        options = {"control_url": hs.url, "auth_key": key, "overlay": tailscale.tun("pt-bench", dns=False)}
        async with tailscale.Device("near", **options) as device:
            await device.ping("far")
            for what, port in (("up", SINK), ("down", SOURCE)):
                sides: dict[str, Callable[[], Awaitable[float]]] = {
                    "alone": partial(alone, device, far.ip4, size, port),
                    "kernel": partial(kernel, far.ip4, size, port),
                    "ours": partial(ours, device, far.ip4, size, port),
                }
                await compare(what, sides, size, rounds)
            print("drops", {k: v for k, v in device.status().drops.items() if v})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    trio.run(main, chosen.mib, chosen.rounds)
