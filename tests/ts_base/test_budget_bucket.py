"""The token bucket."""

from __future__ import annotations

from ts_base.budget import Budget


def test_budget_never_holds_more_than_its_burst_and_ignores_time_going_back():
    budget = Budget(10, 5)
    assert [budget.take(1000.0) for _ in range(6)] == [True] * 5 + [False]
    assert not budget.take(0.0)
    assert budget.take(1000.1)
    assert not budget.take(1000.1)
