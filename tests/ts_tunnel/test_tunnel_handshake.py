"""How sessions begin: the happy dialogue, loss, forgery, duplicates, and both sides at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tunnel_scripts import NEVER, PATH_A, PATH_B, A, B, Pair, kinds, private, sessions_of, unpadded

from ts_tunnel import drops as because
from ts_tunnel.cookie import append_macs, mac1_key_of
from ts_tunnel.messages import NO_ANSWER, SessionEstablished, SessionLost


def test_first_packet_waits_for_the_handshake_and_arrives():
    p = Pair()
    p.send_a(b"first", b"second")
    assert p.carry_a_to_b() == ["initiation"]
    assert p.carry_b_to_a() == ["response"]
    assert p.carry_a_to_b() == ["data", "data"]
    assert unpadded(p.b.received) == [b"first", b"second"]
    assert p.a.endpoint.take_messages() == [SessionEstablished(B, 0.0)]
    assert p.b.endpoint.take_messages() == [SessionEstablished(A, 0.0)]
    p.send_b(b"answer")
    assert p.carry_b_to_a() == ["data"]
    assert unpadded(p.a.received) == [b"answer"]


def test_initiator_with_nothing_to_say_confirms_by_a_keepalive():
    p = Pair()
    p.connect()
    p.a.endpoint.expect_restart(B)
    p.tick(6.0)
    p.send_a(b"x")
    assert p.carry_a_to_b() == ["initiation", "data"]
    assert p.carry_b_to_a() == ["response"]
    assert [len(datagram) for datagram in p.a.wire] == [32]
    heard = p.b.heard
    p.carry_a_to_b()
    assert p.b.heard == heard + 1
    assert unpadded(p.b.received) == [b"x"]
    assert p.b.endpoint.take_messages() == [SessionEstablished(A, 6.0)]


def test_responder_sends_nothing_on_a_session_the_peer_has_not_used():
    p = Pair()
    p.send_a(b"x")
    p.carry_a_to_b()
    p.carry_b_to_a()
    p.send_b(b"y")
    assert p.b.wire == []
    p.carry_a_to_b()
    assert kinds(p.b.wire) == ["data"]


def test_initiation_is_retried_until_ninety_seconds_are_over():
    p = Pair()
    p.send_a(b"lost")
    sent = 0
    while p.a.endpoint.next_timer() < NEVER:
        sent += p.drop_a_to_b().count("initiation")
        p.tick(p.a.endpoint.next_timer())
    assert p.now == 90.0
    assert 17 <= sent <= 18
    assert p.a.endpoint.drops == {because.STAGED_TOO_LONG: 1}
    assert p.a.endpoint.take_messages() == [SessionLost(B, NO_ANSWER)]
    assert p.a.endpoint.statistics().pending_handshakes == 0
    p.send_a(b"again")
    p.run_until(90.0 + 5.0)  # the last initiation was less than five seconds ago
    assert unpadded(p.b.received) == [b"again"]


def test_retries_are_five_seconds_apart_plus_jitter():
    p = Pair()
    p.send_a(b"lost")
    times = [0.0]
    for _ in range(10):
        p.tick(p.a.endpoint.next_timer())
        times.append(p.now)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(5.0 <= gap <= 5.333 for gap in gaps)
    assert len(set(gaps)) > 5


def test_user_packet_gives_a_pending_handshake_ninety_more_seconds():
    p = Pair()
    p.send_a(b"first")
    p.tick(60.0)
    p.send_a(b"second")
    p.tick(149.9)
    assert p.a.endpoint.statistics().pending_handshakes == 1
    p.tick(150.0)
    assert p.a.endpoint.next_timer() == NEVER


def test_lost_response_is_made_up_for_by_the_next_initiation():
    p = Pair()
    p.send_a(b"x")
    p.carry_a_to_b()
    assert p.drop_b_to_a() == ["response"]
    p.tick(5.4)
    p.settle()
    assert unpadded(p.b.received) == [b"x"]
    assert p.b.endpoint.statistics().sessions == 1


def test_staged_packets_are_the_newest_128():
    p = Pair()
    p.send_a(*[b"%d" % n for n in range(200)])
    p.send_a(b"last")
    p.settle()
    assert unpadded(p.b.received) == [b"%d" % n for n in range(73, 200)] + [b"last"]
    assert p.a.endpoint.drops[because.STAGED_TOO_MANY] == 73


def test_forged_response_leaves_the_pending_initiation_untouched():
    p = Pair()
    p.send_a(b"x")
    p.carry_a_to_b()
    [response] = p.b.wire
    for position in range(12, 60, 7):
        body = bytearray(response[:60])
        body[position] ^= 1
        p.a.take(PATH_B, [append_macs(bytes(body), mac1_key_of(p.a.private.public.raw), None)], 0.0)
    assert p.a.endpoint.drops == {because.FORGED: 7}
    assert p.a.heard == 0
    p.settle()
    assert unpadded(p.b.received) == [b"x"]


def test_response_with_a_wrong_mac_index_or_length_is_dropped():
    p = Pair()
    p.send_a(b"x")
    p.carry_a_to_b()
    [response] = p.b.wire
    p.a.take(PATH_B, [response[:-32] + bytes(32), response[:8] + bytes(4) + response[12:], response + b"\0"], 0.0)
    assert p.a.endpoint.drops == {because.WRONG_MAC: 1, because.NO_SESSION: 1, because.FORGED: 1}
    p.settle()
    assert unpadded(p.b.received) == [b"x"]


def test_second_copy_of_a_response_is_ignored():
    p = Pair()
    p.send_a(b"x")
    p.carry_a_to_b()
    p.b.wire *= 2
    p.settle()
    assert unpadded(p.b.received) == [b"x"]
    assert p.a.endpoint.drops == {because.NO_SESSION: 1}


def test_second_copy_of_an_initiation_keeps_the_first_handshake():
    p = Pair()
    p.send_a(b"x")
    p.a.wire *= 2
    p.carry_a_to_b()
    assert kinds(p.b.wire) == ["response"]
    assert p.b.endpoint.drops == {because.STALE_INITIATION: 1}
    p.settle()
    assert unpadded(p.b.received) == [b"x"]


def test_replayed_initiation_is_refused_for_ever():
    p = Pair()
    p.send_a(b"x")
    initiation = p.a.wire[0]
    p.settle()
    p.run_until(2000.0)
    assert p.b.endpoint.statistics().sessions == 0
    p.b.take(PATH_A, [initiation], p.now)
    assert p.b.endpoint.drops == {because.STALE_INITIATION: 1}


def test_initiations_closer_than_20_milliseconds_are_dropped():
    p, other = Pair(), Pair()
    p.send_a(b"x")
    p.carry_a_to_b()
    other.wall_offset += 1.0
    other.send_a(b"x")
    p.b.take(PATH_A, other.a.wire, 0.019)
    assert p.b.endpoint.drops == {because.HURRIED_INITIATION: 1}
    p.b.take(PATH_A, other.a.wire, 0.020)
    assert p.b.endpoint.statistics().sessions == 1  # the unused one before it is gone


def test_reflected_initiation_is_refused_by_its_mac():
    p = Pair()
    p.send_a(b"x")
    p.a.take(PATH_B, p.a.wire, 0.0)
    assert p.a.endpoint.drops == {because.WRONG_MAC: 1}


def test_stranger_gets_no_answer():
    p, stranger = Pair(), Pair(seed="stranger")
    stranger.a.endpoint.set_peers({B: p.b.private.public.raw}, 0.0)
    stranger.send_a(b"x")
    p.b.take(PATH_A, stranger.a.wire, 0.0)
    p.b.collect(0.0)
    assert p.b.wire == []
    assert p.b.heard == 0
    assert p.b.endpoint.drops == {because.UNKNOWN_KEY: 1}
    assert p.b.endpoint.statistics().active_peers == 0


def test_timestamps_increase_when_the_wall_clock_steps_back():
    p = Pair()
    p.connect()
    p.wall_offset -= 3600
    p.a.endpoint.expect_restart(B)
    p.tick(6.0)
    p.send_a(b"x")
    p.settle()
    assert p.b.endpoint.drops == {}
    assert p.a.endpoint.take_messages() == [SessionEstablished(B, 6.0)]


def test_peer_key_without_a_shared_secret_does_no_harm():
    p = Pair()
    p.a.endpoint.set_peers({B: bytes(32)}, 0.0)
    p.send_a(b"x")
    assert p.a.wire == []
    assert p.a.endpoint.drops == {because.UNUSABLE_KEY: 1, because.STAGED_TOO_LONG: 1}
    assert p.a.endpoint.next_timer() == NEVER


@pytest.mark.parametrize("chunk", range(4))
def test_simultaneous_initiations_always_converge(chunk):
    """A thousand orders of arrival, with loss: both sides end up hearing each other, within one retry."""
    import random

    for seed in range(chunk * 250, chunk * 250 + 250):
        rng = random.Random(seed)
        p = Pair(seed)
        p.send_a(b"from a")
        p.send_b(b"from b")
        for _ in range(12):
            side, other, path = rng.choice([(p.a, p.b, PATH_A), (p.b, p.a, PATH_B)])
            if side.wire:
                datagram = side.wire.pop(rng.randrange(len(side.wire)))
                if rng.random() > 0.15:
                    other.take(path, [datagram], p.now)
                    other.collect(p.now)
        p.settle()
        p.run_until(6.0)
        p.a.received.clear()
        p.b.received.clear()
        p.send_a(b"again a")
        p.send_b(b"again b")
        p.settle()
        p.run_until(12.0)
        assert unpadded(p.b.received)[-1:] == [b"again a"], seed
        assert unpadded(p.a.received)[-1:] == [b"again b"], seed
        assert p.a.endpoint.statistics().sessions <= 3
        assert p.b.endpoint.statistics().sessions <= 3


def test_simultaneous_initiations_lose_nothing_when_nothing_is_lost():
    p = Pair()
    p.send_a(b"from a")
    p.send_b(b"from b")
    p.settle()
    assert unpadded(p.b.received) == [b"from a"]
    assert unpadded(p.a.received) == [b"from b"]


def test_trace_replays_byte_for_byte():
    def trace() -> list[bytes]:
        p, seen = Pair(seed=7), []
        for n in range(5):
            p.send_a(b"x" * n)
            p.send_b(b"y")
            seen += p.a.wire + p.b.wire
            p.settle()
            p.run_until(p.now + 50.0)
        return seen

    assert trace() == trace()


def test_no_secret_shows_in_a_repr():
    p = Pair().connect()
    endpoint = p.a.endpoint
    shown = repr(vars(endpoint)) + repr(endpoint._handshakes.private)
    shown += repr([*sessions_of(endpoint), *endpoint._peers.values()])
    assert p.a.private.raw.hex() not in shown
    assert repr(p.a.private.raw) not in shown
    assert private(("x", 1)).raw.hex() not in shown
