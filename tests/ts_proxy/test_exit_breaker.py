"""When a breaker opens, for how long, and what closes it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_proxy.breaker import SILENCE, TARGETS, USUAL, Breaker, ExitBreaker


def test_three_silent_dials_open_it_for_ten_seconds() -> None:
    breaker = ExitBreaker(USUAL)
    assert [breaker.fell_silent(now) for now in (0.0, 1.0, 2.0)] == [False, False, True]
    assert (breaker.state(2.0), breaker.cause, breaker.until) == ("open", SILENCE, 12.0)
    assert not breaker.may_pass(11.9)
    assert breaker.may_pass(12.0)
    assert breaker.state(12.0) == "half-open"


def test_a_word_of_the_tunnel_between_begins_the_count_anew() -> None:
    breaker = ExitBreaker(USUAL)
    for _ in range(10):
        breaker.fell_silent(0.0)
        breaker.fell_silent(1.0)
        assert not breaker.heard()
    assert breaker.state(2.0) == "closed"
    assert breaker.failures == 0


def test_three_different_targets_in_thirty_seconds_open_it_and_one_target_never_does() -> None:
    breaker = ExitBreaker(USUAL)
    assert not any(breaker.timed_out("one", now) for now in range(100))
    assert not breaker.timed_out("two", 100)
    assert breaker.timed_out("three", 101)
    assert breaker.cause == TARGETS


def test_targets_that_timed_out_long_ago_do_not_count() -> None:
    breaker = ExitBreaker(USUAL)
    assert not any(breaker.timed_out(f"target {number}", number * 15.1) for number in range(50))


def test_a_success_between_clears_the_targets() -> None:
    breaker = ExitBreaker(USUAL)
    for number in range(50):
        assert not breaker.timed_out(f"target {number}", number)
        assert not breaker.timed_out(f"other {number}", number)
        breaker.succeeded()


def test_half_open_lets_one_pass_at_a_time_and_a_failed_one_doubles_the_wait() -> None:
    breaker = ExitBreaker(Breaker(failures=1))
    breaker.fell_silent(0.0)
    waits = []
    now = breaker.until
    for _ in range(8):
        assert breaker.begin(now)
        assert not breaker.may_pass(now)
        assert not breaker.begin(now), "a second one is no trial"
        assert breaker.fell_silent(now, is_trial=True)
        waits.append(breaker.until - now)
        now = breaker.until
    assert waits == [20, 40, 80, 160, 300, 300, 300, 300]
    breaker.begin(now)
    assert breaker.succeeded()
    breaker.fell_silent(now)
    assert breaker.until - now == 10, "and the next time begins small again"


def test_a_trial_that_teaches_nothing_makes_room_for_the_next() -> None:
    breaker = ExitBreaker(Breaker(failures=1))
    breaker.fell_silent(0.0)
    assert breaker.begin(10.0)
    breaker.let_go()
    assert breaker.may_pass(10.0)
    assert breaker.state(10.0) == "half-open"


def test_the_tunnels_word_closes_what_its_silence_opened_and_nothing_else() -> None:
    silent, way_out = ExitBreaker(Breaker(failures=1)), ExitBreaker(Breaker(targets=1))
    silent.fell_silent(0.0)
    way_out.timed_out("one", 0.0)
    assert silent.heard()
    assert not way_out.heard()
    assert (silent.state(0.0), way_out.state(0.0)) == ("closed", "open")
    assert way_out.succeeded()


def test_dials_that_began_before_it_opened_are_no_news() -> None:
    breaker = ExitBreaker(USUAL)
    opened = [breaker.fell_silent(now) for now in range(20)]
    assert opened.count(True) == 1
    assert breaker.until == 2 + 10


@pytest.mark.parametrize(
    "wrong",
    [{"failures": 0}, {"targets": 0}, {"window": 0}, {"open_for": 0}, {"open_for": 400}, {"longest": math.inf}],
)
def test_limits_that_make_no_breaker_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="of a Breaker are"):
        Breaker(**wrong)  # type: ignore[arg-type]


deeds = st.lists(
    st.tuples(st.sampled_from(["begin", "silent", "timeout", "success", "heard", "let go"]), st.floats(0, 20)),
    max_size=60,
)


@given(deeds)
def test_whatever_happens_it_lets_one_pass_in_the_end_and_never_waits_longer_than_the_longest(
    script: list[tuple[str, float]],
) -> None:
    breaker, now, in_trial = ExitBreaker(USUAL), 0.0, False
    for number, (deed, pause) in enumerate(script):
        now += pause
        match deed:
            case "begin":
                if breaker.begin(now):
                    assert not in_trial
                    in_trial = True
            case "silent":
                breaker.fell_silent(now, is_trial=in_trial)
                in_trial = False
            case "timeout":
                breaker.timed_out(f"{number}", now, is_trial=in_trial)
                in_trial = False
            case "success":
                breaker.succeeded()
                in_trial = False
                assert breaker.state(now) == "closed"
            case "heard":
                breaker.heard()
                in_trial = in_trial and bool(breaker.cause)
            case "let go":
                breaker.let_go()
                in_trial = False
        assert breaker.until - now <= USUAL.longest
        assert breaker.failures < USUAL.failures + USUAL.targets
    breaker.let_go()
    assert breaker.may_pass(now + USUAL.longest)
