"""`python -m bench.faces`: what the asyncio and the threaded face cost beside trio's, at one end and at both.

    python -m bench.faces                              # five rounds, three minutes; needs no Go
    python -m bench.faces --rounds 3 --seconds 2 --faces trio,asyncio,uvloop --rows rtt,connect
    python -m bench.faces --free                       # on all processors instead of one

Each device has a process of its own, and there are two of each face. Sides take turns within a round, every other round
backwards. On one processor, as here unless `--free`, wall time is the sum of what both processes cost; the CPU rows say
it for all threads of both, in either case.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import trio

from bench.results import AS_INSTALLED, Report, Row
from tailscale.testing import Tailnet

SIDES = str(Path(__file__).with_name("faces_sides.py"))
TICKS = os.sysconf("SC_CLK_TCK")
# Name, unit, is lower better; by face: aim and floor.
ROWS: dict[str, tuple[str, str, bool, dict[str, tuple[float, float]]]] = {
    "rtt": ("round trip 64 B", "us", True, {"asyncio": (1.1, 1.25), "threads": (1.2, 1.35)}),
    "stream": ("stream", "Mbit/s", False, {"asyncio": (0.95, 0.85), "threads": (0.9, 0.85)}),
    "connect": ("connect, byte, close", "/s", False, {"asyncio": (0.9, 0.75), "threads": (0.8, 0.7)}),
}
CPU_UNITS = {"rtt": ("us CPU", 1e6), "stream": ("s CPU/GiB", 1 << 30), "connect": ("us CPU", 1e6)}


class Node:
    """A process with one device."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self.name = name
        self._process = process
        self._said = b""

    async def hear(self) -> Any:
        """The next line."""
        assert self._process.stdout is not None
        while b"\n" not in self._said:
            piece = await self._process.stdout.receive_some()
            if not piece:
                raise RuntimeError(f"{self.name} has ended")
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return json.loads(line)

    async def ask(self, *words: object) -> Any:
        assert self._process.stdin is not None
        await self._process.stdin.send_all((" ".join(map(str, words)) + "\n").encode())
        return await self.hear()

    def cpu(self) -> float:
        """Seconds, of all threads so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    async def end(self) -> None:
        self._process.terminate()
        await self._process.wait()


async def sample(row: str, caller: Node, server: Node, seconds: float) -> tuple[float, float]:
    """The figure, and CPU per operation."""
    before = caller.cpu() + server.cpu()
    done = await caller.ask(row, server.name, seconds)
    spent = caller.cpu() + server.cpu() - before
    rate = done["count"] / done["seconds"]
    wall = {"rtt": 1e6 / rate, "stream": rate * 8 / 1e6, "connect": rate}[row]
    return wall, spent / done["count"] * CPU_UNITS[row][1]


async def measure(options: argparse.Namespace, report: Report) -> None:
    faces, rows = options.faces.split(","), options.rows.split(",")
    environment = os.environ | AS_INSTALLED | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    cpu = "" if options.free else str(max(os.sched_getaffinity(0)))
    nodes: dict[str, Node] = {}
    async with Tailnet(real=True) as net:
        try:
            for name in [f"{face}-{role}" for face in faces for role in ("calls", "answers")]:
                command = [sys.executable, SIDES, name.partition("-")[0], name, net.control.url, net.auth_key(), cpu]
                run = partial(trio.lowlevel.open_process, stdin=-1, stdout=-1, env=environment)
                nodes[name] = Node(name, await run(command))
                assert await nodes[name].hear() == "ready"
            pairs = {"trio": ("trio-calls", "trio-answers")}
            for face in faces:
                if face != "trio":
                    pairs[f"{face} calls"] = (f"{face}-calls", "trio-answers")
                    pairs[f"{face} answers"] = ("trio-calls", f"{face}-answers")
                    pairs[f"{face} both"] = (f"{face}-calls", f"{face}-answers")
            for caller, server in pairs.values():
                await nodes[caller].ask("rtt", server, 0.5)  # and their path is direct
            for row in rows:
                samples = await in_turn(options, row, {side: (nodes[a], nodes[b]) for side, (a, b) in pairs.items()})
                for shown in rows_of(row, faces, samples):
                    report.add(shown)
        finally:
            for node in nodes.values():
                await node.end()


async def in_turn(
    options: argparse.Namespace, row: str, pairs: dict[str, tuple[Node, Node]]
) -> dict[str, list[tuple[float, float]]]:
    samples: dict[str, list[tuple[float, float]]] = {side: [] for side in pairs}
    for number in range(options.rounds):
        for side in list(pairs) if number % 2 == 0 else reversed(list(pairs)):
            samples[side].append(await sample(row, *pairs[side], options.seconds))
    return samples


def rows_of(row: str, faces: list[str], samples: dict[str, list[tuple[float, float]]]) -> list[Row]:
    name, unit, is_lower_better, aims = ROWS[row]
    made = []
    for face in faces:
        for ends in ("calls", "answers", "both") if face != "trio" else ():
            side = f"{face} {ends}"
            both = {which: [wall for wall, _ in samples[which]] for which in (side, "trio")}
            aim, floor = aims.get(face, (None, None))
            made.append(Row(f"{name}, {side}", unit, both, side, "trio", is_lower_better, aim, floor))
            cpu = {which: [spent for _, spent in samples[which]] for which in (side, "trio")}
            made.append(Row("", CPU_UNITS[row][0], cpu, side, "trio", lower_is_better=True))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.faces", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one sample")
    parser.add_argument("--faces", default="trio,asyncio,threads", help="and uvloop")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--free", action="store_true", help="do not keep all processes on one processor")
    options = parser.parse_args()
    report = Report({"rows": ["faces"], "rounds": options.rounds, "seconds": options.seconds, "free": options.free})
    report.start()
    try:
        trio.run(measure, options, report)
    finally:
        print(f"\nfigures: {report.save(None)}")


if __name__ == "__main__":
    main()
