"""`python -m bench.dask_transfer`: one array from a dask worker to another over `ts://`, beside the bare stream.

Owns a tailnet on loopback with a scheduler, two workers and a client, each a process with a Device of its own. In turn,
the second worker fetches an array from the first as dask does it, and the Devices carry as many bytes by a `TcpStream`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

MIB = 1 << 20
BLOCK = MIB
PORT = 5999
ROUNDS = 5


async def fetch(data: Any) -> float:
    return float(data[-1])


def in_device(work: Any) -> Any:
    """`await work(device)` in the loop of this process's Device."""
    from tailscale.dask.process_device import PROCESS_DEVICE

    device = PROCESS_DEVICE.present()
    thread = PROCESS_DEVICE.started()
    return thread.submit(lambda: work(device))


def serve_bare(mib: int) -> str:
    """On the first worker: whoever connects gets that much. The address."""
    import trio

    async def serve(device: Any) -> str:
        listener = await device.listen(PORT)

        async def once() -> None:
            stream = await listener.accept()
            await listener.aclose()
            block = bytes(BLOCK)
            async with stream:
                for _ in range(mib):
                    await stream.send_all(block)

        trio.lowlevel.spawn_system_task(once)
        return str(device.ipv4)

    return str(in_device(serve).wait())


def fetch_bare(address: str) -> float:
    """On the second: seconds until the end of it."""

    async def receive(device: Any) -> float:
        began = time.perf_counter()
        async with await device.tcp_connect(address, PORT) as stream:
            async for _ in stream:
                pass
        return time.perf_counter() - began

    return float(in_device(receive).wait())


def cpu_used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Side:
    """What one way of carrying took, round by round."""

    def __init__(self, name: str, mib: int, client: Any) -> None:
        self.name = name
        self.rates: list[float] = []
        self.cpu: list[float] = []  # seconds of both workers for a GiB
        self._mib = mib
        self._client = client

    def measure(self, carry: Callable[[], float]) -> None:
        before = sum(self._client.run(cpu_used).values())
        self.rates.append(self._mib / carry())
        self.cpu.append((sum(self._client.run(cpu_used).values()) - before) * 1024 / self._mib)

    def __str__(self) -> str:
        return f"{self.name} {self.rates[-1]:7.1f} MiB/s, {self.cpu[-1]:5.2f} s of CPU for a GiB"


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """A client of two workers."""
    from distributed import Client

    with contextlib.ExitStack() as stack:

        def start(*command: str, **options: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen([sys.executable, "-m", *command], text=True, **options)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        tailnet = start("tailscale.testing", "--json", stdout=subprocess.PIPE)
        assert tailnet.stdout is not None
        where = json.loads(tailnet.stdout.readline())
        os.environ.update(TS_CONTROL_URL=where["control_url"], TS_AUTHKEY=where["auth_key"])
        quiet: dict[str, Any] = {"stderr": subprocess.DEVNULL}
        names = {name: {**os.environ, "TS_HOSTNAME": name} for name in ("scheduler", "one", "two")}
        options = ("--dashboard-address", "127.0.0.1:0", "--protocol", "ts", "--port", "8786")
        start("distributed.cli.dask_scheduler", *options, env=names["scheduler"], **quiet)
        for name in ("one", "two"):
            options = ("ts://scheduler:8786", "--no-nanny", "--nthreads", "1", "--name", name, "--memory-limit", "0")
            start("distributed.cli.dask_worker", *options, env=names[name], **quiet)
        os.environ["TS_HOSTNAME"] = "client"
        client = stack.enter_context(Client("ts://scheduler:8786"))
        client.wait_for_workers(2)
        yield client


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.dask_transfer", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the array")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    with cluster() as client:
        compare(client, given.mib, given.rounds)


def compare(client: Any, mib: int, rounds: int) -> None:
    from distributed import wait

    dask, bare = Side("dask", mib, client), Side("bare stream", mib, client)
    at = {info["name"]: address for address, info in client.scheduler_info()["workers"].items()}

    def by_dask() -> float:
        began = time.perf_counter()
        client.submit(fetch, array, workers=["two"], pure=False).result()
        return time.perf_counter() - began

    def by_stream() -> float:
        address = client.run(serve_bare, mib, workers=[at["one"]])[at["one"]]
        return float(client.run(fetch_bare, address, workers=[at["two"]])[at["two"]])

    for _ in range(rounds):
        array = client.submit(bytearray, mib * MIB, workers=["one"], pure=False)
        wait(array)
        dask.measure(by_dask)
        array.release()
        bare.measure(by_stream)
        print(f"{dask}   {bare}", flush=True)
    faster = statistics.median(a / b for a, b in zip(dask.rates, bare.rates, strict=True))
    cheaper = statistics.median(b / a for a, b in zip(dask.cpu, bare.cpu, strict=True))
    print(f"dask of the bare stream, medians: {faster:.2f} x by the clock, {cheaper:.2f} x by CPU")


if __name__ == "__main__":
    main()
