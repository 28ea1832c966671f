"""What happens when nothing happens: keepalives, silence, age, and the end of keys."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tunnel_scripts import NEVER, PATH_A, A, B, Pair, kinds, sessions_of, unpadded

from ts_tunnel import drops as because
from ts_tunnel.messages import EXPIRED, SessionEstablished, SessionLost
from ts_tunnel.params import REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES


def test_data_without_answer_brings_exactly_one_keepalive_after_ten_seconds():
    p = Pair().connect()
    p.run_until(9.999)
    assert p.a.heard == 1  # the response
    p.run_until(10.0)
    assert p.a.heard == 2
    p.run_until(119.0)
    assert (p.a.heard, p.b.heard) == (2, 2)  # no keepalive answers a keepalive


def test_more_data_while_a_keepalive_is_due_brings_one_more():
    p = Pair().connect()
    p.now = 4.0
    p.send_a(b"again")
    p.now = 6.0
    p.send_a(b"and again")
    p.settle()
    p.tick(10.0)
    assert p.drop_b_to_a() == ["data"]
    p.tick(20.0)
    assert p.b.wire != []
    assert all(len(datagram) == 32 for datagram in p.b.wire)
    p.drop_b_to_a()
    p.tick(100.0)
    assert p.b.wire == []


def test_answering_with_data_makes_the_keepalive_needless():
    p = Pair().connect()
    p.now = 3.0
    p.send_b(b"answer")
    p.settle()
    p.tick(12.9)
    assert p.b.wire == []


def test_fifteen_seconds_without_an_answer_start_a_handshake():
    p = Pair().connect()
    p.run_until(20.0)
    p.send_a(b"into the void")
    p.drop_a_to_b()
    p.tick(34.999)
    assert p.a.wire == []
    p.tick(35.334)
    assert p.drop_a_to_b() == ["initiation"]


def test_restarted_peer_is_reached_again_after_fifteen_seconds():
    p, fresh = Pair().connect(), Pair()
    p.run_until(20.0)
    p.b = fresh.b  # the same key, no sessions
    p.send_a(b"lost")
    p.settle()
    assert p.b.received == []
    assert p.b.endpoint.drops == {because.NO_SESSION: 1}
    p.run_until(36.0)
    p.send_a(b"found")
    p.settle()
    assert unpadded(p.b.received) == [b"found"]


def test_expected_restart_starts_a_handshake_with_the_next_user_packet_only():
    p = Pair().connect()
    p.run_until(20.0)
    p.a.endpoint.expect_restart(B)
    p.run_until(30.0)
    assert p.a.endpoint.take_messages() == []
    p.send_a(b"x")
    assert kinds(p.a.wire) == ["initiation", "data"]
    p.settle()
    p.send_a(b"y")
    assert kinds(p.a.wire) == ["data"]


def test_expected_restart_waits_for_the_five_seconds_between_initiations():
    p = Pair().connect()
    p.now = 1.0
    p.a.endpoint.expect_restart(B)
    p.send_a(b"x")
    assert p.carry_a_to_b() == ["data"]
    p.now = 5.0
    p.send_a(b"y")
    assert p.carry_a_to_b() == ["initiation", "data"]


def test_a_peer_known_to_have_restarted_is_greeted_at_once_and_loses_nothing_that_was_sent_since():
    p, fresh = Pair().connect(), Pair()
    p.now = 1.0
    p.b = fresh.b  # the same key, no sessions
    p.a.endpoint.distrust_sessions(B)
    p.send_a(b"x")
    assert kinds(p.a.wire) == ["initiation"]
    p.settle()
    assert unpadded(p.b.received)[-1] == b"x"
    p.send_a(b"y")
    assert kinds(p.a.wire) == ["data"]


def test_a_session_that_is_only_distrusted_still_opens_what_arrives():
    p = Pair().connect()
    p.a.endpoint.distrust_sessions(B)
    p.send_b(b"from the new process")
    p.settle()
    assert unpadded(p.a.received)[-1] == b"from the new process"


def test_a_handshake_is_tried_again_soon_after_a_path_was_found():
    p = Pair()
    p.send_a(b"x")
    assert p.drop_a_to_b() == ["initiation"]
    p.now = 0.02
    p.a.endpoint.on_path_found(B, p.now)
    p.tick(0.24)
    assert p.carry_a_to_b() == []  # its answer may still be on the way
    p.tick(0.25)
    assert kinds(p.a.wire) == ["initiation"]
    p.settle()
    assert unpadded(p.b.received) == [b"x"]
    p.a.endpoint.on_path_found(B, p.now)
    p.a.endpoint.on_path_found(77, p.now)
    p.tick(1.0)
    assert p.carry_a_to_b() == []


def test_a_path_found_late_is_tried_at_once():
    p = Pair()
    p.send_a(b"x")
    p.drop_a_to_b()
    p.now = 3.0
    p.a.endpoint.on_path_found(B, p.now)
    p.tick(3.0)
    assert kinds(p.a.wire) == ["initiation"]


def test_silence_begins_with_the_first_of_the_unanswered_initiations():
    p = Pair()
    assert p.a.endpoint.silence_of(B).asking_since == p.a.endpoint.silence_of(77).asking_since == NEVER
    p.now = 1.0
    p.send_a(b"x")
    p.drop_a_to_b()
    p.tick(7.0)
    assert p.a.endpoint.silence_of(B) == (1.0, 2, 0)
    p.settle()
    assert p.a.endpoint.silence_of(B).asking_since == NEVER
    p.send_b(b"y")
    p.settle()
    assert p.a.endpoint.silence_of(B).packets_in == 1


def test_distrusting_a_stranger_or_an_idle_peer_does_nothing():
    p = Pair()
    p.a.endpoint.distrust_sessions(77)
    p.a.endpoint.distrust_sessions(B)
    p.send_a(b"x")
    assert kinds(p.a.wire) == ["initiation"]


def test_only_the_initiator_renews_when_it_sends_after_120_seconds():
    p = Pair().connect()
    p.run_until(119.9)
    p.send_a(b"x")
    assert p.carry_a_to_b() == ["data"]
    p.tick(120.0)
    p.send_b(b"y")
    assert p.carry_b_to_a() == ["data"]
    p.send_a(b"z")
    assert p.carry_a_to_b() == ["data", "initiation"]
    p.settle()
    assert SessionEstablished(A, 120.0) in p.b.endpoint.take_messages()


def test_responder_alone_sending_makes_the_initiator_renew_after_165_seconds():
    p = Pair().connect()
    p.run_until(100.0)
    p.a.endpoint.send([(B, [])], p.now)
    p.now = 164.9
    p.send_b(b"y")
    p.carry_b_to_a()
    assert p.a.wire == []
    p.now = 165.0
    p.send_b(b"y", b"y")
    p.carry_b_to_a()
    p.send_b(b"y")
    p.carry_b_to_a()
    assert kinds(p.a.wire) == ["initiation"]  # once per session
    p.settle()
    assert p.b.endpoint.take_messages() == [SessionEstablished(A, 165.0)]


def test_renewal_on_receiving_is_asked_for_once_and_then_left_to_the_retry_timer():
    p = Pair().connect()
    p.now = 165.0
    p.send_b(b"y")
    p.carry_b_to_a()
    assert p.drop_a_to_b() == ["initiation"]
    p.now = 170.0  # the retry comes a jitter later
    p.send_b(b"y")
    p.carry_b_to_a()
    assert p.a.wire == []


def test_responder_does_not_renew_for_what_it_receives():
    p = Pair().connect()
    p.now = 170.0
    p.send_a(b"x")
    data, initiation = p.a.wire
    assert kinds([data, initiation]) == ["data", "initiation"]
    p.b.take(PATH_A, [data], p.now)
    p.b.collect(p.now)
    assert p.b.wire == []


def test_session_opens_and_seals_until_180_seconds_and_no_longer():
    p = Pair().connect()
    p.now = 179.9
    p.send_b(b"last", b"late")
    late = p.b.wire.pop()
    p.carry_b_to_a()
    assert unpadded(p.a.received) == [b"last"]
    p.tick(180.0)
    assert p.a.endpoint.take_messages() == [SessionLost(B, EXPIRED)]
    p.a.wire.clear()
    p.a.take(PATH_A, [late], p.now)
    assert p.a.endpoint.drops == {because.STALE_SESSION: 1}
    p.send_b(b"new session")
    assert p.carry_b_to_a() == ["initiation"]
    p.settle()
    assert unpadded(p.a.received) == [b"last", b"new session"]


def test_keys_are_gone_after_540_seconds_and_so_are_the_indices():
    p = Pair().connect()
    p.run_until(539.9)
    assert p.a.endpoint.statistics().sessions == 1
    p.run_until(540.0)
    for side in (p.a, p.b):
        assert side.endpoint.statistics().sessions == 0
        assert side.endpoint.statistics().pending_handshakes == 0
        assert side.endpoint.next_timer() == NEVER


def test_rekey_loses_nothing_that_is_on_its_way():
    p = Pair().connect()
    p.run_until(121.0)
    p.send_a(*[b"old %d" % n for n in range(5)])
    old, initiation = p.a.wire[:5], p.a.wire[5:]
    p.a.wire = initiation
    p.carry_a_to_b()
    p.send_b(b"on its way")
    on_its_way, response = p.b.wire[1:], p.b.wire[:1]
    assert kinds(response) == ["response"]
    p.b.wire = response
    p.carry_b_to_a()
    p.send_a(b"new")
    p.carry_a_to_b()
    p.b.take(PATH_A, old, p.now)
    p.a.take(PATH_A, on_its_way, p.now)
    assert sorted(unpadded(p.b.received)) == [b"new", *[b"old %d" % n for n in range(5)]]
    assert unpadded(p.a.received) == [b"on its way"]


def test_counter_at_the_renewal_mark_renews_whoever_sends():
    for initiator in (True, False):
        p = Pair().connect()
        p.run_until(6.0)
        side, send = (p.a, p.send_a) if initiator else (p.b, p.send_b)
        [session] = sessions_of(side.endpoint)
        session.sent = REKEY_AFTER_MESSAGES
        send(b"x")
        assert kinds(side.wire) == ["data", "initiation"]


def test_counter_at_the_limit_seals_nothing_more():
    p = Pair().connect()
    p.run_until(6.0)
    [session] = sessions_of(p.a.endpoint)
    session.sent = REJECT_AFTER_MESSAGES - 1
    p.send_a(b"last")
    assert kinds(p.a.wire) == ["data", "initiation"]
    p.drop_a_to_b()
    p.send_a(b"staged")
    assert p.a.wire == []
    assert session.sent == REJECT_AFTER_MESSAGES
    p.run_until(12.0)
    assert unpadded(p.b.received) == [b"staged"]


def test_blocked_initiation_is_made_up_for_when_the_five_seconds_are_over():
    """B answered A a moment ago, the answer was lost, and A is gone: B's own packet must not wait for another one."""
    p = Pair()
    p.send_a(b"x")
    p.carry_a_to_b()
    p.drop_b_to_a()
    p.now = 1.0
    p.send_b(b"y")
    assert p.b.wire == []
    assert 5.0 <= p.b.endpoint.next_timer() <= 5.333
    p.b.endpoint.handle_timer(p.b.endpoint.next_timer())
    p.b.collect(5.4)
    assert kinds(p.b.wire) == ["initiation"]


_actions = st.lists(
    st.tuples(
        st.sampled_from(["send_a", "send_b", "carry", "lose", "wait", "restart", "swap"]),
        st.sampled_from([0.0, 0.01, 1.0, 5.0, 10.0, 15.0, 61.0, 120.0, 180.0, 600.0]),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(_actions, st.integers(0, 5))
def test_handle_timer_twice_changes_nothing_and_next_timer_is_in_the_future(actions, seed):
    p = Pair(seed)
    for action, seconds in actions:
        if action == "send_a":
            p.send_a(b"x")
        elif action == "send_b":
            p.send_b(b"y", b"z")
        elif action == "carry":
            p.settle()
        elif action == "lose":
            p.drop_a_to_b()
            p.drop_b_to_a()
        elif action == "restart":
            p.a.endpoint.expect_restart(B)
        elif action == "swap":
            p.carry_b_to_a()
        p.now += seconds
        for side in (p.a, p.b):
            endpoint = side.endpoint
            endpoint.handle_timer(p.now)
            assert endpoint.next_timer() > p.now
            side.collect(p.now)
            before = (endpoint.next_timer(), endpoint.statistics(), endpoint.peer_statistics(A))
            endpoint.take_messages()
            endpoint.handle_timer(p.now)
            assert endpoint.transmit(p.now) == []
            assert endpoint.take_messages() == []
            assert (endpoint.next_timer(), endpoint.statistics(), endpoint.peer_statistics(A)) == before
            statistics = endpoint.statistics()
            assert statistics.sessions <= 3
            assert statistics.pending_handshakes <= 1
    # Whatever happened: half a minute of an honest wire, and packets arrive both ways.
    p.run_until(p.now + 200.0)
    p.a.received.clear()
    p.b.received.clear()
    p.send_a(b"a")
    p.send_b(b"b")
    p.settle()
    p.run_until(p.now + 20.0)
    assert b"a" in unpadded(p.b.received)
    assert b"b" in unpadded(p.a.received)


@pytest.mark.parametrize("initiator", [True, False])
def test_transfer_across_three_rekeys_loses_nothing(initiator):
    p = Pair().connect()
    sent = []
    for n in range(400):
        packet = b"packet %d" % n
        sent.append(packet)
        (p.send_a if initiator else p.send_b)(packet)
        p.settle()
        p.run_until(p.now + 1.0)
    assert unpadded(p.b.received if initiator else p.a.received) == sent
