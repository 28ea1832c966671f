"""Durations as Go's command lines take and send them: `720h`, `1h30m`, `500ms`."""

from __future__ import annotations

import re

from ts_base.errors import BadPacket

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d{1,12}(?:\.\d{0,12})?)(ms|us|µs|ns|h|m|s)")
LONGEST = 64


def seconds_untrusted(text: str) -> float:
    """Seconds; BadPacket for what is none, and for what is negative."""
    if text == "0":
        return 0.0
    at, found = 0, 0.0
    while at < len(text) <= LONGEST and (part := _PART.match(text, at)):
        found += float(part[1]) * UNITS[part[2]]
        at = part.end()
    if not text or at != len(text):
        raise BadPacket(f"{text[:LONGEST]!a} is no duration: 720h, 90m or 1h30m are")
    return found
