"""What `Exits.events()` yields, beside `Lagged`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailscale.events import Event

if TYPE_CHECKING:
    from tailscale.nodes import Node


@dataclass(frozen=True, slots=True)
class ExitChosen(Event):
    """The next connection without a session goes by this exit; None when there is nobody it could go by."""

    exit: Node | None
    reason: str


@dataclass(frozen=True, slots=True)
class ExitLost(Event):
    """An exit fell silent or left: others come before it until it has proven itself again."""

    exit: Node
    reason: str


@dataclass(frozen=True, slots=True)
class ExitBroken(Event):
    """An exit failed too often: nobody is sent through it for so many seconds."""

    exit: Node
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ExitRecovered(Event):
    """An exit that was lost or broken is as good as before."""

    exit: Node
