"""What messages of a mesh cost: `python -m bench.mesh`. Two processes over loopback, and what an idle session keeps.

Each figure stands beside the bare round trip of the same run, over the same tunnel, so that a busy machine blurs both.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from functools import partial
from typing import Any

import trio

from tailscale import Device
from tailscale.mesh import Mesh, Message
from tailscale.testing import Tailnet

ROUNDS, PIPELINED, ASKED, SESSIONS = 500, 20_000, 500, 24
PAYLOAD = "x" * 98  # 100 bytes as JSON
WORKERS = 64


async def echo(stream: Any) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


async def answer(question: Message[Any]) -> object:
    return question.data


async def serve(device: Device, mesh: Mesh) -> None:
    """The other process: everything that the first one asks for."""
    async with trio.open_nursery() as nursery, mesh.subscribe("bench") as inbox:
        nursery.start_soon(trio.serve_listeners, echo, [await device.listen(7)])
        await nursery.start(mesh.serve, "echo", answer)
        print("up", flush=True)
        async for _ in inbox:
            pass


async def bare_round_trips(device: Device) -> list[float]:
    times = []
    async with await device.tcp_connect("b", 7) as stream:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            await stream.send_all(bytes(64))
            got = 0
            while got < 64:
                got += len(await stream.receive_some())
            times.append(time.perf_counter() - began)
    return times


async def acknowledged(mesh: Mesh) -> list[float]:
    times, peer = [], await mesh.peer("b", timeout=10)
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await peer.send("bench", PAYLOAD)
        times.append(time.perf_counter() - began)
    return times


async def pipelined(mesh: Mesh) -> float:
    """Messages a second, every one acknowledged before the clock stops."""
    peer = await mesh.peer("b", timeout=10)

    async def work() -> None:
        for _ in range(PIPELINED // WORKERS):
            await peer.send("bench", PAYLOAD)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(work)
    return PIPELINED / (time.perf_counter() - began)


async def asked(mesh: Mesh) -> tuple[float, int]:
    """How long so many requests at once take, and how many got their own answer."""
    right = 0

    async def ask(number: int) -> None:
        nonlocal right
        got = await mesh.request("b", "echo", number, timeout=60)
        right += got == number

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(ASKED):
            nursery.start_soon(ask, number)
    return time.perf_counter() - began, right


async def idle_session() -> float:
    """Bytes that one end of an idle session keeps: many devices in one process, before and after they speak."""
    async with Tailnet() as net:
        hub = await net.device("hub")
        others = [await net.device(f"d{number}") for number in range(SESSIONS)]
        async with Mesh(hub, "bench") as mesh, trio.open_nursery() as nursery:

            async def live(device: Device) -> None:
                async with Mesh(device, "bench") as other, other.subscribe("bench") as inbox:
                    async for _ in inbox:
                        pass

            for device in others:
                nursery.start_soon(live, device)
            while len(mesh.peers) < SESSIONS:  # noqa: ASYNC110 - a fact
                await trio.sleep(0.05)
            await trio.sleep(1)
            for device in others:  # the tunnels are there, and what a first stream imports
                async with await hub.tcp_connect(device.hostname, 9417):
                    pass
            await trio.sleep(6)
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            await mesh.broadcast("bench", 1)
            await trio.sleep(2)
            gc.collect()
            kept = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            nursery.cancel_scope.cancel()
    return kept / SESSIONS / 2


async def peer(control: str, key: str, name: str, role: str) -> None:
    async with Device(name, control_url=control, auth_key=key) as device, Mesh(device, "bench") as mesh:
        if role == "serve":
            await serve(device, mesh)
            return
        await mesh.peer("b", timeout=20)
        await device.ping("b")
        await trio.sleep(1)
        bare = await bare_round_trips(device)
        acked = await acknowledged(mesh)
        rate = await pipelined(mesh)
        took, right = await asked(mesh)
        figures = {
            "bare round trip of 64 B, p50": f"{statistics.median(bare) * 1e6:.0f} us",
            "acknowledged send of 100 B, p50": f"{statistics.median(acked) * 1e6:.0f} us",
            "times the bare round trip (bar: 3)": f"{statistics.median(acked) / statistics.median(bare):.2f}",
            "acknowledged, pipelined (bar: 5000/s)": f"{rate:.0f}/s",
            f"{ASKED} requests at once": f"{took * 1000:.0f} ms, {right} matched",
        }
        print(json.dumps(figures), flush=True)


async def measure() -> None:
    async with Tailnet(real=True) as net:
        command = [sys.executable, "-m", "bench.mesh", "--control", net.control.url]
        keys = [net.auth_key() for _ in range(2)]
        start = partial(trio.lowlevel.open_process, stdout=subprocess.PIPE)
        other = await start([*command, "--key", keys[0], "--name", "b", "--role", "serve"])
        try:
            assert other.stdout is not None
            await other.stdout.receive_some()
            one = await trio.run_process(
                [*command, "--key", keys[1], "--name", "a", "--role", "ask"], capture_stdout=True
            )
        finally:
            other.kill()
            await other.wait()
    figures = json.loads(one.stdout)
    figures["one end of an idle session (bar: 100 KiB)"] = f"{await idle_session() / 1024:.0f} KiB"
    for name, figure in figures.items():
        print(f"{name:45} {figure}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    for name in ("--control", "--key", "--name", "--role"):
        options.add_argument(name, default="")
    found = options.parse_args()
    if found.role:
        trio.run(peer, found.control, found.key, found.name, found.role)
    else:
        trio.run(measure)


if __name__ == "__main__":
    main()
