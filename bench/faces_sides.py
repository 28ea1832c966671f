"""One process of `python -m bench.faces`: a device of one face that answers, and that calls when it is told to.

    python bench/faces_sides.py FACE NAME CONTROL KEY [CPU]

A line `rtt HOST SECONDS` on standard input (or `stream`, `connect`) is answered by one of JSON: how many, how long.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

import tailscale
from tailscale import aio, sync

ECHO, SINK = 7, 9
MESSAGE = bytes(64)
BLOCK = bytes(512 << 10)
CHUNK = 256 << 10
WARMING = 200  # round trips before the clock starts

LOST = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Counting:
    """So many in so long."""

    def __init__(self, seconds: float) -> None:
        self.count = 0
        self.began = time.perf_counter()
        self._end = self.began + seconds

    @property
    def goes_on(self) -> bool:
        return time.perf_counter() < self._end

    def as_json(self) -> dict[str, float]:
        return {"count": self.count, "seconds": time.perf_counter() - self.began}


# --- trio -------------------------------------------------------------------------------------------------------------


async def trio_rtt(device: Any, host: str, seconds: float) -> Counting:
    async with await device.tcp_connect(host, ECHO) as stream:
        for _ in range(WARMING):
            await stream.send_all(MESSAGE)
            await stream.receive_some()
        counting = Counting(seconds)
        while counting.goes_on:
            await stream.send_all(MESSAGE)
            await stream.receive_some()
            counting.count += 1
    return counting


async def trio_stream(device: Any, host: str, seconds: float) -> Counting:
    async with await device.tcp_connect(host, SINK) as stream:
        counting = Counting(seconds)
        while counting.goes_on:
            await stream.send_all(BLOCK)
            counting.count += len(BLOCK)
        await stream.send_eof()
        await stream.receive_some()
    return counting


async def trio_connect(device: Any, host: str, seconds: float) -> Counting:
    counting = Counting(seconds)
    while counting.goes_on:
        async with await device.tcp_connect(host, ECHO) as stream:
            await stream.send_all(b"x")
            await stream.receive_some()
        counting.count += 1
    return counting


async def trio_echo(stream: Any) -> None:
    with contextlib.suppress(*LOST):
        async with stream:
            async for data in stream:
                await stream.send_all(data)


async def trio_sink(stream: Any) -> None:
    with contextlib.suppress(*LOST):
        async with stream:
            async for _ in stream:
                pass
            await stream.send_all(b".")


async def run_trio(name: str, options: dict[str, Any]) -> None:
    async with tailscale.Device(name, **options) as device, trio.open_nursery() as nursery:
        for port, handle in ((ECHO, trio_echo), (SINK, trio_sink)):
            nursery.start_soon(trio.serve_listeners, handle, [await device.listen(port)])
        work = {"rtt": trio_rtt, "stream": trio_stream, "connect": trio_connect}
        say("ready")
        while words := (await trio.to_thread.run_sync(sys.stdin.readline)).split():
            await say_done(work[words[0]](device, words[1], float(words[2])))
        nursery.cancel_scope.cancel()


# --- asyncio ----------------------------------------------------------------------------------------------------------


async def aio_rtt(device: Any, host: str, seconds: float) -> Counting:
    reader, writer = await device.open_connection(host, ECHO)
    for _ in range(WARMING):
        writer.write(MESSAGE)
        await reader.read(CHUNK)
    counting = Counting(seconds)
    while counting.goes_on:
        writer.write(MESSAGE)
        await reader.read(CHUNK)
        counting.count += 1
    writer.close()
    return counting


async def aio_stream(device: Any, host: str, seconds: float) -> Counting:
    reader, writer = await device.open_connection(host, SINK)
    counting = Counting(seconds)
    while counting.goes_on:
        writer.write(BLOCK)
        await writer.drain()
        counting.count += len(BLOCK)
    writer.write_eof()
    await reader.read()
    writer.close()
    return counting


async def aio_connect(device: Any, host: str, seconds: float) -> Counting:
    counting = Counting(seconds)
    while counting.goes_on:
        reader, writer = await device.open_connection(host, ECHO)
        writer.write(b"x")
        await reader.read(CHUNK)
        writer.close()
        counting.count += 1
    return counting


async def aio_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.close()


async def aio_sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(CHUNK):
            pass
        writer.write(b".")
        writer.close()


async def run_aio(name: str, options: dict[str, Any]) -> None:
    async with aio.Device(name, **options) as device:
        servers = [await device.start_server(aio_echo, ECHO), await device.start_server(aio_sink, SINK)]
        work = {"rtt": aio_rtt, "stream": aio_stream, "connect": aio_connect}
        say("ready")
        while words := (await asyncio.to_thread(sys.stdin.readline)).split():
            await say_done(work[words[0]](device, words[1], float(words[2])))
        for server in servers:
            server.close()


# --- threads ----------------------------------------------------------------------------------------------------------


def sync_rtt(device: Any, host: str, seconds: float) -> Counting:
    with device.connect(host, ECHO) as sock:
        for _ in range(WARMING):
            sock.sendall(MESSAGE)
            sock.recv(CHUNK)
        counting = Counting(seconds)
        while counting.goes_on:
            sock.sendall(MESSAGE)
            sock.recv(CHUNK)
            counting.count += 1
    return counting


def sync_stream(device: Any, host: str, seconds: float) -> Counting:
    with device.connect(host, SINK) as sock:
        counting = Counting(seconds)
        while counting.goes_on:
            sock.sendall(BLOCK)
            counting.count += len(BLOCK)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    return counting


def sync_connect(device: Any, host: str, seconds: float) -> Counting:
    counting = Counting(seconds)
    while counting.goes_on:
        with device.connect(host, ECHO) as sock:
            sock.sendall(b"x")
            sock.recv(CHUNK)
        counting.count += 1
    return counting


def sync_echo(sock: socket.socket) -> None:
    with contextlib.suppress(OSError), sock:
        while data := sock.recv(CHUNK):
            sock.sendall(data)


def sync_sink(sock: socket.socket) -> None:
    with contextlib.suppress(OSError), sock:
        while sock.recv(CHUNK):
            pass
        sock.sendall(b".")


def sync_serve(listener: Any, handle: Callable[[Any], None]) -> None:
    for sock, _ in listener:
        threading.Thread(target=handle, args=(sock,), daemon=True).start()


def run_sync(name: str, options: dict[str, Any]) -> None:
    with sync.Device(name, **options) as device:
        for port, handle in ((ECHO, sync_echo), (SINK, sync_sink)):
            threading.Thread(target=sync_serve, args=(device.listen(port), handle), daemon=True).start()
        work = {"rtt": sync_rtt, "stream": sync_stream, "connect": sync_connect}
        say("ready")
        while words := sys.stdin.readline().split():
            say(work[words[0]](device, words[1], float(words[2])).as_json())


# --- the process ------------------------------------------------------------------------------------------------------


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


async def say_done(working: Awaitable[Counting]) -> None:
    say((await working).as_json())


def main(face: str, name: str, control: str, key: str, cpu: str = "") -> None:
    if cpu:
        os.sched_setaffinity(0, {int(cpu)})
    options = {"control_url": control, "auth_key": key}
    if face == "trio":
        trio.run(run_trio, name, options)
    elif face == "asyncio":
        asyncio.run(run_aio(name, options))
    elif face == "uvloop":
        import uvloop

        uvloop.run(run_aio(name, options))
    else:
        run_sync(name, options)


if __name__ == "__main__":
    main(*sys.argv[1:])
