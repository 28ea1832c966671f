"""What one mesh counts: its members, messages, files and drops, as the device tells it to those who ask for metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from tailscale.mesh.tickets import Admission
    from ts_mesh.window import Window

BY_WINDOWS = ("sent", "received", "resent", "bytes_sent", "bytes_received")


class MeshStatistics(NamedTuple):
    """What a mesh has done, and what it is doing. Files are told by what carries them, if that counts."""

    members: int
    sessions: int
    """Of the members, those that are connected."""
    sent: int
    """Messages, answers included."""
    received: int
    resent: int
    """After a connection broke."""
    bytes_sent: int
    """Of their payloads."""
    bytes_received: int
    waits: int
    """Messages that had to wait: for credit of a slow subscriber, or for room among what is unacknowledged."""
    files: object
    drops: dict[str, int]


class Line(Protocol):
    """To one member."""

    @property
    def window(self) -> Window: ...

    @property
    def admission(self) -> Admission: ...


class Former:
    """What lines to members that have left had counted: what only grows does not shrink with them."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()

    def add(self, line: Line) -> None:
        counted = line.window.statistics()
        self.drops.update(counted.drops)
        for name in BY_WINDOWS:
            self.totals[name] += getattr(counted, name)
        self.totals["waits"] += line.admission.waits


def count(
    members: int, sessions: int, lines: Iterable[Line], former: Former, drops: Mapping[str, int], files: object
) -> MeshStatistics:
    """Everything, now."""
    all_of = Former()
    all_of.totals.update(former.totals)
    all_of.drops.update(former.drops)
    all_of.drops.update(drops)
    for line in lines:
        all_of.add(line)
    told = {name: all_of.totals[name] for name in (*BY_WINDOWS, "waits")}
    statistics = getattr(files, "statistics", None)
    told_of_files = statistics() if statistics is not None else None
    return MeshStatistics(members, sessions, **told, files=told_of_files, drops=dict(all_of.drops))
