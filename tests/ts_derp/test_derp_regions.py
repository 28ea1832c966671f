"""Which region is home: hysteresis, scores, and guesses where nothing could be measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_derp.regions import HomeChooser, RelayMap, RelayNode, RelayRegion


def map_of(*numbers: int, never_home: tuple[int, ...] = (), scores: dict[int, float] | None = None) -> RelayMap:
    return RelayMap(
        {
            number: RelayRegion(number, nodes=(RelayNode("n", "host"),), no_measure_no_home=number in never_home)
            for number in numbers
        },
        scores or {},
    )


def test_the_fastest_region_is_home() -> None:
    chooser = HomeChooser(map_of(1, 2, 3))
    assert chooser.choose({1: 0.050, 2: 0.020, 3: 0.090}, 0.0) == 2
    assert chooser.home == 2


@pytest.mark.parametrize(
    ("old", "new", "home"),
    [
        (0.020, 0.011, 1),  # saves less than 10 ms
        (0.100, 0.080, 1),  # saves 20 ms, but a fifth only
        (0.100, 0.060, 2),
        (0.0305, 0.020, 2),
    ],
)
def test_home_moves_only_for_a_real_gain(old: float, new: float, home: int) -> None:
    chooser = HomeChooser(map_of(1, 2))
    chooser.choose({1: old}, 0.0)
    assert chooser.choose({1: old, 2: new}, 400.0) == home


def test_a_spike_does_not_move_home() -> None:
    chooser = HomeChooser(map_of(1, 2))
    chooser.choose({1: 0.020, 2: 0.030}, 0.0)
    assert chooser.choose({1: 0.500, 2: 0.030}, 60.0) == 1
    assert chooser.choose({1: 0.500, 2: 0.030}, 400.0) == 2


def test_a_home_that_does_not_answer_is_left_unless_its_relay_was_heard() -> None:
    silent, heard = HomeChooser(map_of(1, 2)), HomeChooser(map_of(1, 2))
    for chooser in (silent, heard):
        chooser.choose({1: 0.020, 2: 0.100}, 0.0)
    heard.heard(1, 95.0)
    assert silent.choose({2: 0.100}, 100.0) == 2
    assert heard.choose({2: 0.100}, 100.0) == 1
    assert heard.choose({2: 0.100}, 104.0, began=101.0) == 2


def test_nothing_answering_keeps_home() -> None:
    chooser = HomeChooser(map_of(1, 2))
    chooser.choose({2: 0.1}, 0.0)
    assert chooser.choose({}, 1000.0) == 2


def test_without_measurements_the_choice_is_always_the_same() -> None:
    homes = {HomeChooser(map_of(1, 2, 3), seed=bytes([i])).choose({}, 0.0) for i in range(9)}
    assert homes == {1, 2, 3}
    assert HomeChooser(map_of(3, 2, 1), seed=b"\5").fallback() == HomeChooser(map_of(1, 2, 3), seed=b"\5").fallback()
    assert HomeChooser(RelayMap()).choose({}, 0.0) == 0


def test_regions_that_may_not_be_home_are_not() -> None:
    chooser = HomeChooser(map_of(1, 2, never_home=(1,)))
    assert chooser.choose({1: 0.001, 2: 0.2}, 0.0) == 2
    assert HomeChooser(map_of(1, never_home=(1,))).fallback() == 1
    only_stun = RelayMap({1: RelayRegion(1, nodes=(RelayNode("n", "h", stun_only=True),))})
    assert HomeChooser(only_stun).fallback() == 0


def test_scores_attract_and_repel() -> None:
    chooser = HomeChooser(map_of(1, 2, scores={1: 2.0, 2: 0.5, 3: -1.0}))
    assert chooser.choose({1: 0.020, 2: 0.050}, 0.0) == 2


def test_a_home_that_left_the_map_is_forgotten() -> None:
    chooser = HomeChooser(map_of(1, 2))
    chooser.choose({1: 0.010}, 0.0)
    chooser.set_map(map_of(2))
    assert chooser.home == 0
    assert chooser.choose({}, 1.0) == 2


@given(st.lists(st.dictionaries(st.integers(0, 5), st.floats(allow_nan=True)), max_size=80))
def test_any_report_gives_a_region_of_the_map(reports: list[dict[int, float]]) -> None:
    chooser = HomeChooser(map_of(1, 2, 3))
    for at, report in enumerate(reports):
        assert chooser.choose(report, float(at)) in (1, 2, 3)
    assert math.isfinite(chooser.home)
