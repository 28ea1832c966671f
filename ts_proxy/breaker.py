"""When an exit is not trusted any more: a breaker that blames a silent tunnel, and never a target.

Owns one exit's failures, and when it may be tried again. Refuses to know which exit that is, and what a connection is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Breaker:
    """How much an exit may fail before it is left alone for a while.

    - `failures`: dials in a row during which its tunnel gave no authenticated packet at all.
    - `targets`, `window`: so many different targets timed out within so many seconds, and nothing worked between.
    - `open_for`, `longest`: seconds it is then left alone; doubled each time one trial fails, up to the longest.

    What a target says, a refusal, a reset, no such name, is never counted, nor one target that is silent.
    """

    failures: int = 3
    targets: int = 3
    window: float = 30.0
    open_for: float = 10.0
    longest: float = 300.0


USUAL = Breaker()
