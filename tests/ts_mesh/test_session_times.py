"""One session's patience: when it asks, when it gives up, how long it waits before it dials again."""

from __future__ import annotations

import pytest

from ts_mesh.session import Close, Dial, Ping, Session, State

EPOCH = "1" * 16


def opened(now: float = 0.0) -> Session:
    session = Session("a")
    assert session.opened(1, is_ours=True, peer_id="b", epoch=EPOCH, now=now)
    assert session.take_messages() == []
    return session


def told(session: Session, now: float) -> list[object]:
    session.handle_timer(now)
    return list(session.take_messages())


def test_a_silent_peer_is_asked_after_ten_seconds_and_dead_after_thirty() -> None:
    session = opened()
    assert session.next_timer() == 10
    assert told(session, 9.9) == []
    assert told(session, 10) == told(session, 20) == [Ping(1)]
    session.heard(20)
    assert told(session, 30) == told(session, 40) == [Ping(1)]
    assert told(session, 50) == [Close(1, "dead")]


def test_a_suspected_peer_is_asked_at_once_and_has_five_seconds() -> None:
    session = opened()
    session.suspect(3)
    assert session.take_messages() == [Ping(1)]
    session.suspect(4)  # again: no more time than it had
    assert session.take_messages() == [Ping(1)]
    assert session.next_timer() == 8
    assert told(session, 8) == [Close(1, "dead")]
    session = opened()
    session.suspect(3)
    session.take_messages()
    session.heard(3.1)
    assert told(session, 8) == []


def test_nobody_uses_it_for_a_quarter_of_an_hour_and_it_is_closed() -> None:
    session = opened()
    for now in range(0, 840, 5):
        session.heard(now)
    session.use(60)
    session.heard(960)
    assert told(session, 959) == []
    assert told(session, 960) == [Close(1, "idle")]
    session.want(960)
    session.heard(5000)
    assert told(session, 5000) == []  # it is wanted: whatever was sent


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_pauses_double_up_to_half_a_minute_and_spread_by_a_fifth(chance: float) -> None:
    session, now = Session("a"), 0.0
    session.want(now)
    assert session.take_messages() == [Dial()]
    for number in range(20):
        session.failed(now, chance, again=True)
        pause = min(0.1 * 2**number, 30.0) * (0.8 + 0.4 * chance)
        assert session.state is State.BACKING_OFF
        assert session.next_timer() == pytest.approx(now + pause)
        now = session.next_timer()
        assert told(session, now) == [Dial()]


def test_a_peer_that_comes_online_is_dialled_at_once_and_the_pauses_begin_anew() -> None:
    session = Session("a")
    session.want(0)
    for number in range(10):
        session.take_messages()
        session.failed(100.0 * number, 0.5, again=True)
        session.handle_timer(100.0 * number + 50)
    session.take_messages()
    session.failed(2000, 0.5, again=True)
    session.hope()
    assert session.take_messages() == [Dial()]
    session.failed(2000, 0.5, again=True)
    assert session.next_timer() == pytest.approx(2000.1)


def test_what_broke_is_dialled_again_by_who_had_dialled_it() -> None:
    ours = opened()
    ours.closed(1, 5, 0.5, again=True)
    assert ours.state is State.BACKING_OFF
    theirs = Session("a")
    assert theirs.opened(1, is_ours=False, peer_id="b", epoch=EPOCH, now=0)
    theirs.closed(1, 5, 0.5, again=True)
    assert theirs.state is State.IDLE
    calm = opened()
    calm.closed(1, 5, 0.5, again=False)
    assert calm.state is State.IDLE
