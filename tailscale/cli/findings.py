"""What a check found: a verdict, a sentence, and what to set."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tailscale.cli.failures import explain
from tailscale.explanation import Step
from tailscale.faults import remedy_for

GOOD, WARN, BAD, SKIP = "ok", "warn", "bad", "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    verdict: str
    sentence: str
    remedy: str = ""
    fault: str = ""
    """The code that errors and `explain` have for it."""

    def to_dict(self) -> dict[str, str]:
        return {"verdict": self.verdict, "sentence": self.sentence, "remedy": self.remedy, "fault": self.fault}


Check = Callable[[argparse.Namespace], Awaitable[list[Finding]]]


def good(sentence: str) -> Finding:
    return Finding(GOOD, sentence)


def warn(sentence: str, remedy: str = "") -> Finding:
    return Finding(WARN, sentence, remedy)


def bad(error: BaseException) -> Finding:
    failure = explain(error)
    return Finding(BAD, failure.sentence, remedy_for(failure.fault) or failure.remedy, failure.fault)


def fault(code: str, sentence: str, verdict: str = WARN) -> Finding:
    """One of the faults that have a name, and the remedy that goes with it."""
    return Finding(verdict, sentence, remedy_for(code), code)


def found_by(step: Step) -> Finding:
    """A step on the way to a peer."""
    sentence = f"{step.name}: {step.sentence}"
    return Finding(step.outcome, sentence, remedy_for(step.fault), step.fault)
