"""How the demo looks: one line per step with its time, details below, a live line while a step runs."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from tailscale._causes import sole_cause
from tailscale.cli.failures import explain
from tailscale.cli.screen import Screen, in_time

TITLE_WIDTH = 62
TICKS_UNICODE, TICKS_ASCII = ("\N{CHECK MARK}", "\N{BALLOT X}"), ("ok", "FAILED")
DETAIL_WIDTH = 72
REDRAW = 0.05  # a live line that changes with every packet is unreadable, and costs more than the packet


class StepFailed(Exception):
    """What a step found is not what it should have found."""


class Step:
    """One step while it runs: collects what there is to say."""

    def __init__(self, title: str, screen: Screen) -> None:
        self.details: list[str] = []
        self._title, self._screen = title, screen
        self._drawn_at = 0.0

    def say(self, detail: str) -> None:
        self.details.append(detail)

    def check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise StepFailed(otherwise)

    def wait(self, progress: str = "") -> None:
        """Something to look at until the step is over."""
        now = time.monotonic()
        if now - self._drawn_at >= REDRAW:
            self._drawn_at = now
            self._screen.show(f"  ... {self._title}  {progress}")


class Show:
    """The whole performance."""

    indent = "       "

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.has_failed = False
        self._began = time.monotonic()
        self._good, self._bad = TICKS_UNICODE if screen.speaks_unicode() else TICKS_ASCII

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def title(self, text: str) -> None:
        self.screen.say()
        self.screen.say((text, "bold"))
        self.screen.say()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        step = Step(title, self.screen)
        step.wait()
        began = time.monotonic()
        try:
            yield step
        except BaseException as error:
            if isinstance(sole_cause(error), trio.Cancelled):
                raise  # somebody else failed, or the user has seen enough
            self.has_failed = True
            self._end(step, title, began, (self._bad, "bold red"))
            failure = explain(error)
            reason = str(error) if isinstance(error, StepFailed) else f"{failure.kind}: {failure.sentence}"
            self.screen.say(self.indent, (reason, "red"))
            raise
        self._end(step, title, began, (self._good, "green"))

    def _end(self, step: Step, title: str, began: float, tick: tuple[str, str]) -> None:
        took = in_time(time.monotonic() - began)
        self.screen.say("  ", tick, f"  {title:<{TITLE_WIDTH}}", (f"{took:>9}", "dim"))
        for detail in step.details:
            for line in textwrap.wrap(detail, DETAIL_WIDTH, drop_whitespace=False):
                self.screen.say(self.indent, (line, "cyan"))
