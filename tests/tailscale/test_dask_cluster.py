"""A scheduler, workers and a client of the real distributed over `ts://`, all over the one Device of this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from thread_scripts import our_threads, read_all

from tailscale import sync
from tailscale.testing.threaded import TailnetThread

distributed = pytest.importorskip("distributed")

import tailscale.dask  # noqa: E402
from tailscale.dask import settings  # noqa: E402
from tailscale.dask.process_device import ProcessDevice  # noqa: E402

QUIET = {"dashboard_address": "127.0.0.1:0", "silence_logs": True}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning:tornado")
GATE = threading.Event()


def wait_at_the_gate(n: int) -> None:
    GATE.wait(30)


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.fixture(scope="module")
def device(net: TailnetThread) -> Iterator[sync.Device]:
    with sync.Device("farm", **net.options()) as device:
        tailscale.dask.use(device)
        yield device
        tailscale.dask.use(None)


def run(test: Callable[[Any, tuple[Any, ...], Any], Awaitable[None]]) -> None:
    """Scheduler, two workers, client; nothing of them is left."""

    async def main() -> None:
        async with (
            asyncio.timeout(60),
            distributed.Scheduler(protocol="ts", port=0, dashboard=False, dashboard_address="127.0.0.1:0") as scheduler,
            distributed.Worker(scheduler.address, nthreads=1, name="one", dashboard=False) as one,
            distributed.Worker(scheduler.address, nthreads=1, name="two", dashboard=False) as two,
            distributed.Client(scheduler.address, asynchronous=True) as client,
        ):
            await client.wait_for_workers(2)
            await test(scheduler, (one, two), client)

    asyncio.run(main())


@pytest.mark.slow
def test_tasks_data_and_errors_travel(device: sync.Device) -> None:
    async def test(scheduler: Any, workers: tuple[Any, ...], client: Any) -> None:
        assert scheduler.address == f"ts://{device.ipv4}:{scheduler.port}"
        assert {state.host for state in scheduler.workers.values()} == {device.ipv4}
        futures = client.map(lambda n: n + 1, range(200))
        assert sum(await client.gather(futures)) == sum(range(201))
        big = client.submit(bytearray, 24 << 20, workers=["one"])  # larger than any buffer on the way
        assert await client.submit(len, big, workers=["two"]) == 24 << 20
        assert len(await big) == 24 << 20
        with pytest.raises(ZeroDivisionError):
            await client.submit(lambda: 1 / 0)

    run(test)


def test_cancelled_tasks_are_forgotten_and_a_closed_worker_is_noticed(device: sync.Device) -> None:
    async def test(scheduler: Any, workers: tuple[Any, ...], client: Any) -> None:
        try:
            stuck = client.map(wait_at_the_gate, range(8), pure=False)
            while not any(worker.state.executing for worker in workers):  # noqa: ASYNC110 - dask has no event for it
                await asyncio.sleep(0.01)
            await client.cancel(stuck)
            assert all(future.cancelled() for future in stuck)
        finally:
            GATE.set()
        await workers[0].close()
        while [state.name for state in scheduler.workers.values()] != ["two"]:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
        assert await client.submit(sum, [1, 2]) == 3

    run(test)


def test_addresses_may_carry_names(device: sync.Device) -> None:
    async def test(scheduler: Any, workers: tuple[Any, ...], client: Any) -> None:
        assert scheduler.address == f"ts://farm:{scheduler.port}"
        assert {state.host for state in scheduler.workers.values()} == {device.ipv4}
        assert await client.submit(sum, [1, 2]) == 3

    with distributed_config(contact="name"):
        run(test)


def distributed_config(**keys: Any) -> Any:
    import dask

    return dask.config.set({f"{settings.PREFIX}.{key}": value for key, value in keys.items()})


def test_plain_client_and_local_cluster_without_processes(device: sync.Device) -> None:
    before = threading.active_count()
    with distributed.LocalCluster(protocol="ts://", processes=False, n_workers=1, threads_per_worker=1, **QUIET) as it:
        assert it.scheduler_address.startswith(f"ts://{device.ipv4}:")
        with distributed.Client(it.scheduler_address) as client:
            assert client.submit(sum, range(10)).result() == 45
    deadline = time.monotonic() + 5
    while threading.active_count() > before + 2 and time.monotonic() < deadline:  # dask keeps two of its own
        time.sleep(0.01)
    assert len(our_threads()) == 1  # the one we lent


def test_preload_lets_the_tailnet_reach_the_dashboard(device: sync.Device) -> None:
    async def main() -> None:
        where = {"dashboard": False, "dashboard_address": "127.0.0.1:0", "preload": "tailscale.dask"}
        async with asyncio.timeout(60), distributed.Scheduler(protocol="ts", port=0, **where) as scheduler:
            port = scheduler.http_server.port
            assert await asyncio.to_thread(health, port) == b"ok"
        with pytest.raises(ConnectionRefusedError):  # closed with the scheduler
            while True:
                await asyncio.to_thread(health, port)

    def health(port: int) -> bytes:
        with device.connect(str(device.ipv4), port, timeout=5) as sock:
            sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return read_all(sock).rpartition(b"\r\n\r\n")[2]

    asyncio.run(main())


async def refused(address: str) -> BaseException:
    connector = tailscale.dask.Backend().get_connector()
    with pytest.raises(distributed.comm.CommClosedError) as caught:
        await connector.connect(address)
    return caught.value


def test_only_an_open_device_can_be_lent(device: sync.Device) -> None:
    with pytest.raises(tailscale.DeviceNotReady, match="enter it first"):
        tailscale.dask.use(sync.Device("later"))


def test_failed_dials_say_why(device: sync.Device) -> None:
    async def test() -> None:
        assert "no node or record is called 'nobody'" in str(await refused("nobody:8786"))
        error = await refused(f"{device.ipv4}:1")
        assert isinstance(error.__cause__, ConnectionRefusedError)

    asyncio.run(test())


def test_listening_elsewhere_is_refused(device: sync.Device) -> None:
    async def test() -> None:
        backend = tailscale.dask.Backend()
        for host in ("", "0.0.0.0", "127.0.0.1", "192.168.7.4", "localhost", "farm", str(device.ipv4)):
            listener = backend.get_listener(f"{host}:0", print, True)
            await listener.start()
            assert listener.contact_address.startswith(f"ts://{device.ipv4}:")
            listener.stop()
        with pytest.raises(settings.UnusableSetting, match="this device is called farm"):
            await backend.get_listener("barn:0", print, True).start()

    asyncio.run(test())


def test_device_opens_at_first_use_and_is_gone_when_closed(net: TailnetThread, monkeypatch: pytest.MonkeyPatch) -> None:
    options = net.options()
    monkeypatch.setenv("TS_CONTROL_URL", options["control_url"])
    monkeypatch.setenv("TS_AUTHKEY", options["auth_key"])
    monkeypatch.setenv("TS_HOSTNAME", "lazy")
    before = our_threads()
    held = ProcessDevice()
    assert held.present() is None

    async def test() -> None:
        given_up = asyncio.create_task(held.joined())
        await asyncio.sleep(0)
        given_up.cancel()
        first, second = await asyncio.gather(held.joined(), held.joined())
        assert first is second
        assert len(our_threads()) == len(before) + 1

    asyncio.run(test())
    present = held.present()
    assert present is not None
    assert present.hostname == "lazy"
    held.end()
    assert our_threads() == before
    assert held.present() is None
    with pytest.raises(tailscale.DeviceClosed, match="ending"):
        held.started()


def test_rejected_key_is_told_at_once(net: TailnetThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_CONTROL_URL", net.options()["control_url"])
    monkeypatch.setenv("TS_AUTHKEY", "tskey-auth-wrong")

    async def test() -> None:
        error = await refused("scheduler:8786")
        assert type(error).__name__ == "FatalCommClosedError"
        assert "refused the auth key" in str(error)

    tailscale.dask.use(None)
    try:
        asyncio.run(test())
    finally:
        tailscale.dask.close()
