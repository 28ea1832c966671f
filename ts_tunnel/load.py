"""How much work strangers may cause: a budget per source, and the under-load rule.

wireguard-go watches the length of its handshake queue; nothing queues here, so the rate of initiations per second of
`now` takes its place. Knows no bytes and no keys.
"""

from __future__ import annotations

import math

from ts_base.budget import Budget
from ts_tunnel.params import (
    CALM_INITIATIONS_PER_SECOND,
    SOURCE_BURST,
    SOURCE_INITIATIONS_PER_SECOND,
    SOURCE_REST_TIME,
    SOURCE_TABLE_LIMIT,
    UNDER_LOAD_STICKINESS,
)


class LoadGauge:
    """Under load: initiations come faster than a calm tailnet sends them, or did so within the last second."""

    __slots__ = ("_calm", "_until")

    def __init__(self) -> None:
        self._calm = Budget(CALM_INITIATIONS_PER_SECOND, CALM_INITIATIONS_PER_SECOND)
        self._until = -math.inf

    def on_initiation(self, now: float) -> bool:
        """Count one; are we under load?"""
        if not self._calm.take(now):
            self._until = now + UNDER_LOAD_STICKINESS
        return now < self._until


class SourceBudgets:
    """One bucket per source that proved where it is; sources that rested long enough are forgotten."""

    __slots__ = ("_budgets", "_swept_at")

    def __init__(self) -> None:
        self._budgets: dict[bytes, Budget] = {}
        self._swept_at = -math.inf

    def take(self, source: bytes, now: float) -> bool:
        budget = self._budgets.get(source)
        if budget is None:
            if len(self._budgets) >= SOURCE_TABLE_LIMIT and now - self._swept_at >= SOURCE_REST_TIME:
                self._budgets = {name: held for name, held in self._budgets.items() if not held.is_full(now)}
                self._swept_at = now
            if len(self._budgets) >= SOURCE_TABLE_LIMIT:
                return False
            budget = self._budgets[source] = Budget(SOURCE_INITIATIONS_PER_SECOND, SOURCE_BURST)
        return budget.take(now)

    def __len__(self) -> int:
        return len(self._budgets)
