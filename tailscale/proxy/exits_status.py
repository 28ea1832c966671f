"""What `Exits.status()` says, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailscale.status import ExitNode


@dataclass(frozen=True, slots=True)
class ExitsStatus:
    """One policy's choice at this moment."""

    kind: str
    """"policy", "none" or "direct"."""
    policy: str
    current: ExitNode | None
    pinned: str
    """The exit that `pin` named; "" while the policy decides."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": self.kind,
            "policy": self.policy,
            "current": self.current.to_dict() if self.current is not None else None,
            "pinned": self.pinned,
        }
