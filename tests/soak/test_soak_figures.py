"""The soak's own arithmetic: a leak shows, noise does not."""

from __future__ import annotations

import pytest
from soak.figures import MEMORY_SLOPE_LIMIT, Sample, judge, slope


def test_slope_is_the_line_through_the_values() -> None:
    assert slope([1.0, 3.0, 5.0, 7.0]) == pytest.approx(2.0)
    assert slope([4.0, 4.0]) == slope([4.0]) == 0.0


def test_warming_up_is_no_leak_and_noise_is_none() -> None:
    samples = [Sample(50_000 + min(n, 12) * 3_000 + n % 2 * 900, 90_000, 11 + n % 2, 200 - n % 2) for n in range(24)]
    assert judge(samples, 0).is_good


@pytest.mark.parametrize("leak", ["memory", "objects", "descriptors", "tasks", "failures"])
def test_each_leak_is_named(leak: str) -> None:
    def grown(what: str, by: int, n: int) -> int:
        return n * by if what == leak else 0

    samples = [
        Sample(
            60_000 + grown("memory", int(MEMORY_SLOPE_LIMIT) + 50, n),
            90_000 + grown("objects", 3_000, n),
            11 + grown("descriptors", 1, n),
            200 + grown("tasks", 2, n),
        )
        for n in range(24)
    ]
    verdict = judge(samples, 3 if leak == "failures" else 0)
    assert [what.startswith(leak) for what, _, _, held in verdict.rows if not held] == [True]
    assert "TOO MUCH" in verdict.table()
