"""Our Device in a process of its own for the bench: the line protocol of the interop rig, and tsnet's `bench`.

It imports the product and little else, for its start is measured too. `--line DELAY_MS,MBIT,QUEUE_MS[,LOSS]` puts a
long line in front of its UDP socket. Besides the usual commands it knows `bench` (up, down, rtt, connect), `stall` (the
longest silence of a ticking task), `hold` (idle connections) and `profile` (cProfile on and off, into a file).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

import tailscale
from bench.line import LineNetwork
from tailscale.runtime.network import HostNetwork
from tests.interop.line_protocol import Json, arguments, obey, say, say_up

if TYPE_CHECKING:
    import cProfile

Device = tailscale.Device  # all its imports happen here, before the clock starts
TICK = 0.001
BLOCK = os.urandom(64 << 10)
EIGHT_BLOCKS = BLOCK * 8


# --- services -------------------------------------------------------------------------------------


async def echo(stream: Any) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)
    await stream.send_eof()


async def hash_all(stream: Any) -> None:
    """At the caller's FIN answers `<count> <sha256>`, as tsnet's service does."""
    h, count = hashlib.sha256(), 0
    async for chunk in stream:
        h.update(chunk)
        count += len(chunk)
    await stream.send_all(f"{count} {h.hexdigest()}\n".encode())
    await stream.send_eof()


async def udp_echo(socket: Any) -> None:
    while True:
        data, source = await socket.receive_from()
        await socket.send_to(data, source)


def guarded(handler: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    async def handle(stream: Any) -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                await handler(stream)

    return handle


async def generate(stream: Any) -> None:
    """`N\\n` is answered with N bytes; a bench asks for more than fits in memory."""
    left = int((await stream.receive_some(64)).strip())
    while left > 0:
        block = EIGHT_BLOCKS[:left]
        await stream.send_all(block)
        left -= len(block)


# --- figures --------------------------------------------------------------------------------------


async def up(device: tailscale.Device, host: str, seconds: float) -> Json:
    stream = await device.tcp_connect(host, 9)
    count, began = 0, time.perf_counter()
    async with stream:
        while time.perf_counter() - began < seconds:
            await stream.send_all(EIGHT_BLOCKS)
            count += len(EIGHT_BLOCKS)
        await stream.send_eof()
        async for _ in stream:  # the hash: all of it has arrived
            pass
    return rate(count, began)


async def down(device: tailscale.Device, host: str, seconds: float) -> Json:
    stream = await device.tcp_connect(host, 19)
    count, began = 0, time.perf_counter()
    with trio.move_on_after(seconds):
        await stream.send_all(b"%d\n" % (1 << 40))
        began = time.perf_counter()
        async for chunk in stream:
            count += len(chunk)
    said = rate(count, began)
    stream.abort()
    return said


def rate(count: int, began: float) -> Json:
    took = time.perf_counter() - began
    return {"bytes": count, "seconds": took, "mbit_s": count * 8 / took / 1e6}


async def rtt(device: tailscale.Device, host: str, seconds: float) -> Json:
    spent, message = [], bytes(64)
    async with await device.tcp_connect(host, 7) as stream:
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            await stream.send_all(message)
            got = 0
            while got < 64:
                got += len(await stream.receive_some(64 - got))
            spent.append(time.perf_counter() - began)
    spent.sort()
    return {
        "count": len(spent),
        "median_us": spent[len(spent) // 2] * 1e6,
        "p99_us": spent[len(spent) * 99 // 100] * 1e6,
    }


async def connect(device: tailscale.Device, host: str, seconds: float) -> Json:
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        async with await device.tcp_connect(host, 7) as stream:
            await stream.send_all(b"x")
            await stream.receive_some(1)
        count += 1
    return {"count": count, "per_s": count / (time.perf_counter() - began)}


async def dial(device: tailscale.Device, q: Json) -> Json:
    """Send `data` (or `bytes` zeros) and wait for `read` bytes."""
    began, got = time.perf_counter(), 0
    async with await device.tcp_connect(q["host"], q["port"]) as stream:
        connected = time.perf_counter()
        await stream.send_all(b64decode(q["data"]) if q.get("data") else bytes(q.get("bytes", 0)))
        while got < q.get("read", 0):
            got += len(await stream.receive_some())
        first = time.perf_counter()
    return {"connect_ms": (connected - began) * 1e3, "first_byte_ms": (first - began) * 1e3, "received": got}


async def udp(device: tailscale.Device, q: Json) -> Json:
    """`count` datagrams one after the other, an answer awaited to each."""
    data, spent = bytes(q["bytes"]), []
    async with await device.udp() as socket:
        for _ in range(q["count"]):
            began = time.perf_counter()
            await socket.send_to(data, (q["host"], q["port"]))
            with trio.move_on_after(1):
                await socket.receive_from()
                spent.append((time.perf_counter() - began) * 1e3)
    return {"answered": len(spent), "rtt_ms": spent}


KINDS = {"up": up, "down": down, "rtt": rtt, "connect": connect}


async def stall(seconds: float) -> Json:
    """How late a task that asked for a millisecond's sleep was woken, at worst and usually."""
    late: list[float] = []
    end = trio.current_time() + seconds
    while (asked := trio.current_time()) < end:
        await trio.sleep(TICK)
        late.append(trio.current_time() - asked - TICK)
    late.sort()
    return {
        "max_ms": late[-1] * 1e3,
        "p99_ms": late[len(late) * 99 // 100] * 1e3,
        "median_ms": late[len(late) // 2] * 1e3,
    }


class Node:
    """One device and what the bench asks of it."""

    def __init__(self, device: tailscale.Device, nursery: trio.Nursery) -> None:
        self._device, self._nursery = device, nursery
        self._profile: cProfile.Profile | None = None
        self._held: list[Any] = []

    async def serve(self) -> None:
        device, nursery = self._device, self._nursery
        handlers = {7: echo, 9: hash_all, 19: generate}
        for port, handler in handlers.items():
            listener = await device.listen(port)
            nursery.start_soon(trio.serve_listeners, guarded(handler), [listener])
        for host in (device.ipv4, device.ipv6):
            if host:
                nursery.start_soon(udp_echo, await device.udp(7, host=host))

    async def answer(self, q: Json) -> Json:
        match q["cmd"]:
            case "bench":
                return await KINDS[q["kind"]](self._device, q["host"], q.get("seconds") or 5.0)
            case "set":
                await self._device.set(**{name: value for name, value in q.items() if name.startswith("advertise_")})
                return {}
            case "stall":
                return await stall(q["seconds"])
            case "hold":
                for _ in range(q["count"]):
                    self._held.append(await self._device.tcp_connect(q["host"], 7))
                return {}
            case "profile":
                return self._toggle_profile(q.get("value", ""))
            case "dial":
                return await dial(self._device, q)
            case "udp":
                return await udp(self._device, q)
            case "ping":
                pong = await self._device.ping(q["host"])
                endpoint = pong.path.where if pong.path.kind == "direct" else ""
                return {"pings": [{"IP": q["host"], "LatencySeconds": pong.latency, "Endpoint": endpoint}]}
        raise ValueError(f"unknown command {q['cmd']!r}")

    def _toggle_profile(self, path: str) -> Json:
        import cProfile

        if self._profile is None:
            self._profile = cProfile.Profile()
            self._profile.enable()
        else:
            self._profile.disable()
            self._profile.dump_stats(path)
            self._profile = None
        return {}


def line_network(text: str) -> LineNetwork:
    delay, mbit, queue, *loss = (float(part) for part in text.split(","))
    draw = random.Random(1).random
    chance = loss[0] if loss else 0.0
    return LineNetwork(delay / 1e3, mbit * 1e6 / 8, queue / 1e3, (lambda: draw() < chance) if chance else lambda: False)


async def run(options: argparse.Namespace) -> None:
    began = time.monotonic()
    network = line_network(options.line) if options.line else HostNetwork()
    device = Device.on(
        network,
        options.hostname,
        control_url=options.control,
        auth_key=options.authkey,
        ephemeral=options.ephemeral,
        udp_port=options.port,
        ready_timeout=options.timeout,
    )
    try:
        await device.__aenter__()
    except tailscale.TailscaleError as e:
        say({"event": "failed", "error": f"{type(e).__name__}: {e}"})
        return
    elapsed = time.monotonic() - began
    try:
        async with trio.open_nursery() as nursery:
            node = Node(device, nursery)
            await node.serve()
            say_up(device, elapsed)
            await obey(node.answer)
            nursery.cancel_scope.cancel()
    finally:
        with contextlib.suppress(tailscale.TailscaleError):
            await device.__aexit__(None, None, None)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--line", default="")
    trio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
