"""`python -m bench.libraries`: servers and clients that people use, through two devices and over loopback, in turn.

    python -m bench.libraries                     # five rounds, two minutes; no Go, but PostgreSQL (install_servers.sh)
    python -m bench.libraries --rounds 2 --seconds 0.5

uvicorn and aiohttp serve from another process, on their device and on loopback at once; a client of aiohttp asks both,
over connections that are kept. asyncpg and psycopg ask one PostgreSQL, through `expose` and `take_dials` or `forward`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psycopg

from bench.libraries_sides import AIOHTTP, FILE, PAGE, POSTGRES, UVICORN
from bench.results import AS_INSTALLED, Report, Row
from tailscale import aio
from tailscale.http import AiohttpConnector
from tailscale.testing.threaded import TailnetThread
from tests.interop.postgresql import cluster

SIDES = str(Path(__file__).with_name("libraries_sides.py"))
BULK = "SELECT string_agg(repeat('x', 1000), '') FROM generate_series(1, 1000)"
Ask = Callable[[], Awaitable[object]]


async def per_second(ask: Ask, seconds: float) -> float:
    """How often it is answered."""
    for _ in range(5):
        await ask()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        await ask()
        count += 1
    return count / (time.perf_counter() - began)


def asking(session: aiohttp.ClientSession, url: str, size: int) -> Ask:
    async def ask() -> None:
        async with session.get(url) as response:
            assert len(await response.read()) == size

    return ask


def measure(options: argparse.Namespace, report: Report, net: TailnetThread, database: int) -> None:
    command = [sys.executable, SIDES, net.control_url, net.auth_key(), str(database)]
    environment = os.environ | AS_INSTALLED | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as serving:
        try:
            assert serving.stdout is not None
            ports = [int(word) for word in serving.stdout.readline().split()]
            asyncio.run(ask_all(options, report, net, database, *ports))
        finally:
            serving.terminate()


async def ask_all(options: argparse.Namespace, report: Report, net: TailnetThread, database: int, *ports: int) -> None:
    async with aio.Device("asks", **net.options()) as device:
        while "serves" not in device.peers:  # noqa: ASYNC110 - there is no event for an end of waiting
            await asyncio.sleep(0.1)
        while (await device.ping("serves")).path.kind != "direct":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        await http(options, report, device, *ports)
        await databases(options, report, device, database)


async def http(options: argparse.Namespace, report: Report, device: aio.Device, *ports: int) -> None:
    async with (
        aiohttp.ClientSession(connector=AiohttpConnector(device)) as tailnet,
        aiohttp.ClientSession() as loopback,
    ):
        for name, port, local in (("uvicorn", UVICORN, ports[0]), ("aiohttp", AIOHTTP, ports[1])):
            for path, size in (
                ("/page", len(PAGE)),
                ("/file", len(FILE)),
            ):
                sides = {
                    "two devices": asking(tailnet, f"http://serves:{port}{path}", size),
                    "loopback": asking(loopback, f"http://127.0.0.1:{local}{path}", size),
                }
                await in_turn(options, report, f"{name}: {'64 B' if size == len(PAGE) else '1 MiB'}", sides)


async def databases(options: argparse.Namespace, report: Report, device: aio.Device, database: int) -> None:
    login = {"user": "app", "database": "postgres", "ssl": False}
    with device.take_dials():
        far: Any = await asyncpg.connect(host="serves", port=POSTGRES, **login)
    near: Any = await asyncpg.connect(host="127.0.0.1", port=database, **login)
    for what, query in (("queries", "SELECT 1"), ("queries of 1 MB", BULK)):
        sides = {"two devices": lambda: far.fetchval(query), "loopback": lambda: near.fetchval(query)}  # noqa: B023
        await in_turn(options, report, f"asyncpg: {what}", sides)
    await far.close()
    await near.close()
    async with device.forward("serves", POSTGRES) as way:
        places = {"two devices": (way.host, way.port), "loopback": ("127.0.0.1", database)}
        held: dict[str, Any] = {
            side: await asyncio.to_thread(psycopg.connect, host=host, port=port, user="app", dbname="postgres")
            for side, (host, port) in places.items()
        }
        for what, query in (("queries", "SELECT 1"), ("queries of 1 MB", BULK)):
            sides = {side: blocking(connection, query) for side, connection in held.items()}
            await in_turn(options, report, f"psycopg: {what}", sides)
        for connection in held.values():
            connection.close()


def blocking(connection: Any, query: str) -> Ask:
    """The loop stands still meanwhile, as it does in nobody's program: there is nothing else in it."""

    async def ask() -> None:
        connection.execute(query).fetchone()

    return ask


async def in_turn(options: argparse.Namespace, report: Report, name: str, sides: dict[str, Ask]) -> None:
    samples: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in list(sides) if number % 2 == 0 else reversed(list(sides)):
            samples[side].append(await per_second(sides[side], options.seconds))
    report.add(Row(name, "/s", samples, "two devices", "loopback"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.libraries", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one sample")
    options = parser.parse_args()
    report = Report({"rows": ["libraries"], "rounds": options.rounds, "seconds": options.seconds})
    report.start()
    try:
        with TailnetThread() as net, cluster() as database:
            measure(options, report, net, database)
    finally:
        print(f"\nfigures: {report.save(None)}")


if __name__ == "__main__":
    main()
