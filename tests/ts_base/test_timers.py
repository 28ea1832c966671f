"""Timers against a slow twin: a plain dict scanned for its minimum."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ts_base.timers import Timers

NAMES = st.sampled_from("abcdef")
TIMES = st.integers(0, 20).map(float)
STEPS = st.one_of(
    st.tuples(st.just("set"), NAMES, TIMES), st.tuples(st.just("clear"), NAMES), st.tuples(st.just("pop"), TIMES)
)


@given(st.lists(STEPS, max_size=60))
def test_timers_agree_with_a_dict(steps: list[tuple]) -> None:
    timers: Timers[str] = Timers()
    golden: dict[str, float] = {}
    for step in steps:
        if step[0] == "set":
            timers.set(step[1], step[2])
            golden[step[1]] = step[2]
        elif step[0] == "clear":
            timers.clear(step[1])
            golden.pop(step[1], None)
        else:
            due = timers.pop_due(step[1])
            assert sorted(due) == sorted(n for n, at in golden.items() if at <= step[1])
            assert [golden[n] for n in due] == sorted(golden[n] for n in due)
            golden = {n: at for n, at in golden.items() if at > step[1]}
        assert timers.next() == min(golden.values(), default=math.inf)
        assert len(timers) == len(golden)
        assert all(timers.get(n) == golden.get(n, math.inf) for n in "abcdef")


def test_a_timer_moved_for_ever_does_not_grow_the_heap() -> None:
    timers: Timers[str] = Timers()
    for i in range(10_000):
        timers.set("rekey", float(i))
    assert len(timers._heap) < 100
    assert timers.next() == 9_999.0
