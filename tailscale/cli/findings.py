"""What a check found: a verdict, a sentence, and what to set."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tailscale.cli.exit_codes import explain

GOOD, WARN, BAD, SKIP = "ok", "warn", "bad", "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    verdict: str
    sentence: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        return {"verdict": self.verdict, "sentence": self.sentence, "remedy": self.remedy}


Check = Callable[[argparse.Namespace], Awaitable[list[Finding]]]


def good(sentence: str) -> Finding:
    return Finding(GOOD, sentence)


def warn(sentence: str, remedy: str = "") -> Finding:
    return Finding(WARN, sentence, remedy)


def bad(error: BaseException) -> Finding:
    failure = explain(error)
    return Finding(BAD, failure.sentence, failure.remedy)
