"""What a tailnet's lock costs a device among many signed peers, against the map alone. `python -m bench.lock`.

From the bytes of a map to the netmap that is published: without a lock, the first time (every signature is checked),
after a restart (what the last run found is read from its entry), on a new map stream, and a delta. Beside them the bare
price of as many Ed25519 signatures by libsodium, on one core and on all; and how long the event loop was away at most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import trio
from msgspec.structs import replace as change

from bench.inside import rich_node
from tailscale.runtime.judging import judged
from tailscale.runtime.stepping import in_steps
from ts_control.gojson import encode_json
from ts_control.locked_view import LockedView
from ts_control.map_reader import decode_map_response_steps
from ts_control.netmap import NetMap
from ts_control.wire import MapResponse
from ts_control.wire_lock import to_text
from ts_lock.chain import Chain
from ts_lock.keys import LockPrivate, is_signed_by
from ts_lock.remembered import Remembered
from ts_lock.signatures import sign_node
from ts_lock.updates import Checkpoint, Key, Kind, Update

NOW = 1.8e9


class Figures(NamedTuple):
    """Milliseconds."""

    wall: float
    cpu: float
    stall: float


SIGNER, SECRET = LockPrivate(bytes([1]) * 32), bytes(32)
LOCK = Chain(Update(Kind.CHECKPOINT, state=Checkpoint((bytes(32),), (Key(SIGNER.public),))).signed_by(SIGNER))


def signed_map(peers: int) -> bytes:
    nodes = [rich_node(number) for number in range(1, peers + 2)]
    signed = [
        change(node, key_signature=to_text(sign_node(SIGNER, node.key.raw, bytes(32)).encode())) for node in nodes
    ]
    return encode_json(MapResponse(node=signed[0], peers=tuple(signed[1:])))


async def read(data: bytes) -> NetMap:
    return NetMap.empty().apply(await in_steps(decode_map_response_steps(data)), NOW)


async def locked(data: bytes, view: LockedView) -> NetMap:
    told = await read(data)
    view.lock_with(LOCK)
    shown = await judged(view.steps(told))
    assert not shown.unvouched
    return told


async def timed(work: Callable[[], Awaitable[object]]) -> Figures:
    """What the work took, and the longest that another task had to wait for its turn meanwhile."""
    worst, last = 0.0, time.perf_counter()

    async def tick() -> None:
        nonlocal worst, last
        while True:
            await trio.sleep(0.001)
            now = time.perf_counter()
            worst, last = max(worst, now - last - 0.001), now

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await trio.sleep(0.005)
        worst, began, used = 0.0, time.perf_counter(), time.process_time()
        await work()
        taken, used = time.perf_counter() - began, time.process_time() - used
        await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    return Figures(taken * 1e3, used * 1e3, worst * 1e3)


def bare(peers: int, threads: int) -> Figures:
    """As many checks, and nothing else."""
    message = bytes(32)
    signature = SIGNER.sign(message)

    def check(count: int) -> bool:
        return all(is_signed_by(SIGNER.public, signature, message) for _ in range(count))

    with ThreadPoolExecutor(threads) as pool:
        began, used = time.perf_counter(), time.process_time()
        assert all(pool.map(check, [peers // threads] * threads))
        return Figures((time.perf_counter() - began) * 1e3, (time.process_time() - used) * 1e3, 0.0)


async def one_round(data: bytes, peers: int) -> dict[str, Figures]:
    first = LockedView(Remembered(SECRET))
    found = {"without a lock": await timed(lambda: read(data))}
    found["with a lock, the first time"] = await timed(lambda: locked(data, first))
    entry = first.to_keep()

    async def after_restart() -> NetMap:
        remembered = Remembered(SECRET)
        remembered.read_untrusted(entry)
        return await locked(data, LockedView(remembered))

    found["after a restart"] = await timed(after_restart)
    found["a new map stream"] = await timed(lambda: locked(data, first))
    cores = os.cpu_count() or 1
    found["bare signatures, one core"] = bare(peers, 1)
    found[f"bare signatures, {cores} cores"] = bare(peers, cores)
    found |= await deltas(first)
    return found


async def deltas(view: LockedView) -> dict[str, Figures]:
    count = 50
    told = view.told

    async def fold() -> None:
        nonlocal told
        for number in range(2, 2 + count):
            told = told.apply(MapResponse(online_change={number: True}), NOW)

    async def fold_and_look() -> None:
        nonlocal told
        for number in range(2, 2 + count):
            told = told.apply(MapResponse(online_change={number: False}), NOW)
            await judged(view.steps(told))

    without, under = await timed(fold), await timed(fold_and_look)
    return {f"{count} deltas without": without, f"{count} deltas with": under}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data = signed_map(options.peers)
    rounds = [trio.run(one_round, data, options.peers) for _ in range(options.rounds)]
    print(f"{options.peers:,} signed peers, {len(data) >> 10:,} KiB of map, medians of {options.rounds} rounds")
    base = [statistics.median(column) for column in zip(*(each["without a lock"] for each in rounds), strict=True)]
    for name in rounds[0]:
        wall, used, stall = (statistics.median(column) for column in zip(*(each[name] for each in rounds), strict=True))
        print(
            f"{name:28} {wall:8.1f} ms {wall / base[0]:6.2f} x   CPU {used:8.1f} ms {used / base[1]:6.2f} x"
            f"   longest stall {stall:5.1f} ms"
        )


if __name__ == "__main__":
    main()
