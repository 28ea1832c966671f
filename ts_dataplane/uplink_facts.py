"""What is known and wanted of each uplink, as far as it decides which paths are used.

Owns the facts. Refuses to know interfaces and sockets: whoever does tells when one comes or goes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class UplinkFacts:
    """Of one uplink. `weight`: its share beside others; `enabled` is the user's word, `up` the system's."""

    up: bool = True
    enabled: bool = True
    metered: bool = False
    weight: float = 1.0

    def want(self, enabled: bool | None, metered: bool | None, weight: float | None) -> None:
        """What the user says; None leaves it."""
        self.enabled = self.enabled if enabled is None else enabled
        self.metered = self.metered if metered is None else metered
        self.weight = self.weight if weight is None else float(weight)

    @property
    def is_usable(self) -> bool:
        return self.up and self.enabled
