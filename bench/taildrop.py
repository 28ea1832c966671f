"""`python -m bench.taildrop`: a file by Taildrop against the bare stream, in turn in one run, between two processes.

    python -m bench.taildrop                          # 1 GiB, 3 rounds; 3 GiB of disk
    python -m bench.taildrop --mib 64 --rounds 1      # a smoke run

Both ends are Devices of ours over real UDP on loopback, each in a process of its own, in a tailnet of ours. The bare
stream carries the same bytes from memory to nowhere; the file is read from a disk, written and synced. Files lie in
$TMPDIR.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from tailscale import Device, taildrop
from tailscale.testing import Tailnet

MIB = 1 << 20
SINK = 9


async def sink(stream: Any) -> None:
    async with stream:
        async for _ in stream:
            pass
        await stream.send_all(b".")


async def receive(url: str, key: str, folder: str) -> None:
    """The other process: a sink and an inbox, until its input ends."""
    async with (
        Device("there", control_url=url, auth_key=key) as device,
        await device.listen(SINK) as listener,
        taildrop.Inbox(device, folder, accept=True, exists="replace"),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(trio.serve_listeners, sink, [listener])
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


async def bare(device: Device, size: int) -> float:
    """Seconds."""
    piece = memoryview(bytes(MIB))
    async with await device.tcp_connect("there", SINK) as stream:
        began = time.perf_counter()
        for _ in range(size // MIB):
            await stream.send_all(piece)
        await stream.send_eof()
        assert await stream.receive_some() == b"."
        return time.perf_counter() - began


async def by_taildrop(device: Device, path: Path) -> float:
    began = time.perf_counter()
    await taildrop.send(device, "there", path, resume=False)
    return time.perf_counter() - began


def make(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


async def measure(mib: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-taildrop-") as folder:
        path = Path(folder, "file")
        make(path, mib)
        async with Tailnet(real=True) as net:
            url = net.control.url
            command = [sys.executable, "-m", "bench.taildrop", "--receive", url, net.auth_key(), f"{folder}/in"]
            other = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert other.stdout is not None
            assert other.stdin is not None
            await other.stdout.receive_some()
            times: dict[str, list[float]] = {"stream": [], "taildrop": []}
            async with Device("here", control_url=url, auth_key=net.auth_key()) as device:
                await bare(device, 16 * MIB)
                for _ in range(rounds):
                    times["stream"].append(await bare(device, mib * MIB))
                    times["taildrop"].append(await by_taildrop(device, path))
            await other.stdin.aclose()
            await other.wait()
    rates = {name: round(mib / statistics.median(each), 1) for name, each in times.items()}
    ratios = [a / b for a, b in zip(times["stream"], times["taildrop"], strict=True)]
    return {"mib": mib, "MiB/s": rates, "taildrop/stream": round(statistics.median(ratios), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--receive", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        trio.run(receive, *options.receive)
    else:
        print(json.dumps(trio.run(measure, options.mib, options.rounds)))


if __name__ == "__main__":
    main()
