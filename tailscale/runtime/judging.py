"""Signatures of a tailnet's lock checked beside the event loop: libsodium does its part without Python's lock.

Owns: how many threads, and how much each takes at a time. Refuses to know: what is signed, and what follows from it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import trio

from ts_control.locked_view import Steps
from ts_control.netmap import NetMap
from ts_lock.remembered import Claim
from ts_lock.vouching import Verdict, judge

FEW = 64  # checked where we are: 3 ms
SLICE = 256  # of one thread: between two of them it is told when nobody waits any more
THREADS = min(4, os.cpu_count() or 1)  # a fifth of the work is Python's, which does one thing at a time


async def judged(steps: Steps) -> NetMap:
    """What the computation returns; the loop belongs to others while signatures are checked."""
    verdicts: Sequence[Verdict] | None = None
    while True:
        try:
            claims = next(steps) if verdicts is None else steps.send(verdicts)
        except StopIteration as done:
            netmap: NetMap = done.value
            return netmap
        await trio.lowlevel.checkpoint()
        verdicts = await _judge_all(claims) if claims else ()


async def _judge_all(claims: Sequence[Claim]) -> Sequence[Verdict]:
    if len(claims) <= FEW:
        return [judge(claim) for claim in claims]
    found: dict[int, list[Verdict]] = {}
    left = list(range(0, len(claims), SLICE))

    async def work() -> None:
        while left:
            at = left.pop()
            found[at] = await trio.to_thread.run_sync(_judge_slice, claims[at : at + SLICE])

    async with trio.open_nursery() as nursery:
        for _ in range(THREADS):
            nursery.start_soon(work)
    return [verdict for at in sorted(found) for verdict in found[at]]


def _judge_slice(claims: Sequence[Claim]) -> list[Verdict]:
    return [judge(claim) for claim in claims]
