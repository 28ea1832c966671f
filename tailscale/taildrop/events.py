"""What a daemon's readers of events hear of Taildrop."""

from __future__ import annotations

from dataclasses import dataclass

from tailscale.events import Event


@dataclass(frozen=True, slots=True)
class FileArrived(Event):
    """A file was sent here, and waits to be fetched; `waiting` counts those that do."""

    name: str
    size: int
    sender: str
    waiting: int
