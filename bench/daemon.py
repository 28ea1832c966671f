"""What a daemon costs: `python -m bench.daemon`. A command through it, a question, a hundred clients, rest, and memory.

Beside each figure stands its bar. The interpreter's own start and the bare Device are measured in the same run, so that
a busy machine blurs both.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tailscale.daemon.client import Client
from tailscale.daemon.places import places
from tailscale.testing.threaded import TailnetThread

RUNS, QUESTIONS, CLIENTS, EACH, REST = 21, 300, 100, 20, 20.0
CLI = [sys.executable, "-m", "tailscale.cli"]
BARE = "import trio, tailscale\nasync def main():\n async with tailscale.Device(state={state!r}, hostname='bare'):\n"
BARE += "  print('up', flush=True)\n  await trio.sleep_forever()\ntrio.run(main)"


def median_ms(act: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def memory_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """CPU of the processes that were waited for."""
    return sum(os.times()[2:4])


def crowd(client: Client) -> str:
    answered: list[bool] = []

    def ask() -> None:
        for _ in range(EACH):
            answered.append(client.get("/localapi/v0/status")["BackendState"] == "Running")  # noqa: PERF401 - shared

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    return f"{sum(answered)} of {CLIENTS * EACH} answered, {CLIENTS * EACH / took:.0f}/s"


def measure(folder: str) -> dict[str, str]:
    with TailnetThread() as net:
        environment = os.environ | {"TS_CONTROL_URL": net.control_url, "TS_AUTHKEY": net.auth_key(reusable=True)}
        bare_code = BARE.format(state=f"{folder}/bare")
        with subprocess.Popen([sys.executable, "-c", bare_code], env=environment, stdout=subprocess.PIPE) as bare:
            assert bare.stdout is not None
            bare.stdout.readline()
            own = ["--state", f"{folder}/daemon"]
            subprocess.run([*CLI, "up", *own], env=environment, check=True, stdout=subprocess.DEVNULL)
            client = Client(places(f"{folder}/daemon").socket)
            pid = client.get("status")["daemon"]["pid"]
            time.sleep(2)  # joining is over
            before = cpu_seconds(pid), cpu_seconds(bare.pid)
            time.sleep(REST)
            idle, bare_idle = (cpu_seconds(pid) - before[0]) / REST, (cpu_seconds(bare.pid) - before[1]) / REST
            figures = {"at rest (bar: 0.1 %)": f"{idle * 100:.2f} % of a core, a bare Device {bare_idle * 100:.2f} %"}
            status = [*CLI, "status", *own]
            quiet = {"env": environment, "check": True, "stdout": subprocess.DEVNULL}
            began = children_seconds()
            through = median_ms(lambda: subprocess.run(status, **quiet), RUNS)  # type: ignore[call-overload]
            busy = (children_seconds() - began) / RUNS * 1000
            nothing = median_ms(lambda: subprocess.run([sys.executable, "-c", ""], **quiet), RUNS)  # type: ignore[call-overload]
            figures["`status` from start to end (bar: 60 ms)"] = (
                f"{through:.0f} ms, {busy:.0f} ms of CPU; Python alone {nothing:.0f} ms"
            )
            asked = median_ms(lambda: client.get("/localapi/v0/status"), QUESTIONS)
            figures["one question (bar: 5 ms)"] = f"{asked:.2f} ms"
            figures[f"{CLIENTS} clients at once"] = crowd(client)
            ours, bares = memory_mib(pid), memory_mib(bare.pid)
            figures["memory (bar: 1.3 bare Devices)"] = f"{ours:.0f} MiB, {ours / bares:.2f} of {bares:.0f} MiB"
            subprocess.run([*CLI, "down", *own], **quiet)  # type: ignore[call-overload]
            bare.terminate()
    return figures


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for name, figure in measure(place).items():
            print(f"{name:42} {figure}")
