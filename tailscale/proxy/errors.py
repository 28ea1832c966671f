"""What can go wrong with exits, beside what goes wrong with connections."""

from __future__ import annotations

from collections.abc import Mapping

from tailscale.errors import NoRoute


class NoExit(NoRoute):
    """No exit that the policy allows can be used; `reasons` says of each known one why not."""

    def __init__(self, message: str, reasons: Mapping[str, str] | None = None) -> None:
        self.reasons = dict(reasons or {})
        super().__init__(message)
