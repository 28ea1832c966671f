"""`python -m bench.mesh_files`: files of a mesh against the bare stream and against rsync, between two processes.

    python -m bench.mesh_files                        # all rows, some minutes; 12 GiB of disk
    python -m bench.mesh_files --only stream,small    # some of them
    python -m bench.mesh_files --mib 256 --rounds 1   # a smoke run

Both ends are Devices of ours over real UDP on loopback, each in a process of its own, in a tailnet of ours. rsync runs
through the same tunnel: its daemon is exposed by the receiving device, its client dials a forward of the sending one.
Each row takes its sides in turn in one run. Files lie in $TMPDIR.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from bench.results import AS_INSTALLED
from tailscale import Device
from tailscale.mesh import Inbox, Mesh
from tailscale.testing import Tailnet

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[1]
SINK = 9
RSYNC = 873
ROWS = ("stream", "killed", "sparse", "small")
Json = dict[str, Any]


# --- one node, in a process of its own --------------------------------------------------------------


async def sink(stream: Any) -> None:
    async with stream:
        async for _ in stream:
            pass
        await stream.send_all(b".")


def processor() -> float:
    """Seconds of CPU this process has used: less disturbed by others on the machine than a clock."""
    return sum(os.times()[:2])


def memory() -> tuple[int, int]:
    """Resident now, and the most since the last call, in KiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    now, peak = (int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return now, peak


async def bare(device: Device, size: int) -> Json:
    """What the tunnel itself carries: memory to memory."""
    # As many different bytes as a file brings, so that they do not all lie in a cache of the processor.
    content, used = memoryview(os.urandom(64 * MIB)), processor()
    async with await device.tcp_connect("b", SINK) as stream:
        began = time.perf_counter()
        for at in range(0, size, MIB // 2):
            start = at % len(content)
            await stream.send_all(content[start : start + MIB // 2])
        await stream.send_eof()
        await stream.receive_some()
    return {"seconds": time.perf_counter() - began, "cpu": processor() - used}


async def push(mesh: Mesh, path: str, into: str) -> Json:
    peer = await mesh.peer("b", timeout=20)
    before = sum(each.bytes_sent for each in mesh.device.status().peers)
    idle, _ = memory()
    began, used = time.perf_counter(), processor()
    first = 0.0
    async with peer.push(path, into=into) as transfer:
        async for progress in transfer:
            if not first and progress.rate:
                first = time.perf_counter() - began
    report = transfer.result
    seconds = time.perf_counter() - began
    _, peak = memory()
    wire = sum(each.bytes_sent for each in mesh.device.status().peers) - before
    return {
        "seconds": seconds,
        "cpu": processor() - used,
        "first": first,
        "sent": report.bytes_sent,
        "there": report.bytes_skipped,
        "files": report.files,
        "wire": wire,
        "above_idle_mib": (peak - idle) / 1024,
    }


async def node(name: str, control: str, key: str, folder: Path) -> None:
    inbox = Inbox(folder / "in", accept=True, exists="replace") if name == "b" else None
    async with contextlib.AsyncExitStack() as stack:
        device = await stack.enter_async_context(
            Device(name, control_url=control, auth_key=key, state=folder / "device", ephemeral=False)
        )
        mesh = await stack.enter_async_context(Mesh(device, "bench", state=folder / "mesh", receive=inbox))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        way = {}
        if name == "b":
            listener = await device.listen(SINK)
            nursery.start_soon(trio.serve_listeners, sink, [listener])
            await stack.enter_async_context(device.expose(RSYNC, local_port=int(os.environ["RSYNCD"])))
        else:
            forward = await stack.enter_async_context(device.forward("b", RSYNC))
            way = {"host": forward.host, "port": forward.port}
        print(json.dumps({"up": name, **way}), flush=True)
        lines = trio.lowlevel.FdStream(os.dup(0))
        text = b""
        while data := await lines.receive_some():
            text += data
            while b"\n" in text:
                line, _, text = text.partition(b"\n")
                asked = json.loads(line)
                match asked.pop("do"):
                    case "bare":
                        answer = await bare(device, **asked)
                    case "push":
                        answer = await push(mesh, **asked)
                    case "memory":
                        answer = {**dict(zip(("now", "peak"), memory(), strict=True)), "cpu": processor()}
                print(json.dumps(answer), flush=True)


# --- the rows ---------------------------------------------------------------------------------------


class Remote:
    """A node's process."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._text = b""

    async def hear(self) -> Json:
        assert self.process.stdout is not None
        while b"\n" not in self._text:
            data = await self.process.stdout.receive_some()
            if not data:
                raise RuntimeError("the node ended")
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        answer: Json = json.loads(line)
        return answer

    async def ask(self, **what: Any) -> Json:
        await self.tell(**what)
        return await self.hear()

    async def tell(self, **what: Any) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps(what).encode() + b"\n")


class Bench:
    def __init__(self, net: Tailnet, home: Path, arguments: argparse.Namespace) -> None:
        self.net, self.home, self.arguments = net, home, arguments
        self.source = home / "source"
        self.source.mkdir()

    @contextlib.asynccontextmanager
    async def node(self, name: str) -> AsyncIterator[tuple[Remote, Json]]:
        folder = self.home / name
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "bench.mesh_files", "--node", name, self.net.control.url]
        env = {
            **os.environ,
            **AS_INSTALLED,
            "PYTHONPATH": str(ROOT),
            "RSYNCD": str(self.arguments.rsyncd),
        }
        process = await trio.lowlevel.open_process(
            [*command, self.net.auth_key(), str(folder)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            remote = Remote(process)
            yield remote, await remote.hear()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def file(self, name: str, size: int) -> Path:
        path = self.source / name
        with path.open("wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
        return path

    async def stream(self) -> None:
        size = self.arguments.mib * MIB
        path = self.file("big", size)
        async with self.node("b") as (there, _), self.node("a") as (here, _):
            await here.ask(do="bare", size=64 * MIB)
            ratios, peaks, rates, costs = [], [], [], []
            for turn in range(self.arguments.rounds):
                before = await there.ask(do="memory")
                plain = await here.ask(do="bare", size=size)
                idle = await there.ask(do="memory")
                pushed = await here.ask(do="push", path=str(path), into=f"turn{turn}")
                after = await there.ask(do="memory")
                ratios.append(plain["seconds"] / pushed["seconds"])
                costs.append((plain["cpu"], idle["cpu"] - before["cpu"], pushed["cpu"], after["cpu"] - idle["cpu"]))
                rates.append((size / plain["seconds"] / MIB, size / pushed["seconds"] / MIB))
                peaks.append((pushed["above_idle_mib"], (after["peak"] - idle["now"]) / 1024))
                shutil.rmtree(self.home / "b" / "in" / f"turn{turn}")
                os.utime(path)  # no hashes are known: it is pushed as new
        for (plain_rate, rate), cost in zip(rates, costs, strict=True):
            print(f"  bare {plain_rate:.0f} MiB/s, push {rate:.0f} MiB/s; seconds of CPU, sender and receiver: "
                  f"bare {cost[0]:.1f} + {cost[1]:.1f}, push {cost[2]:.1f} + {cost[3]:.1f}")  # fmt: skip
        print(f"stream: push is {statistics.median(ratios):.2f} x the bare stream (bar 0.75), {size // MIB} MiB")
        print(f"memory above idle: sender {max(p[0] for p in peaks):.0f} MiB, receiver {max(p[1] for p in peaks):.0f} "
              "MiB (bar 64)")  # fmt: skip

    async def _broken_push(self, path: Path, stop: int) -> None:
        """Kill the sender once the receiver has so many bytes."""
        async with self.node("a") as (here, _):
            await here.tell(do="push", path=str(path), into="")
            part = self.home / "b" / "in" / f".{path.name}.part"
            while not (part.exists() and part.stat().st_size >= stop):  # noqa: ASYNC110 - another process's file
                await trio.sleep(0.002)
            here.process.send_signal(signal.SIGKILL)
            await here.process.wait()

    async def killed(self) -> None:
        size = self.arguments.mib * MIB
        path = self.file("killed", size)
        async with self.node("b"):
            await self._broken_push(path, size * 6 // 10)
            async with self.node("a") as (here, _):
                done = await here.ask(do="push", path=str(path), into="")
        same = (await trio.run_process(["cmp", path, self.home / "b" / "in" / "killed"], check=False)).returncode == 0
        bar = 0.41 * size + 4 * MIB
        told = f"{done['sent'] / size:.1%} of the file, {done['wire'] / size:.1%} with all headers and seals"
        print(f"killed at 60 %: the second wire carries {told} (bar {bar / size:.1%}); same bytes: {same}")

    async def sparse(self) -> None:
        path = self.source / "sparse"
        with path.open("wb") as file:
            file.truncate(self.arguments.sparse * 1024 * MIB)
        async with self.node("b"):
            await self._broken_push(path, path.stat().st_size * 6 // 10)
            async with self.node("a") as (here, _):
                await here.tell(do="push", path=str(path), into="")
                done = await here.hear()
        there = f"{done['there'] / MIB:.0f} MiB were there"
        print(f"sparse {self.arguments.sparse} GiB, broken off at 60 %: first byte after {done['first']:.2f} s "
              f"(bar 1 s), {there}")  # fmt: skip

    async def small(self) -> None:
        """No side pays for what another left to be written: all of it is on the disk before each turn."""
        tree = self.source / "tree"
        for number in range(self.arguments.files):
            folder = tree / f"{number // 500}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}").write_bytes(os.urandom(4096))
        daemon = self._rsyncd()
        try:
            async with self.node("b") as (there, _), self.node("a") as (here, up):
                ratios, synced_ratios = [], []
                for turn in range(self.arguments.rounds):
                    target = f"rsync://{up['host']}:{up['port']}/in/rsync{turn}"
                    theirs = await self._rsync(tree, target)
                    synced = await self._rsync(tree, f"{target}s", "--fsync")
                    before = await there.ask(do="memory")
                    await trio.to_thread.run_sync(os.sync)
                    done = await here.ask(do="push", path=str(tree), into=f"push{turn}")
                    after = await there.ask(do="memory")
                    ratios.append(done["seconds"] / theirs)
                    synced_ratios.append(done["seconds"] / synced)
                    cpu = f"{done['cpu']:.1f} + {after['cpu'] - before['cpu']:.1f}"
                    print(f"  rsync {theirs:.2f} s, rsync --fsync {synced:.2f} s, push {done['seconds']:.2f} s; "
                          f"seconds of CPU, sender and receiver: {cpu}")  # fmt: skip
            told = await trio.run_process(
                ["rsync", "-ain", "--checksum", f"{tree}/", self.home / "b" / "in" / "push0" / "tree/"],
                capture_stdout=True,
            )
            print(f"small: {self.arguments.files} files of 4 KiB take {statistics.median(ratios):.2f} x rsync (bar 3), "
                  f"{statistics.median(synced_ratios):.2f} x rsync --fsync; "
                  f"rsync --checksum finds {len(told.stdout.splitlines())} differences")  # fmt: skip
        finally:
            daemon.terminate()
            daemon.wait()

    async def _rsync(self, tree: Path, target: str, *options: str) -> float:
        """Seconds of a copy through the tunnel."""
        await trio.to_thread.run_sync(os.sync)
        began = time.perf_counter()
        await trio.run_process(["rsync", "-a", *options, f"{tree}/", f"{target}/"])
        return time.perf_counter() - began

    def _rsyncd(self) -> subprocess.Popen[bytes]:
        config = self.home / "rsyncd.conf"
        (self.home / "b" / "in").mkdir(parents=True, exist_ok=True)
        config.write_text(
            f"use chroot = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n"
            f"[in]\npath = {self.home / 'b' / 'in'}\nread only = no\n"
        )
        port = f"--port={self.arguments.rsyncd}"
        return subprocess.Popen(["rsync", "--daemon", "--no-detach", "--address=127.0.0.1", port, f"--config={config}"])


async def main(arguments: argparse.Namespace) -> None:
    for row in arguments.only:
        with tempfile.TemporaryDirectory(prefix="mesh-files-") as home:
            async with Tailnet(real=True) as net:
                await getattr(Bench(net, Path(home), arguments), row)()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--node"]:
        name, control, key, folder = sys.argv[2:]
        trio.run(node, name, control, key, Path(folder))
    else:
        parser = argparse.ArgumentParser(prog="python -m bench.mesh_files", description=__doc__)
        parser.add_argument("--only", type=lambda text: text.split(","), default=ROWS, help=f"of {','.join(ROWS)}")
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--mib", type=int, default=1024, help="of the large file")
        parser.add_argument("--sparse", type=int, default=10, help="GiB of the sparse file")
        parser.add_argument("--files", type=int, default=10_000)
        parser.add_argument("--rsyncd", type=int, default=18_873, help="a free port of this machine")
        trio.run(main, parser.parse_args())
