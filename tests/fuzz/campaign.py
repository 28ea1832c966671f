"""Targets and what is done to them: found, fed, judged; a failing input is made small and kept.

A target is a file `fuzz_<name>.py` with `fuzz_one(data)`, which raises nothing but on a bug, and `seeds()`. An input
that keeps the processor busy longer than TOO_LONG is a failure like any other.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Protocol, cast

from fuzz.mutation import Mutator

HERE = Path(__file__).parent
CRASHES = HERE / "crashes"
REGRESSIONS = HERE / "regressions"
TOO_LONG = 10.0  # seconds of processor time for one input
DISTINCT_FAILURES = 5  # then a target has said enough
SHRINKING = 3000  # attempts to make a failing input smaller
SLICE = 0.5  # seconds a target runs before the next one does


class TargetModule(Protocol):
    def fuzz_one(self, data: bytes) -> None: ...
    def seeds(self) -> list[bytes]: ...


class TookTooLong(Exception):
    """One input, and no end."""


@dataclass
class Failure:
    """One way to fail: where the exception came from, and the smallest input that shows it."""

    target: str
    signature: str
    data: bytes
    report: str

    @property
    def path(self) -> Path:
        return CRASHES / f"{self.target}-{hashlib.sha256(self.data).hexdigest()[:12]}.bin"

    @property
    def command(self) -> str:
        return f"python -m tests.fuzz --target {self.target} --replay {os.path.relpath(self.path, HERE.parent.parent)}"

    def keep(self) -> None:
        CRASHES.mkdir(exist_ok=True)
        self.path.write_bytes(self.data)
        self.path.with_suffix(".txt").write_text(f"{self.command}\n\n{self.report}")


@dataclass
class Target:
    name: str
    fuzz_one: Callable[[bytes], None]
    seeds: list[bytes]
    inputs: int = 0
    seconds: float = 0.0
    failures: dict[str, Failure] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str) -> Target:
        module = cast(TargetModule, importlib.import_module(f"fuzz.fuzz_{name}"))
        return cls(name, module.fuzz_one, module.seeds() + [data for _, data in regressions(name)])

    @property
    def has_said_enough(self) -> bool:
        return len(self.failures) >= DISTINCT_FAILURES


def names() -> list[str]:
    """Every target there is."""
    return sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))


def regressions(name: str) -> list[tuple[str, bytes]]:
    """Inputs that once failed, by file name."""
    return [(path.name, path.read_bytes()) for path in sorted((REGRESSIONS / name).glob("*.bin"))]


def feed(target: Target, inputs: Iterator[bytes], *, until: float) -> None:
    """Run inputs until they or the time end; failures are kept, and the target goes on."""
    started = time.perf_counter()
    fuzz_one = target.fuzz_one
    with _watch(target):
        for data in inputs:
            target.inputs += 1
            try:
                fuzz_one(data)
            except Exception as error:
                _note(target, data, error)
                if target.has_said_enough:
                    break
            if time.perf_counter() >= until:
                break
    target.seconds += time.perf_counter() - started


@contextmanager
def _watch(target: Target) -> Iterator[None]:
    """Two ticks of processor time within the same input, and it is interrupted."""
    seen = -1

    def tick(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        if seen == target.inputs:
            raise TookTooLong(f"more than {TOO_LONG / 2:g} s of processor time for one input")
        seen = target.inputs

    before = signal.signal(signal.SIGVTALRM, tick)
    signal.setitimer(signal.ITIMER_VIRTUAL, TOO_LONG / 2, TOO_LONG / 2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


def _note(target: Target, data: bytes, error: Exception) -> None:
    signature = signature_of(error)
    if signature in target.failures:
        return
    report = "".join(traceback.format_exception(error))
    if not isinstance(error, TookTooLong):
        data = shrink(data, lambda smaller: _fails_alike(target.fuzz_one, smaller, signature))
    failure = target.failures[signature] = Failure(target.name, signature, data, report)
    failure.keep()


def signature_of(error: Exception) -> str:
    """Failures of one kind from one line are one failure."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    place = f"{Path(last.filename).name}:{last.lineno}" if last and not isinstance(error, TookTooLong) else ""
    return f"{type(error).__name__} {place}".strip()


def _fails_alike(fuzz_one: Callable[[bytes], None], data: bytes, signature: str) -> bool:
    try:
        fuzz_one(data)
    except Exception as error:
        return signature_of(error) == signature
    return False


def shrink(data: bytes, still_fails: Callable[[bytes], bool], attempts: int = SHRINKING) -> bytes:
    """A smaller input that still fails: pieces taken out, halving their size, then bytes made zero."""
    size = max(len(data) // 2, 1)
    while size and attempts > 0:
        at, has_shrunk = 0, False
        while at < len(data) and attempts > 0:
            attempts -= 1
            candidate = data[:at] + data[at + size :]
            if still_fails(candidate):
                data, has_shrunk = candidate, True
            else:
                at += size
        if not has_shrunk:
            size //= 2
    for at in range(len(data)):
        if attempts <= 0:
            break
        attempts -= 1
        candidate = data[:at] + b"\0" + data[at + 1 :]
        if candidate != data and still_fails(candidate):
            data = candidate
    return data


class Campaign:
    """A number of inputs over some targets: a floor for each, the rest in equal shares of time."""

    FLOOR = 8  # one part in so many of an equal share
    HIGHEST_FLOOR = 10_000

    def __init__(self, targets: list[Target], seed: int, *, inputs: int, minutes: float) -> None:
        self.targets = targets
        self.wanted = inputs
        self._deadline = time.perf_counter() + minutes * 60
        self._floor = min(inputs // (len(targets) * self.FLOOR), self.HIGHEST_FLOOR)
        self._streams = {target.name: self._stream(target, seed) for target in targets}

    @staticmethod
    def _stream(target: Target, seed: int) -> Iterator[bytes]:
        yield from target.seeds
        mutator = Mutator(target.seeds, target.name, seed)
        number = 0
        while True:
            yield mutator.input(number)
            number += 1

    @property
    def inputs(self) -> int:
        return sum(target.inputs for target in self.targets)

    def run(self, on_round: Callable[[], None] = lambda: None) -> None:
        for target in self.targets:
            self._feed(target, max(self._floor, len(target.seeds)), self._deadline)
        while self.inputs < self.wanted and time.perf_counter() < self._deadline:
            eager = [target for target in self.targets if not target.has_said_enough]
            if not eager:
                return
            for target in eager:
                share = -(-(self.wanted - self.inputs) // len(eager))
                self._feed(target, share, min(time.perf_counter() + SLICE, self._deadline))
            on_round()

    def _feed(self, target: Target, count: int, until: float) -> None:
        feed(target, islice(self._streams[target.name], count), until=until)
