"""The live choice as a timed script: what is told goes in, who is next and what happened comes out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_proxy.breaker import USUAL, Breaker
from ts_proxy.choice import (
    ASK_EVERY,
    FORGIVEN_AFTER,
    GONE,
    OFFLINE,
    Broken,
    Choice,
    Chosen,
    Dial,
    Lost,
    Outcome,
    Recovered,
    TunnelDead,
)
from ts_proxy.filters import Candidate
from ts_proxy.policy import make_policy


def exit_node(name: str, *, direct: bool = True, online: bool = True, latency: float = 0.02) -> Candidate:
    return Candidate(name, (name,), is_direct=direct, is_online=online, latency=latency if direct else None)


A, B, C = map(exit_node, "abc")


class Script:
    """A choice, and a clock that its test turns."""

    def __init__(self, *there: Candidate, limits: Breaker = USUAL, **options: object) -> None:
        self.choice = Choice(make_policy(**options), limits)  # type: ignore[arg-type]
        self.now = 100.0
        self.there(*(there or (A, B)))

    def there(self, *candidates: Candidate) -> None:
        self.choice.observe(candidates, self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.choice.handle_timer(self.now)

    def begin(self, key: str) -> Dial:
        return self.choice.begin(key, self.now)

    def dial(self, outcome: Outcome = Outcome.CONNECTED, key: str = "", target: str = "t", session: str = "") -> str:
        key = key or self.choice.next_exit(self.now, session).key
        if key:
            self.choice.end(self.begin(key), outcome, self.now, target, session)
        return key

    def next(self, session: str = "") -> str:
        return self.choice.next_exit(self.now, session).key

    def news(self) -> list[object]:
        return list(self.choice.take_messages())


def test_the_first_look_chooses() -> None:
    script = Script(nodes=["b", "a"])
    assert script.news() == [Chosen("b", "first of the named that is there")]
    assert script.dial() == "b"
    assert script.news() == []


def test_through_an_unproven_exit_one_dial_goes_at_a_time() -> None:
    script = Script(A, nodes=["a"])
    dial = script.begin("a")
    assert script.choice.next_exit(script.now) == ("", math.inf)
    script.choice.spoke("a", script.now)
    assert script.next() == "a", "its tunnel spoke, whatever becomes of that dial"
    script.choice.end(dial, Outcome.CUT, script.now)
    assert script.choice.statistics().dials == 0


def test_a_silent_exit_is_left_at_once_and_tried_last_after_growing_pauses() -> None:
    script = Script(A, nodes=["a"])
    pauses = []
    for _ in range(6):
        script.choice.fell_silent("a", script.now)
        assert script.next() == ""
        again_at = script.choice.next_exit(script.now).again_at
        pauses.append(again_at - script.now)
        script.now = again_at
        assert script.next() == "a"
    assert pauses == [1, 2, 4, 8, 8, 8]


def test_a_better_exit_is_asked_every_ten_seconds_and_taken_back_after_three_answers() -> None:
    script = Script(nodes=["a", "b"])
    script.dial()
    script.choice.fell_silent("a", script.now)
    assert script.news() == [
        Chosen("a", "first of the named that is there"),
        Lost("a", "its tunnel fell silent"),
        Chosen("b", "first of the named that is there"),
    ]
    assert script.dial() == "b"
    for answers in ((True, True, False), (True, False), (True, True, True)):
        for number, has_answered in enumerate(answers, 1):
            assert script.choice.asks(script.now) == []
            assert script.choice.next_timer(script.now) == script.now + ASK_EVERY
            script.wait(ASK_EVERY)
            assert script.choice.asks(script.now) == ["a"]
            assert script.next() == "b"
            script.choice.answered("a", has_answered, script.now)
            assert script.next() == ("a" if answers == (True,) * 3 and number == 3 else "b")
    assert script.news() == [Recovered("a"), Chosen("a", "first of the named that is there")]
    assert script.choice.asks(script.now + 99) == []


def test_nobody_asks_exits_that_are_not_better_or_not_named() -> None:
    worse = Script(nodes=["a", "b"])
    worse.choice.fell_silent("b", worse.now)
    unnamed = Script(A, B, C)
    for key in "abc":
        unnamed.choice.fell_silent(key, unnamed.now)
    for script in (worse, unnamed):
        script.wait(60)
        assert script.choice.asks(script.now) == []


def test_a_named_exit_that_control_takes_away_comes_back_after_three_answers_too() -> None:
    script = Script(nodes=["a", "b"])
    script.there(B)
    assert Lost("a", GONE) in script.news()
    script.there(A, B)
    assert script.next() == "b"
    for _ in range(3):
        script.wait(ASK_EVERY)
        [key] = script.choice.asks(script.now)
        script.choice.answered(key, True, script.now)
    assert script.next() == "a"


def test_a_named_exit_that_was_never_there_is_taken_when_it_comes() -> None:
    script = Script(B, nodes=["a", "b"])
    assert script.dial() == "b"
    script.there(A, B)
    assert script.next() == "a"


def test_an_unnamed_exit_is_forgiven_when_its_tunnel_speaks_or_a_path_is_found_or_after_a_while() -> None:
    for forgive in ("spoke", "path", "time", "control"):
        script = Script(exit_node("a", direct=False), B)
        if forgive == "control":
            script.there(exit_node("a", direct=False, online=False), B)
        else:
            script.choice.fell_silent("a", script.now)
        script.news()
        match forgive:
            case "spoke":
                script.choice.spoke("a", script.now)
            case "path":
                script.there(A, B)
            case "time":
                script.wait(FORGIVEN_AFTER - 1)
                assert script.news() == []
                script.wait(1)
            case "control":
                script.there(exit_node("a", direct=False), B)
        assert Recovered("a") in script.news(), forgive


def test_offline_is_lost_without_a_dial() -> None:
    script = Script(nodes=["a", "b"])
    script.there(exit_node("a", online=False), B)
    assert script.next() == "b"
    assert Lost("a", OFFLINE) in script.news()


def test_three_silences_break_it_and_its_streams_are_dead() -> None:
    script = Script(A, nodes=["a"])
    for _ in range(3):
        script.dial(Outcome.SILENT, "a")
    news = script.news()
    assert Broken("a", "its tunnel is silent", 10) in news
    assert TunnelDead("a") in news
    assert script.choice.current == ""
    assert script.choice.next_exit(script.now) == ("", script.now + 10)
    script.wait(10)
    assert script.choice.current == "a"
    dial = script.begin(script.next())
    assert dial.is_trial
    assert script.next() == "", "one at a time"
    script.choice.end(dial, Outcome.CONNECTED, script.now)
    assert script.next() == "a"
    assert Recovered("a") in script.news()


@pytest.mark.parametrize("outcome", [Outcome.TARGET, Outcome.CUT, Outcome.CONNECTED])
def test_what_is_not_the_exits_fault_never_breaks_it(outcome: Outcome) -> None:
    script = Script(A, nodes=["a"])
    for number in range(50):
        script.dial(outcome, "a", target=f"target {number}")
        script.now += 0.1
    [state] = script.choice.states(script.now)
    assert (state.breaker, state.failures, state.reason) == ("closed", 0, "")


def test_three_silent_targets_break_it_and_answers_to_pings_do_not_mend_that() -> None:
    script = Script(nodes=["a", "b"])
    for number in range(3):
        script.dial(Outcome.TIMED_OUT, "a", target=f"{number}")
    assert script.next() == "b"
    script.news()
    script.wait(10)
    assert script.next() == "a", "one connection finds out"
    dial = script.begin("a")
    assert script.next() == "b", "and nobody waits for it"
    script.choice.end(dial, Outcome.TIMED_OUT, script.now, "4")
    assert script.news()[-1] == Chosen("b", "first of the named that is there")
    script.wait(19.9)
    assert script.next() == "b"
    script.wait(0.1)
    assert script.dial() == "a"
    assert script.choice.states(script.now)[0].breaker == "closed"


def test_a_word_of_the_tunnel_mends_silence_for_an_exit_that_is_in_use() -> None:
    script = Script(A, nodes=["a"])
    for _ in range(3):
        script.dial(Outcome.SILENT, "a")
    script.wait(10)
    script.choice.spoke("a", script.now)
    assert script.choice.states(script.now)[0].breaker == "closed"
    assert script.choice.states(script.now)[0].reason == ""


def test_pin_and_back() -> None:
    script = Script(nodes=["a"])
    script.news()
    script.choice.pin("b", script.now)
    assert script.next() == "b"
    script.choice.pin("", script.now)
    assert script.next() == "a"
    assert script.news() == [Chosen("b", "pinned by hand"), Chosen("a", "first of the named that is there")]


def test_the_pool_is_of_those_used_last_and_sessions_join_at_its_end() -> None:
    script = Script(A, B, C, pool=2)
    first = script.dial()
    assert script.choice.pool.keys == (first,)
    used = {script.dial(session=f"session {number}") for number in range(20)}
    assert len(used) == 2
    assert script.choice.pool.keys[0] == first
    assert set(script.choice.pool.keys) == used | {first}
    assert script.dial() == first, "sessions do not move the others"


def test_off_the_relay_after_five_seconds() -> None:
    script = Script(A, B)
    script.dial(key="a")
    script.choice.pool.add("b")
    assert script.choice.current == "a"
    script.wait(5)
    script.there(exit_node("a", direct=False), B)
    assert script.choice.current == "b", "b has been direct for long"
    script = Script(A, exit_node("b", direct=False))
    script.dial(key="a")
    script.choice.pool.add("b")
    script.wait(60)
    script.there(exit_node("a", direct=False), B)
    assert script.choice.current == "a"
    assert script.choice.next_timer(script.now) == script.now + 5
    script.wait(4.9)
    assert script.choice.current == "a"
    script.wait(0.1)
    assert script.choice.current == "b"


def test_a_pool_of_an_earlier_run_counts() -> None:
    script = Script(A, B, C)
    script.choice.use_pool(["c", "nobody"], script.now)
    assert script.choice.current == "c"


def test_records_are_bounded() -> None:
    script = Script(A)
    for number in range(5000):
        script.there(exit_node(f"exit {number}"))
    assert len(script.choice.states(script.now)) == 1
    assert script.choice.statistics().lost <= 4096


deeds = st.lists(
    st.one_of(
        st.tuples(st.just("there"), st.sets(st.sampled_from("abcd"))),
        st.tuples(st.just("offline"), st.sampled_from("abcd")),
        st.tuples(st.just("begin"), st.sampled_from(["", "one", "two"])),
        st.tuples(st.just("end"), st.sampled_from(list(Outcome))),
        st.tuples(st.just("silent"), st.sampled_from("abcd")),
        st.tuples(st.just("spoke"), st.sampled_from("abcd")),
        st.tuples(st.just("answered"), st.booleans()),
        st.tuples(st.just("pin"), st.sampled_from(["", "a", "d"])),
        st.tuples(st.just("wait"), st.floats(0, 60)),
    ),
    max_size=60,
)
wishes = st.sampled_from([{}, {"sticky": False}, {"nodes": ["a", "b"]}, {"nodes": ["a"], "fallback": True}])


@given(wishes, deeds)
def test_whatever_happens_the_choice_is_whole_and_comes_back(
    wish: dict[str, object], script: list[tuple[str, object]]
) -> None:
    run = Script(A, B, C, **wish)
    open_dials: list[Dial] = []
    for deed, what in script:
        match deed, what:
            case "there", set(names):
                run.there(*(exit_node(name) for name in sorted(names)))
            case "offline", str(name):
                run.there(A, exit_node(name, online=False)) if name != "a" else run.there(exit_node("a", online=False))
            case "begin", str(session):
                pick = run.choice.next_exit(run.now, session)
                if pick.key:
                    open_dials.append(run.begin(pick.key))
                else:
                    assert pick.again_at > run.now, "who is told to wait is not told to wait for the past"
            case "end", Outcome() as outcome:
                if open_dials:
                    run.choice.end(open_dials.pop(0), outcome, run.now, "target", "one")
            case "silent", str(name):
                run.choice.fell_silent(name, run.now)
            case "spoke", str(name):
                run.choice.spoke(name, run.now)
            case "answered", bool(has_answered):
                for key in run.choice.asks(run.now):
                    run.choice.answered(key, has_answered, run.now)
            case "pin", str(name):
                run.choice.pin(name, run.now)
            case "wait", float(seconds):
                run.wait(seconds)
        assert run.choice.statistics().dials == len(open_dials)
        assert run.choice.next_timer(run.now) > run.now
        order = run.choice.selection(run.now).order
        assert run.choice.current == (order[0] if order else "")
        assert len(run.choice.pool.keys) <= 4
    for dial in open_dials:
        run.choice.end(dial, Outcome.CUT, run.now)
    run.choice.pin("", run.now)
    run.there(A, B, C)
    run.wait(USUAL.longest)
    assert run.next(), "with everybody there and nobody dialling, somebody can be dialled"
