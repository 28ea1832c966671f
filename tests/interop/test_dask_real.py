"""Dask over the tailnet, for real: Headscale, and scheduler, workers and client as processes with a Device each.

`distributed` comes from the `clients` group; without it everything here is skipped with a loud line.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tailscale import sync
from tests.interop.ours import tailnet
from tests.interop.processes import Process, poll_until
from tests.interop.rig import Headscale, Rig
from tests.tailscale.thread_scripts import our_threads

pytestmark = pytest.mark.peerless
ROOT = Path(__file__).parents[2]
ADDRESS = "ts://scheduler:8786"
BIG = 48 << 20
UNRESPONSIVE = 12  # seconds; dask's shortest
CLUSTER = """
import sys, time
from distributed import Client, LocalCluster, get_worker

def where():
    from tailscale.dask.process_device import PROCESS_DEVICE
    import os
    return os.getpid(), PROCESS_DEVICE.present().hostname

if __name__ == "__main__":
    with LocalCluster(protocol="ts://", n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        with Client(cluster) as client:
            print(sorted(name for _, name in client.run(where).values()), flush=True)
            big = client.submit(bytearray, 8 << 20)
            assert len(big.result()) == 8 << 20
            for number, line in enumerate(sys.stdin):
                client.wait_for_workers(2)
                print(client.submit(lambda n: n * n, 7 + number).result(), flush=True)
"""


def distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError:
        pytest.skip("DASK SKIPPED: no Python package distributed here: pip install --group clients")


class Farm:
    """Processes of dask, each a node of the tailnet named after its role."""

    def __init__(self, r: Rig, hs: Headscale, key: str) -> None:
        self._room = r.room("dask")
        self._environment = {
            "TS_CONTROL_URL": hs.url,
            "TS_AUTHKEY": key,
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{UNRESPONSIVE}s",
            "PYTHONPATH": str(ROOT),
        }
        self._running: list[Process] = []

    def start(self, name: str, *command: str, pipes: bool = False) -> Process:
        environment = self._environment | {"TS_HOSTNAME": name}
        process = Process(name, [sys.executable, *command], self._room, env=environment, pipes=pipes)
        self._running.append(process)
        return process

    def scheduler(self) -> Process:
        options = ("--protocol", "ts", "--port", "8786", "--dashboard-address", "127.0.0.1:0")
        return self.start("scheduler", "-m", "distributed.cli.dask_scheduler", *options)

    def worker(self, name: str) -> Process:
        options = ("--no-nanny", "--nthreads", "1", "--name", name, "--no-dashboard")
        return self.start(name, "-m", "distributed.cli.dask_worker", ADDRESS, *options)

    async def stop(self) -> None:
        async with trio.open_nursery() as nursery:
            for process in self._running:
                nursery.start_soon(process.stop, 10.0)


@contextlib.asynccontextmanager
async def farm(r: Rig) -> AsyncIterator[tuple[Farm, Headscale, str]]:
    distributed()
    async with tailnet(r) as hs:
        key = await hs.auth_key(ephemeral=True)
        made = Farm(r, hs, key)
        try:
            yield made, hs, key
        finally:
            await made.stop()


@contextlib.asynccontextmanager
async def client_of(hs: Headscale, key: str) -> AsyncIterator[Any]:
    """A plain, blocking client in a thread, as a notebook has it: `await client(work)` runs `work(client)`."""

    def leave() -> None:
        tailscale_dask.use(None)
        device.close()

    tailscale_dask = importlib.import_module("tailscale.dask")
    device = sync.Device("client", control_url=hs.url, auth_key=key)
    await trio.to_thread.run_sync(device.open)
    try:
        tailscale_dask.use(device)
        client = await trio.to_thread.run_sync(lambda: distributed().Client(ADDRESS, timeout=60))
        try:
            yield lambda work: trio.to_thread.run_sync(work, client, abandon_on_cancel=True)
        finally:
            await trio.to_thread.run_sync(client.close)
    finally:
        await trio.to_thread.run_sync(leave)


async def gone(hs: Headscale, *names: str) -> None:
    async def probe() -> bool | None:
        return not set(names) & {node["givenName"] for node in await hs.nodes()} or None

    await poll_until(f"{names} gone", probe, 20)


def many_small(client: Any) -> None:
    assert sum(client.gather(client.map(lambda n: n + 1, range(2000)))) == sum(range(2001))


def big_arrays(client: Any) -> None:
    """From worker to worker, to the client, and from it."""
    one = client.submit(bytearray, BIG, workers=["one"])
    assert client.submit(len, one, workers=["two"]).result() == BIG
    assert len(one.result()) == BIG
    sent = client.scatter(bytes(BIG), workers=["two"])
    assert client.submit(len, sent, workers=["one"]).result() == BIG


def cancellations(client: Any) -> None:
    held = client.map(lambda n: time.sleep(0.05), range(400), pure=False)
    client.cancel(held)
    assert all(future.cancelled() for future in held)
    assert client.submit(sum, [1, 2], pure=False).result(timeout=30) == 3


@pytest.mark.timeout(240)
async def test_scheduler_two_workers_and_a_client_are_four_devices(r: Rig) -> None:
    async with farm(r) as (dask, hs, key):
        scheduler, one = dask.scheduler(), dask.worker("one")
        two = dask.worker("two")
        async with client_of(hs, key) as client:
            with trio.fail_after(180):
                await client(lambda c: c.wait_for_workers(2, timeout=60))
                assert {"scheduler", "one", "two", "client"} == {node["givenName"] for node in await hs.nodes()}
                for work in (many_small, big_arrays, cancellations):
                    await client(work)
                # A killed process says no goodbye: dask's keep-alives find out across the tailnet.
                lost = await client(lambda c: c.submit(bytearray, BIG, workers=["two"], allow_other_workers=True))
                await client(lambda c: distributed().wait(lost, timeout=60))
                two.kill()
                began = trio.current_time()
                assert await client(lambda c: c.submit(len, lost).result(timeout=120)) == BIG
                assert trio.current_time() - began < 3 * UNRESPONSIVE
                names = await client(lambda c: [info["name"] for info in c.scheduler_info()["workers"].values()])
                assert names == ["one"]
        for process in (one, scheduler):
            process.signal(signal.SIGTERM)
            assert await process.wait() == 0
        await gone(hs, "scheduler", "one", "client")
    assert our_threads() == []


@pytest.mark.timeout(240)
async def test_a_scheduler_that_restarts_is_found_by_its_name(r: Rig) -> None:
    async with farm(r) as (dask, hs, key):
        scheduler, one = dask.scheduler(), dask.worker("one")
        async with client_of(hs, key) as client:
            with trio.fail_after(180):
                await client(many_small)
                scheduler.signal(signal.SIGTERM)
                assert await scheduler.wait() == 0
                await one.wait()  # dask's workers leave with their scheduler
                await gone(hs, "scheduler", "one")
                dask.scheduler()
                dask.worker("one")
                await client(until_it_works)


def until_it_works(client: Any) -> None:
    """The client comes back by itself; what it asks meanwhile is cancelled."""
    for _ in range(600):
        with contextlib.suppress(Exception):
            assert client.submit(sum, [1, 2], pure=False).result(timeout=5) == 3
            return
        time.sleep(0.1)
    raise AssertionError("the client never came back")


@pytest.mark.timeout(240)
async def test_a_local_cluster_gives_every_process_a_device(r: Rig, tmp_path: Path) -> None:
    program = tmp_path / "cluster.py"
    program.write_text(CLUSTER)
    async with farm(r) as (dask, hs, _):
        with trio.fail_after(180):
            cluster = dask.start("farm", str(program), pipes=True)
            assert cluster.stdin is not None
            assert cluster.stdout is not None
            names = eval(await line_of(cluster))
            workers = [f"farm-worker-{name.rpartition('-')[2]}" for name in names]
            assert names == workers
            assert {"farm", *workers} == {node["givenName"] for node in await hs.nodes()}
            os.kill(int(workers[0].rpartition("-")[2]), signal.SIGKILL)  # its nanny starts another
            await poll_until("a third worker", lambda: another(hs, workers), 60)
            await cluster.stdin.send_all(b"\n")
            assert await line_of(cluster) == "49"
            await cluster.stdin.aclose()
            assert await cluster.wait() == 0
            survivors = [node["givenName"] for node in await hs.nodes()]
            assert set(survivors) <= {workers[0]}  # killed, and so forgotten only when Headscale's patience ends


async def another(hs: Headscale, workers: list[str]) -> bool | None:
    return bool({node["givenName"] for node in await hs.nodes()} - {"farm", *workers}) or None


async def line_of(process: Process) -> str:
    assert process.stdout is not None
    received = bytearray()
    while not received.endswith(b"\n"):
        more = await process.stdout.receive_some(1)
        if not more:
            process.check()
            raise AssertionError(f"{process.name} closed its output:\n{process.tail()}")
        received += more
    return received.decode().strip()
