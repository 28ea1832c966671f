"""The arithmetic of comparing two checkouts, and how samples are read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench import against
from bench.against import Compared, Failed, checkout, pair
from bench.results import Row
from bench.sample import cpu_per_packet, of_rows


def row(then: list[float], now: list[float], *, lower_is_better: bool = True) -> Compared:
    return Compared("row", "us", lower_is_better, then, now)


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        ([1.0, 1.1, 1.0], [1.01, 1.1, 1.0], "same"),
        ([1.0] * 5, [1.1, 1.2, 1.05, 1.1, 1.1], "SLOWER"),
        ([1.0] * 5, [0.9, 0.8, 0.9, 0.9, 0.9], "faster"),
        ([1.0] * 3, [1.1, 1.2, 1.05], "unclear"),  # three rounds are too few to say so
        ([1.0, 1.0, 1.0, 1.1, 1.0], [1.1, 1.1, 1.1, 1.05, 1.1], "unclear"),  # and one of five points elsewhere
        ([1.0, 1.0, 1.0], [1.2, 1.0, 1.2], "unclear"),  # the median says slower, the undisturbed round does not
        ([1.0, 1.3, 1.3], [1.2, 1.3, 1.3], "unclear"),  # and the other way round
    ],
)
def test_verdict_needs_median_and_best_to_agree(then: list[float], now: list[float], verdict: str) -> None:
    assert row(then, now).verdict() == verdict


def test_ratio_above_one_is_worse_whatever_the_unit() -> None:
    assert row([100.0], [50.0], lower_is_better=False).ratio() == 2.0
    assert row([100.0], [50.0], lower_is_better=False).ratio_of_best() == 2.0
    assert row([100.0], [50.0]).ratio() == 0.5


def test_ratio_is_taken_between_neighbours() -> None:
    """A machine three times slower in the second round changes nothing."""
    assert row([1.0, 3.0], [1.0, 3.0]).ratios() == [1.0, 1.0]


def test_ratio_ignores_a_sample_of_nothing() -> None:
    assert row([0.0, 2.0], [1.0, 2.0]).ratio() == 1.0


def test_rows_of_one_side_are_named() -> None:
    compared: dict[str, Compared] = {}
    alone: dict[str, str] = {}
    then = {"old": (1.0, "us", True), "both": (2.0, "us", True)}
    now = {"new": (1.0, "us", True), "both": (3.0, "us", True)}
    pair({"then": then, "now": now}, compared, alone)
    assert alone == {"old": "then", "new": "now"}
    assert compared["both"].ratios() == [1.5]


def test_turns_alternate() -> None:
    turns = []

    def measured(root: Path, group: str) -> against.Sample:
        turns.append(root.name)
        return {"row": (1.0, "us", True)}

    rows, alone = against.take_in_turn({"then": Path("a"), "now": Path("b")}, "stack", 3, measured)
    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert (len(rows[0].ratios()), alone) == (3, {})


def test_best_of_a_row_is_our_side() -> None:
    sides = {"bare": [1.0], "ours": [3.0, 2.0]}
    assert of_rows([Row("r", "us", sides, "ours", "bare", True)]) == {"r": (2.0, "us", True)}
    assert of_rows([Row("r", "/s", sides, "ours", "bare")]) == {"r": (3.0, "/s", False)}


def test_figure_is_read_from_what_the_relay_program_says() -> None:
    assert cpu_per_packet("  1300 bytes, window  256:   905 Mbit/s, loss  0.00 %,   8.4 us CPU/packet") == 8.4
    with pytest.raises(ValueError, match="no CPU"):
        cpu_per_packet("nothing")


def test_checkout_takes_a_folder_or_lays_out_a_revision() -> None:
    with checkout(str(against.ROOT)) as same:
        assert same == against.ROOT
    with pytest.raises(Failed, match="neither a checkout nor a revision"):
        with checkout("no-such-revision"):
            pass
    if not (against.ROOT / ".git").exists():
        pytest.skip("no repository: an unpacked source archive")
    with checkout("HEAD") as other:
        assert (other / "bench" / "__main__.py").is_file()
    assert not other.exists()
    assert str(other) not in subprocess.run(
        ["git", "worktree", "list"], cwd=against.ROOT, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
