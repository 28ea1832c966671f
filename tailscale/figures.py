"""Numbers as people read them. Knows no unit but bytes, and no screen."""

from __future__ import annotations


def in_bytes(count: float) -> str:
    """Two digits at least, and three at most: `17 B`, `1.2 MB`, `340 MB`. A unit is a thousand of the one before."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 9.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
