"""What a measurement found, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tailscale.foreign_text import for_terminal


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """Many small exchanges, one after the other. Seconds."""

    count: int
    least: float
    median: float
    p99: float

    @classmethod
    def of(cls, taken: Sequence[float]) -> RoundTrips | None:
        """None for none."""
        if not taken:
            return None
        ordered = sorted(taken)
        return cls(len(ordered), ordered[0], ordered[len(ordered) // 2], ordered[(len(ordered) * 99 - 1) // 100])

    def __str__(self) -> str:
        least, median, p99 = (f"{taken * 1000:.3g}" for taken in (self.least, self.median, self.p99))
        return f"{median} ms ({least} at best, {p99} at the 99th percentile)"


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What `device.bench` found."""

    peer: str
    path: str
    """The way it travelled in the end, as `direct 192.0.2.7:41641`."""
    seconds: float
    """For how long each direction was filled."""
    streams: int
    up: float | None
    """Bytes a second to the peer; None where that was not measured."""
    down: float | None
    idle: RoundTrips | None
    """Through TCP, with nothing beside them; by `disco` pings where the peer does not measure with us."""
    loaded: RoundTrips | None
    """The same beside full streams."""
    loss: float
    """The share of packets that was lost lately, 0 to 1."""
    uplinks: dict[str, int]
    """Bytes of the tunnel by each of our uplinks, both ways; empty without uplinks."""
    cpu: float
    """Seconds of this process's processor."""
    why: str = ""
    """What kept rates from being measured; "" for nothing."""

    def __str__(self) -> str:
        rates = [f"{name} {_rate(rate)}" for name, rate in (("up", self.up), ("down", self.down)) if rate is not None]
        trip = [f"round trip {self.idle}"] if self.idle is not None else []
        found = ", ".join(rates + trip) or "nothing"
        why = f"; {self.why}" if self.why else ""
        return for_terminal(f"{self.peer} by {self.path or 'an unknown path'}: {found}{why}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def _rate(bytes_a_second: float) -> str:
    bits = bytes_a_second * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits < 1000:
            return f"{bits:.3g} {unit}"
        bits /= 1000
    return f"{bits:.3g} Gbit/s"
