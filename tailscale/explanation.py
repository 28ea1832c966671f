"""The way to one port, step by step, and what stands in it: the plain values that `device.explain` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tailscale.faults import REACHABLE, remedy_for
from tailscale.foreign_text import for_terminal

Outcome = Literal["ok", "warn", "bad", "skip"]
MARKS = {"ok": "ok  ", "warn": "warn", "bad": "BAD ", "skip": "skip"}
TITLE_WIDTH = 12


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that must hold for a connection."""

    name: str
    """this device, name, route, peer, path, tunnel, policy here, policy there, and the protocol."""
    outcome: Outcome
    """`warn` does not stop a connection; `skip` was not looked at, because something before it failed."""
    sentence: str
    fault: str = ""
    """The code of what is wrong; "" where nothing is."""

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return {"name": self.name, "outcome": self.outcome, "sentence": self.sentence, "fault": self.fault}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a port of the tailnet can be reached, or why not.

    ```python
    explanation = await device.explain("db", 5432)
    print(explanation.verdict, explanation.remedy)
    ```
    """

    host: str
    port: int | None
    """None where only the way to the machine was looked at."""
    protocol: str
    steps: tuple[Step, ...]
    """In the order in which they must hold."""
    verdict: str
    """One sentence. Where a dial fails it is that error's own."""
    code: str
    """`reachable`, or the fault that matters most: the same code as `error.fault` and the doctor's."""
    is_reachable: bool | None
    """None where that cannot be told, as of a UDP port that says nothing."""
    error: str = ""
    """The name of the error that a dial raises; "" for none."""

    @property
    def faults(self) -> tuple[str, ...]:
        """Every code that was found, the one that matters most first."""
        found = [step.fault for step in self.steps if step.fault]
        return tuple(dict.fromkeys(([] if self.code == REACHABLE else [self.code]) + found))

    @property
    def remedy(self) -> str:
        """What to set; "" where nothing is wrong."""
        return remedy_for(self.code) or next((text for text in map(remedy_for, self.faults) if text), "")

    @property
    def where(self) -> str:
        """What it is the way to, in words."""
        return self.host if self.port is None else f"{self.host} port {self.port} ({self.protocol})"

    def __repr__(self) -> str:
        return for_terminal(f"<Explanation {self.where}: {self.code}>")

    def _repr_html_(self) -> str:
        from tailscale.as_html import page, table

        rows = [(step.outcome, step.name, step.sentence) for step in self.steps if step.outcome != "skip"]
        facts = {"verdict": self.verdict, "try": self.remedy}
        return page(f"the way to {self.where}", {}, table(("", "step", "what was found"), rows), page("", facts))

    def __str__(self) -> str:
        rows = [
            f"  {MARKS[step.outcome]}  {step.name:<{TITLE_WIDTH}}  {step.sentence}"
            for step in self.steps
            if step.outcome != "skip"
        ]
        end = [self.verdict, *([f"  try: {self.remedy}"] if self.remedy else [])]
        return "\n".join(for_terminal(line) for line in (f"the way to {self.where}", *rows, *end))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "host": self.host,
            "port": self.port,
            "protocol": self.protocol,
            "steps": [step.to_dict() for step in self.steps],
            "verdict": self.verdict,
            "code": self.code,
            "is_reachable": self.is_reachable,
            "faults": list(self.faults),
            "remedy": self.remedy,
            "error": self.error,
        }
