"""Long computations in short steps, between which everybody else has a turn."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import trio

T = TypeVar("T")


async def in_steps(steps: Generator[None, None, T]) -> T:
    """What the computation returns."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        await trio.lowlevel.checkpoint()
