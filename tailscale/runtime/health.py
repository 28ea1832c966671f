"""The warnings that are active right now, and what each means."""

from __future__ import annotations

from tailscale.runtime.messages import HealthCleared, HealthRaised
from tailscale.status import HealthWarning


class Health:
    """Folds raised and cleared warnings; knows nothing of where they come from."""

    def __init__(self) -> None:
        self._active: dict[str, HealthWarning] = {}

    def fold(self, message: HealthRaised | HealthCleared) -> bool:
        """Whether the set of warnings changed."""
        if isinstance(message, HealthRaised):
            warning = HealthWarning(message.code, message.sentence, message.remedy)
            changed = self._active.get(message.code) != warning
            self._active[message.code] = warning
            return changed
        return self._active.pop(message.code, None) is not None

    @property
    def active(self) -> tuple[HealthWarning, ...]:
        return tuple(self._active.values())
