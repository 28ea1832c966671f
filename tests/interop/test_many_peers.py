"""Ten thousand peers that never speak: what they cost in memory, what one that moves costs, and that nothing stalls.

A whole Device against the embedded control server in a process of its own, over real loopback sockets. Times are CPU
time of this process, so that a busy machine does not blur them; the collector's full passes are told apart, because
their length is that of everything the process holds.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import tailscale
from tailscale.runtime.messages import NetMapChanged
from tests.interop.processes import Process
from tests.interop.rig import Rig
from tests.tailscale.tailnet_scripts import runtime_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PEERS = 10_000
MOVES = 60
PER_PEER = 5 << 10  # bytes of resident memory: some 3,900, and what other tests of the process left in its heap
LONGEST_STEP = 0.05
PER_DELTA = 0.005  # 2 ms on a slow machine; what grew with the peers would be tens


class Steps(trio.abc.Instrument):
    """How long each task holds the event loop at a time."""

    def __init__(self) -> None:
        self.longest: dict[str, float] = {}
        self.spent = 0.0
        self._began = self._collecting = 0.0
        self.collector = 0.0

    def watch_collector(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            took = time.thread_time() - self._collecting
            self.collector = max(self.collector, took)
            self._began += took

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = time.thread_time() - self._began
        name = task.name.rpartition(".")[2]
        is_part = name == task.name and not name.startswith("<")  # of a device: a name of its own, without a module
        if is_part or name.startswith(("run_", "keep", "_read", "_write")):
            self.spent += took
            self.longest[name] = max(took, self.longest.get(name, 0.0))


@contextlib.asynccontextmanager
async def crowd(r: Rig, region: dict[str, Any]) -> AsyncIterator[tuple[Process, dict[str, Any]]]:
    command = [sys.executable, "-m", "bench.crowd", "--peers", str(PEERS), "--region", json.dumps(region)]
    process = Process("crowd", command, r.folder, env={"PYTHONPATH": str(ROOT)}, pipes=True)
    try:
        assert process.stdout is not None
        said = b""
        with trio.fail_after(60):
            while not said.endswith(b"\n"):
                said += await process.stdout.receive_some()
        yield process, json.loads(said)
    finally:
        await process.stop()


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0


def import_everything() -> None:
    """What a first Device would import is not the peers' memory."""
    for name in ("ifaddr", "tailscale.device", "ts_control.client", "ts_derp.client", "httpx"):
        importlib.import_module(name)


async def test_ten_thousand_idle_peers(r: Rig) -> None:
    steps = Steps()
    async with r.derper() as relay, crowd(r, relay.region) as (process, said):
        import_everything()
        trio.lowlevel.add_instrument(steps)
        gc.callbacks.append(steps.watch_collector)
        base = resident()
        async with tailscale.Device("many", control_url=said["url"], auth_key=said["auth_key"]) as us:
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert len(us.status().peers) == PEERS
            folded, steps.longest = dict(steps.longest), {}
            gc.collect()
            grown = resident() - base
            assert process.stdin is not None
            steps.spent = 0.0
            with runtime_of(us).bus.subscribe(NetMapChanged) as inbox:
                await inbox.receive()  # the map of now
                for _ in range(MOVES):
                    await process.stdin.send_all(b"\n")
                    with trio.fail_after(10):
                        await inbox.receive()
                    await trio.testing.wait_all_tasks_blocked()  # all who heard of it are done
            each = steps.spent / MOVES
        trio.lowlevel.remove_instrument(steps)
        gc.callbacks.remove(steps.watch_collector)
    worst = max(folded, key=lambda name: folded[name])
    print(f"{PEERS} peers: {grown / PEERS:.0f} bytes each; longest step while folding {folded[worst] * 1000:.0f} ms "
          f"({worst}), collector {steps.collector * 1000:.0f} ms; one peer moved: {each * 1000:.2f} ms")  # fmt: skip
    assert folded[worst] <= LONGEST_STEP
    assert each <= PER_DELTA
    assert grown <= PER_PEER * PEERS
