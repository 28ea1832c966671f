"""Rows between processes: tsnet and our Device, each as caller and as callee, through real Headscale and derper.

Owns the tailnets these rows run in and the order in which pairs take turns. Refuses to know how rows are shown.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from bench.results import AS_INSTALLED, Row
from tests.interop.processes import Process
from tests.interop.rig import Headscale, Rig, TsnetPeer

ROOT = Path(__file__).resolve().parents[1]
BASE = "tsnet to tsnet"
PAIRS = (BASE, "ours to tsnet", "tsnet to ours", "ours to ours")
GIB = 1 << 30
Json = dict[str, Any]
Nodes = dict[str, TsnetPeer]
Measured = dict[str, list[float]]
Ask = Callable[[TsnetPeer, TsnetPeer], Awaitable[float]]


@contextlib.asynccontextmanager
async def our_node(
    r: Rig, control: Headscale | str, key: str, name: str, *, line: str = "", **options: Any
) -> AsyncIterator[TsnetPeer]:
    program = [sys.executable, "-m", "bench.node", *(["--line", line] if line else [])]
    env = {**AS_INSTALLED, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    async with r.tsnet(control, key, name, program=program, env=env, verbose=False, **options) as node:
        yield node


@contextlib.asynccontextmanager
async def talker(r: Rig, name: str, module: str, *arguments: str) -> AsyncIterator[tuple[TsnetPeer, Json]]:
    """A bench program of ours that says one line when it is ready."""
    room = r.room(name)
    process = Process(
        name,
        [sys.executable, "-m", module, *arguments],
        room,
        env={**AS_INSTALLED, "PYTHONPATH": str(ROOT)},
        pipes=True,
    )
    peer = TsnetPeer(name, process)
    trio.lowlevel.spawn_system_task(peer.listen)
    try:
        yield peer, await peer.event("up", 60)
    finally:
        await peer.stop()


@dataclass
class Place:
    """One tailnet with two nodes of each kind, joined and acquainted."""

    path: str
    control: Headscale
    nodes: Nodes
    idle_kb: dict[str, int] = field(default_factory=dict)

    def pair(self, name: str) -> tuple[TsnetPeer, TsnetPeer]:
        caller, _, callee = name.partition(" to ")
        return self.nodes[f"{caller} a"], self.nodes[f"{callee} b"]


@contextlib.asynccontextmanager
async def place(r: Rig, path: str) -> AsyncIterator[Place]:
    """`direct`, `derper TLS`, `derper HTTP` or `our relay`."""
    http = path == "derper HTTP"
    options: Json = {} if path == "direct" else {"relay_only": True, "derp_http": http}
    async with contextlib.AsyncExitStack() as stack:
        if path == "our relay":
            _, said = await stack.enter_async_context(talker(r, "relay", "bench.relay"))
            region = said["region"]
        else:
            region = (await stack.enter_async_context(r.derper(tls=not http))).region
        hs = await stack.enter_async_context(r.headscale(regions=[region]))
        key = await hs.auth_key()
        nodes: Nodes = {}
        for side in "ab":
            nodes[f"tsnet {side}"] = await stack.enter_async_context(
                r.tsnet(hs, key, f"go-{side}", verbose=False, **options)
            )
            nodes[f"ours {side}"] = await stack.enter_async_context(our_node(r, hs, key, f"py-{side}", **options))
        made = Place(path, hs, nodes)
        made.idle_kb = {name: node.process.memory_kb() for name, node in nodes.items()}
        for name in PAIRS:
            caller, callee = made.pair(name)
            if path == "direct":
                await caller.wait_direct(callee.ip4)
            await caller.dial(callee.ip4, 7, bytes=1, read=1)
        yield made


async def in_turn(where: Place, rounds: int, ask: Ask, pairs: tuple[str, ...] = PAIRS) -> Measured:
    samples: Measured = {name: [] for name in pairs}
    for number in range(rounds):
        for name in pairs[:: -1 if number % 2 else 1]:
            samples[name].append(await ask(*where.pair(name)))
    return samples


def row(name: str, unit: str, samples: Measured, ours: str = "ours to tsnet", **options: Any) -> Row:
    return Row(name, unit, samples, ours, BASE, **options)


def bench(kind: str, what: str, seconds: float) -> Ask:
    async def ask(caller: TsnetPeer, callee: TsnetPeer) -> float:
        return float((await caller.bench(callee.ip4, kind, seconds))[what])

    return ask


def together(kinds: tuple[str, ...], seconds: float) -> Ask:
    """Several streams at once; their rates added up."""

    async def ask(caller: TsnetPeer, callee: TsnetPeer) -> float:
        rates: list[float] = []

        async def one(kind: str) -> None:
            rates.append((await caller.bench(callee.ip4, kind, seconds))["mbit_s"])

        async with trio.open_nursery() as nursery:
            for kind in kinds:
                nursery.start_soon(one, kind)
        return sum(rates)

    return ask


# --- what is measured -----------------------------------------------------------------------------


async def stream(where: Place, rounds: int, seconds: float) -> AsyncIterator[Row]:
    """One TCP stream up, with the CPU of both ends beside it, and down."""
    # Through a relay the aim is ours at both ends: with one of tsnet's, the relay's queue of small packets decides.
    mixed = {"direct": (1.0, 0.4)}.get(where.path, (None, None))
    both_ours = {"direct": (1.0, 0.4), "derper TLS": (5.0, 3.0)}.get(where.path, (None, None))
    cpu: Measured = {"tsnet sending": [], "ours sending": [], "tsnet receiving": [], "ours receiving": []}

    async def up(caller: TsnetPeer, callee: TsnetPeer) -> float:
        before = caller.process.cpu_seconds(), callee.process.cpu_seconds()
        said = await caller.bench(callee.ip4, "up", seconds)
        gib = said["bytes"] / GIB
        for node, at, what in ((caller, before[0], "sending"), (callee, before[1], "receiving")):
            kind = "ours" if node.name.startswith("py") else "tsnet"
            cpu[f"{kind} {what}"].append((node.process.cpu_seconds() - at) / gib)
        return float(said["mbit_s"])

    samples = await in_turn(where, rounds, up)
    yield row(f"{where.path}: stream up", "Mbit/s", samples, aim=mixed[0], floor=mixed[1])
    yield row(
        f"{where.path}: the same, ours both", "Mbit/s", samples, "ours to ours", aim=both_ours[0], floor=both_ours[1]
    )
    yield row(
        f"{where.path}: stream down", "Mbit/s", await in_turn(where, rounds, bench("down", "mbit_s", seconds)),
        aim=mixed[0], floor=mixed[1],
    )  # fmt: skip
    for what in ("sending", "receiving"):
        sides = {side: cpu[side] for side in (f"tsnet {what}", f"ours {what}")}
        yield Row(f"{where.path}: CPU {what}", "s/GiB", sides, f"ours {what}", f"tsnet {what}", True)


async def both(where: Place, rounds: int, seconds: float) -> AsyncIterator[Row]:
    yield row(f"{where.path}: up and down", "Mbit/s", await in_turn(where, rounds, together(("up", "down"), seconds)))


async def eight(where: Place, rounds: int, seconds: float) -> AsyncIterator[Row]:
    yield row(f"{where.path}: 8 streams up", "Mbit/s", await in_turn(where, rounds, together(("up",) * 8, seconds)))


async def udp(where: Place, rounds: int, seconds: float) -> AsyncIterator[Row]:
    """Datagrams of 1,000 bytes echoed, 16 in flight: packets in both directions per second."""
    flights, count = 16, max(20, int(seconds * 300))

    async def ask(caller: TsnetPeer, callee: TsnetPeer) -> float:
        rates: list[float] = []

        async def one() -> None:  # a lost datagram costs a second of waiting, which says nothing about packets
            said = await caller.ask("udp", host=callee.ip4, port=7, bytes=1000, count=count)
            rates.append(2e3 * said["answered"] / sum(said["rtt_ms"]))

        async with trio.open_nursery() as nursery:
            for _ in range(flights):
                nursery.start_soon(one)
        return sum(rates)

    yield row(f"{where.path}: UDP, 16 in flight", "packets/s", await in_turn(where, rounds, ask))


async def round_trip(where: Place, rounds: int, seconds: float) -> AsyncIterator[Row]:
    aims: Json = {"aim": 0.8, "floor": 1.5} if where.path == "direct" else {}
    samples = await in_turn(where, rounds, bench("rtt", "median_us", seconds))
    yield row(f"{where.path}: round trip 64 B", "us", samples, lower_is_better=True, **aims)


async def loaded(where: Place, rounds: int, seconds: float) -> AsyncIterator[Row]:
    """The same echo while another stream of the same pair is full."""

    async def ask(caller: TsnetPeer, callee: TsnetPeer) -> float:
        said: Json = {}

        async def echo() -> None:
            await trio.sleep(seconds / 4)
            said.update(await caller.bench(callee.ip4, "rtt", seconds / 2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            await caller.bench(callee.ip4, "up", seconds)
        return float(said["median_us"])

    samples = await in_turn(where, rounds, ask)
    yield row(f"{where.path}: round trip, loaded", "us", samples, lower_is_better=True)


async def connect(where: Place, rounds: int, seconds: float) -> AsyncIterator[Row]:
    aims: Json = {"aim": 1.0, "floor": 0.4} if where.path == "direct" else {}
    samples = await in_turn(where, rounds, bench("connect", "per_s", seconds))
    yield row(f"{where.path}: connect, byte, close", "/s", samples, **aims)


async def stall(where: Place, rounds: int, seconds: float) -> AsyncIterator[Row]:
    """How late a sleeping task of the same process is woken while a stream is full: sending, receiving, idle."""
    worst: Measured = {"idle": [], "sending": [], "receiving": []}

    async def tick(node: TsnetPeer, what: str) -> None:
        worst[what].append((await node.ask("stall", seconds=seconds * 0.8))["max_ms"])

    sender, receiver = where.nodes["ours a"], where.nodes["ours b"]
    go = where.nodes["tsnet b"], where.nodes["tsnet a"]
    for _ in range(rounds):
        await tick(sender, "idle")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.bench, go[0].ip4, "up", seconds)
            nursery.start_soon(tick, sender, "sending")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go[1].bench, receiver.ip4, "up", seconds)
            nursery.start_soon(tick, receiver, "receiving")
    yield Row(f"{where.path}: longest stall", "ms", worst, "sending", lower_is_better=True)


async def memory(where: Place, rounds: int, seconds: float) -> AsyncIterator[Row]:
    """Resident memory idle, after bulk (both directions), and per idle connection."""
    sides = {"tsnet": "tsnet a", "ours": "ours a"}
    idle = {side: [where.idle_kb[name] / 1024] for side, name in sides.items()}
    yield Row(f"{where.path}: memory idle", "MiB", idle, "ours", "tsnet", True)
    target = where.nodes["tsnet b"]
    after: Measured = {}
    for side, name in sides.items():
        node = where.nodes[name]
        await node.bench(target.ip4, "up", seconds)
        await node.bench(target.ip4, "down", seconds)
        after[side] = [node.process.memory_kb() / 1024]
    yield Row(f"{where.path}: memory after bulk", "MiB", after, "ours", "tsnet", True, aim=0.2, floor=0.3)
    count, each = 200, {}
    for side, name in sides.items():
        node = where.nodes[name]
        before = node.process.memory_kb()
        async with trio.open_nursery() as nursery:
            for _ in range(count):  # one byte is sent and two are awaited, so they all stay open
                nursery.start_soon(_hang, node, target.ip4)
            await trio.sleep(2.0)
            each[side] = [max(0.0, (node.process.memory_kb() - before) / count)]
    yield Row(f"{where.path}: memory per connection", "KiB", each, "ours", "tsnet", True)


async def _hang(node: TsnetPeer, host: str) -> None:
    await node.ask("dial", check=False, host=host, port=7, data=b"x", read=2, timeout=3)


async def ready(where: Place, rounds: int, _: float) -> AsyncIterator[Row]:
    """A new node each time: entering to first byte of a peer's echo, without and with process start and imports."""
    r = Rig(where.control.folder.parent)
    key = await where.control.auth_key()
    entered: Measured = {"tsnet": [], "ours": []}
    whole: Measured = {"tsnet": [], "ours": []}
    callee = where.nodes["tsnet b"]
    for number in range(rounds):
        for side in ("tsnet", "ours")[:: -1 if number % 2 else 1]:
            name = f"new-{side}-{number}"
            began = time.perf_counter()
            made = r.tsnet if side == "tsnet" else lambda *a, **o: our_node(r, *a, **o)
            async with made(where.control, key, name) as node:
                said = await node.dial(callee.ip4, 7, bytes=1, read=1)
                whole[side].append((time.perf_counter() - began) * 1e3)
                entered[side].append(node.join_ms + said["first_byte_ms"])
    yield Row("entering to first byte", "ms", entered, "ours", "tsnet", True, 1.0, 1.5)
    yield Row("process start to first byte", "ms", whole, "ours", "tsnet", True, 2.0, 3.0)


ROWS = {
    "stream": stream,
    "both": both,
    "eight": eight,
    "udp": udp,
    "rtt": round_trip,
    "loaded": loaded,
    "connect": connect,
    "stall": stall,
    "memory": memory,
    "ready": ready,
}
RELAYED = ("stream", "rtt", "connect")


# --- tailnets of their own ------------------------------------------------------------------------


async def crowd(r: Rig, rounds: int, seconds: float, peers: int) -> AsyncIterator[Row]:
    """Idle CPU and memory in a tailnet of many peers, in our own control server."""
    async with (
        r.derper() as relay,
        talker(r, "crowd", "bench.crowd", "--peers", str(peers), "--region", json.dumps(relay.region)) as (_, said),
        r.tsnet(said["url"], said["auth_key"], "go", verbose=False) as go,
        our_node(r, said["url"], said["auth_key"], "py") as py,
        our_node(r, said["url"], said["auth_key"], "warm") as warm,
    ):
        del warm
        await trio.sleep(3.0)
        sides = {"tsnet": go.process, "ours": py.process}
        idle: Measured = {"tsnet": [], "ours": []}
        for _ in range(rounds):
            before = {side: process.cpu_seconds() for side, process in sides.items()}
            await trio.sleep(seconds)
            for side, process in sides.items():
                idle[side].append((process.cpu_seconds() - before[side]) / seconds * 100)
        yield Row(f"idle CPU, {peers:,} peers", "% of a core", idle, "ours", "", True, 0.1, 0.2)
        held = {side: [process.memory_kb() / 1024] for side, process in sides.items()}
        yield Row(f"memory, {peers:,} peers", "MiB", held, "ours", "tsnet", True)


async def long_line(r: Rig, rounds: int, seconds: float, mbit: float = 200, round_trip_ms: float = 80) -> Row:
    """One stream over a long fat clean line, shaped at our end: its share of the line's payload rate."""
    line = f"{round_trip_ms / 2},{mbit},100"
    best = mbit * 1228 / (1280 + 32 + 28)  # payload in a full datagram on the line
    share: Measured = {"the line": [], "ours to tsnet": [], "tsnet to ours": [], "ours to ours": []}
    async with (
        r.derper() as relay,
        r.headscale(regions=[relay.region]) as hs,
        r.tsnet(hs, await hs.auth_key(), "go", verbose=False) as go,
        our_node(r, hs, await hs.auth_key(), "far", line=line) as far,
        our_node(r, hs, await hs.auth_key(), "near") as near,
    ):
        for caller, callee in ((far, go), (go, far), (far, near)):
            await caller.wait_direct(callee.ip4)
        for _ in range(rounds):
            share["the line"].append(best)
            share["ours to tsnet"].append((await far.bench(go.ip4, "up", seconds))["mbit_s"])
            share["tsnet to ours"].append((await go.bench(far.ip4, "up", seconds))["mbit_s"])
            share["ours to ours"].append((await far.bench(near.ip4, "up", seconds))["mbit_s"])
    return Row(
        f"{round_trip_ms:g} ms, {mbit:g} Mbit/s line", "Mbit/s", share, "ours to ours", "the line", aim=0.95, floor=0.8,
        note=f"mean over {seconds:g} s from the first byte, slow start included",
    )  # fmt: skip


def against_pipeline(direct: Row, pipeline: Row) -> Row:
    """Our stream beside the bare pipeline of the same run."""
    bare = statistics.median(pipeline.samples["bare pipeline"])
    ours = direct.samples["ours to ours"]
    return Row(
        "stream against bare pipeline", "Mbit/s", {"bare pipeline": [bare] * len(ours), "ours to ours": ours},
        "ours to ours", "bare pipeline", aim=0.8, floor=0.6,
    )  # fmt: skip
