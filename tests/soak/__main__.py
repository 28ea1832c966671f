"""A day in the life of a tailnet, in minutes: `python -m tests.soak --minutes 5 [--seed 1] [--real]`.

Without --real: 24 hours under the virtual network and a mock clock. With --real: the same on real loopback sockets, a
24th of the minutes for every hour. Ends with a table; exit status 1 on a failed flow or a figure beyond its bound.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import trio
import trio.testing
from soak.disturbances import Day
from soak.figures import Sample, Verdict, judge, take_sample
from soak.traffic import TALK_EVERY, Failures, datagrams, serve, talk_for_ever, transfer

from tailscale import Device
from tailscale.testing import Tailnet

HOURS = 24
HOUR = 3600.0
DEVICES = 5
WORKERS = 4
FIRST_THINK = 60.0  # seconds between two flows of a worker; adjusted so that the hours fill the minutes
REAL_THINK = 0.3
LATENCY = 0.005
SHOWN_FAILURES = 20


class Soak:
    """One run."""

    def __init__(self, minutes: float, seed: int, real: bool) -> None:
        self._seed, self._real = seed, real
        self._budget = minutes * 60 / HOURS  # seconds of our own time for one hour
        self._slot = self._budget if real else HOUR
        self._think = REAL_THINK if real else FIRST_THINK
        self.failures = Failures()
        self.samples: list[Sample] = []
        self.day: Day | None = None

    async def run(self) -> None:
        net = Tailnet(real=True) if self._real else Tailnet(seed=self._seed, latency=LATENCY)
        async with net, trio.open_nursery() as nursery:
            key = net.auth_key(reusable=True, lifetime=1e7)
            devices = [await net.device(f"device-{n}", auth_key=key, ephemeral=False) for n in range(DEVICES)]
            self.day = Day(net, devices, self.failures, self._seed, self._slot, self._real)
            for device in devices:
                nursery.start_soon(serve, device, self.failures)
            await trio.sleep(1.0)
            every = min(TALK_EVERY, self._slot / 20)
            nursery.start_soon(talk_for_ever, *devices[:2], every, self.failures)
            for hour in range(HOURS):
                await self._hour(hour, devices)
            nursery.cancel_scope.cancel()

    async def _hour(self, hour: int, devices: list[Device]) -> None:
        started, end = time.monotonic(), trio.current_time() + self._slot
        assert self.day is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.day.disturb, end)
            for number in range(WORKERS):
                dice = random.Random(f"{self._seed} {hour} {number}")
                nursery.start_soon(self._work, devices, dice, end - 0.1 * self._slot)
        await trio.sleep(max(end - trio.current_time(), 0.0))
        self.samples.append(take_sample())
        spent = time.monotonic() - started
        if not self._real:
            self._think = min(max(self._think * min(max(spent / self._budget, 0.3), 3.0), 0.01), FIRST_THINK * 10)
        print(
            f"hour {hour + 1:>2}: {spent:5.1f} s, {self.failures.flows['tcp'] + self.failures.flows['udp']:>6} flows, "
            f"{self.samples[-1].memory / 1024:6.1f} MiB, {self.samples[-1].tasks} tasks, "
            f"{len(self.failures.seen)} failures",
            flush=True,
        )

    async def _work(self, devices: list[Device], dice: random.Random, until: float) -> None:
        while trio.current_time() < until:
            assert self.day is not None
            left, right = dice.sample([device for device in devices if device not in self.day.resting], 2)
            await (datagrams if dice.random() < 0.2 else transfer)(left, right, dice, self.failures)
            await trio.sleep(dice.expovariate(1 / self._think))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of our own time, about (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="of the network, the traffic and the disturbances")
    parser.add_argument("--real", action="store_true", help="real loopback sockets and real time")
    given = parser.parse_args()
    logging.getLogger("tailscale").setLevel(logging.CRITICAL)
    soak = Soak(given.minutes, given.seed, given.real)
    started = time.monotonic()
    if given.real:
        trio.run(soak.run)
    else:
        trio.run(soak.run, clock=trio.testing.MockClock(autojump_threshold=0.0))
    verdict = judge(soak.samples, len(soak.failures.seen))
    print(report(soak, verdict, time.monotonic() - started))
    return 0 if verdict.is_good else 1


def report(soak: Soak, verdict: Verdict, seconds: float) -> str:
    flows = soak.failures.flows
    done = soak.day.done if soak.day is not None else {}
    lines = [
        "",
        f"{HOURS} hours in {seconds:.0f} s: {flows['tcp']} transfers ({soak.failures.bytes / 2**20:.0f} MiB, hashed), "
        f"{flows['udp']} datagram echoes, {flows['lines']} lines of one conversation, "
        f"{flows['dials tried again']} dials tried again",
        "disturbances: " + ", ".join(f"{name} {count}x" for name, count in sorted(done.items())),
        "",
        verdict.table(),
        *soak.failures.seen[:SHOWN_FAILURES],
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
