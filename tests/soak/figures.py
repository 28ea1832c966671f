"""The figures of a soak: memory, descriptors, tasks, and the line through them.

A slope is a least-squares line over the second half of the samples: the first half is warming up.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path

import trio

MEMORY_SLOPE_LIMIT = 512.0  # KiB an hour (a 24th of the soak), once warm
OBJECTS_SLOPE_LIMIT = 2000.0  # objects the collector knows, an hour
DESCRIPTORS_GROWTH_LIMIT = 4  # a relay connection more or less is nobody's leak
TASKS_GROWTH_LIMIT = 10


@dataclass(frozen=True)
class Sample:
    memory: float  # KiB
    objects: int
    descriptors: int
    tasks: int


def take_sample() -> Sample:
    """Call inside trio."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = len(os.listdir("/proc/self/fd"))
    tasks = trio.lowlevel.current_statistics().tasks_living
    return Sample(pages * os.sysconf("SC_PAGE_SIZE") / 1024, len(gc.get_objects()), descriptors, tasks)


def slope(values: list[float]) -> float:
    """How much `values` grow from one to the next."""
    count = len(values)
    if count < 2:
        return 0.0
    middle, mean = (count - 1) / 2, sum(values) / count
    spread = sum((at - middle) ** 2 for at in range(count))
    return sum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread


@dataclass(frozen=True)
class Verdict:
    rows: list[tuple[str, str, str, bool]]
    """What, how much, the bound, and whether it held."""

    @property
    def is_good(self) -> bool:
        return all(held for *_, held in self.rows)

    def table(self) -> str:
        lines = [
            f"{what:<34}{value:>16}{bound:>16}  {'' if held else 'TOO MUCH'}" for what, value, bound, held in self.rows
        ]
        return "\n".join([f"{'figure':<34}{'measured':>16}{'bound':>16}", *lines])


def judge(samples: list[Sample], failures: int) -> Verdict:
    """What the samples say, against the bounds above."""
    warm = samples[len(samples) // 2 :]
    memory = slope([sample.memory for sample in warm])
    objects = slope([float(sample.objects) for sample in warm])
    descriptors = warm[-1].descriptors - warm[0].descriptors
    tasks = warm[-1].tasks - warm[0].tasks
    last = samples[-1]
    rows = [
        ("failures", f"{failures}", "0", failures == 0),
        ("memory slope, KiB an hour", f"{memory:+.0f}", f"{MEMORY_SLOPE_LIMIT:.0f}", memory <= MEMORY_SLOPE_LIMIT),
        ("objects slope, an hour", f"{objects:+.0f}", f"{OBJECTS_SLOPE_LIMIT:.0f}", objects <= OBJECTS_SLOPE_LIMIT),
        (
            "descriptors, growth when warm",
            f"{descriptors:+}",
            f"{DESCRIPTORS_GROWTH_LIMIT}",
            descriptors <= DESCRIPTORS_GROWTH_LIMIT,
        ),
        ("tasks, growth when warm", f"{tasks:+}", f"{TASKS_GROWTH_LIMIT}", tasks <= TASKS_GROWTH_LIMIT),
        ("memory at the end, MiB", f"{last.memory / 1024:.1f}", "", True),
        ("descriptors at the end", f"{last.descriptors}", "", True),
        ("tasks at the end", f"{last.tasks}", "", True),
    ]
    return Verdict(rows)
