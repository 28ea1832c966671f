from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from golden.replay import GoldenWindow
from ts_tunnel.params import REJECT_AFTER_MESSAGES, REPLAY_WINDOW
from ts_tunnel.replay import ReplayWindow

# Steps of every interesting size: repeats, neighbours, losses, the window's edge, and far jumps.
_steps = st.one_of(
    st.integers(-3, 6),
    st.integers(-40, 80),
    st.integers(-REPLAY_WINDOW - 2, -REPLAY_WINDOW + 2),
    st.integers(REPLAY_WINDOW - 2, REPLAY_WINDOW + 2),
    st.sampled_from([1, 1, 1, 1 << 40, 1 << 63]),
)


@st.composite
def runs_of_counters(draw: st.DrawFn) -> list[list[int]]:
    at, runs = draw(st.sampled_from([0, 0, 5, REPLAY_WINDOW, REJECT_AFTER_MESSAGES - 20])), []
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.booleans()):
            run = list(range(at, at + draw(st.integers(1, 60))))
        else:
            run = []
            for step in draw(st.lists(_steps, min_size=1, max_size=30)):
                at += step
                run.append(at)
        runs.append([min(max(counter, 0), (1 << 64) - 1) for counter in run])
        at = max(runs[-1][-1] + draw(st.integers(-2, 2)), 0)
    return runs


@settings(max_examples=100)
@given(runs_of_counters())
def test_replay_window_agrees_with_a_set_of_counters(runs):
    window, golden = ReplayWindow(), GoldenWindow(REPLAY_WINDOW, REJECT_AFTER_MESSAGES)
    for run in runs:
        assert window.refuse(run) == [n for n, counter in enumerate(run) if not golden.accept(counter)]


def test_replay_window_is_at_least_as_wide_as_the_reference():
    window = ReplayWindow()
    assert window.refuse([8127]) == []
    assert window.refuse(list(range(8127))) == []
    assert window.refuse([0, 4000, 8127]) == [0, 1, 2]


def test_replay_window_stays_small_whatever_the_jump():
    window = ReplayWindow()
    for counter in (0, 1 << 40, 1 << 62, REJECT_AFTER_MESSAGES - 1):
        assert window.refuse([counter]) == []
        assert window._seen.bit_length() <= REPLAY_WINDOW


def test_replay_window_ends_at_the_counter_limit():
    window = ReplayWindow()
    limit = REJECT_AFTER_MESSAGES
    assert window.refuse([limit - 2, limit - 1, limit, limit + 1]) == [2, 3]
    assert window.refuse([(1 << 64) - 1]) == [0]


def test_replay_window_takes_runs_out_of_order_as_they_come():
    window = ReplayWindow()
    assert window.refuse([5, 3, 4, 3, 0]) == [3]
    assert window.refuse([1, 2, 5, 6]) == [2]
    # What was too old only after its own run's jump is judged at its place in the run.
    assert window.refuse([7, 7 + REPLAY_WINDOW, 8, 7]) == [3]
