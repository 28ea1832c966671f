"""The peer set: who is in it, keys that change on either side, paths, statistics, and what an idle peer costs."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc

import pytest
from tunnel_scripts import NEVER, PATH_A, PATH_B, A, B, Pair, kinds, peer_of, private, stream, unpadded

from ts_tunnel import drops as because
from ts_tunnel.endpoint import Endpoint
from ts_tunnel.messages import KEY_CHANGED, PeerStatistics, SessionEstablished, SessionLost


def test_removed_peer_is_forgotten_with_everything_it_held():
    p = Pair().connect()
    old = peer_of(p.a.endpoint, B)
    p.send_b(b"x")
    p.a.endpoint.set_peers({}, 1.0)
    assert p.a.endpoint.take_messages() == [SessionLost(B, KEY_CHANGED)]
    statistics = p.a.endpoint.statistics()
    assert (statistics.peers, statistics.active_peers, statistics.sessions) == (0, 0, 0)
    assert p.a.endpoint.next_timer() == NEVER
    assert old.current is None
    p.a.take(PATH_B, p.b.wire, 1.0)
    p.a.endpoint.send([(B, [b"x"])], 1.0)
    assert p.a.endpoint.transmit(1.0) == []
    assert p.a.endpoint.drops == {because.NO_SESSION: 1, because.UNKNOWN_PEER: 1}


def test_peer_removed_in_mid_handshake_frees_its_index():
    p = Pair()
    p.send_a(b"x")
    p.carry_a_to_b()
    p.a.endpoint.set_peers({}, 0.0)
    assert p.a.endpoint.statistics().pending_handshakes == 0
    p.carry_b_to_a()
    assert p.a.heard == 0


def test_replaced_responder_session_frees_its_index():
    p = Pair()
    for _ in range(5):
        p.send_a(b"x")
        p.carry_a_to_b()
        p.drop_b_to_a()
        p.tick(p.now + 5.4)
        assert p.b.endpoint.statistics().sessions <= 1


def test_peer_with_a_new_key_starts_anew():
    p, renewed = Pair().connect(), Pair(seed="renewed")
    p.b = renewed.b
    p.b.endpoint.set_peers({A: p.a.private.public.raw}, 1.0)
    p.a.endpoint.set_peers({B: p.b.private.public.raw}, 1.0)
    p.now = 1.0
    p.send_a(b"to the new key")
    p.settle()
    assert unpadded(p.b.received) == [b"to the new key"]
    assert p.a.endpoint.take_messages() == [SessionLost(B, KEY_CHANGED), SessionEstablished(B, 1.0)]


def test_key_that_moves_to_another_id_is_found_there():
    p = Pair()
    p.a.endpoint.set_peers({77: p.b.private.public.raw}, 0.0)
    p.send_b(b"x")
    p.settle()
    assert p.a.endpoint.statistics().sessions == 1
    assert p.a.endpoint.peer_statistics(77).packets_in == 1


def test_unchanged_peers_keep_their_sessions():
    p = Pair().connect()
    p.a.endpoint.set_peers({B: p.b.private.public.raw, 3: b"3" * 32}, 1.0)
    p.send_a(b"x")
    assert p.carry_a_to_b() == ["data"]


def test_our_own_key_and_a_doubled_key_are_passed_over():
    p = Pair()
    key = p.b.private.public.raw
    p.a.endpoint.set_peers({1: p.a.private.public.raw, B: key, 9: key}, 0.0)
    assert p.a.endpoint.statistics().peers == 1
    with pytest.raises(ValueError, match="32 bytes"):
        p.a.endpoint.set_peers({5: b"short"}, 0.0)


def test_a_key_that_was_passed_over_is_taken_once_it_is_free():
    p = Pair()
    key = p.b.private.public.raw
    p.a.endpoint.change_peers({9: key}, (), 0.0)
    assert p.a.endpoint.statistics().peers == 1
    p.a.endpoint.change_peers({}, [B], 0.0)
    p.send_b(b"x")
    p.settle()
    assert p.a.endpoint.peer_statistics(9).packets_in == 1
    p.a.endpoint.change_peers({9: b"9" * 32}, [77], 0.0)
    assert p.a.endpoint.statistics().sessions == 0


def test_own_key_change_makes_every_session_anew():
    p = Pair().connect()
    p.a.private = private("another")
    p.now = 1.0
    p.a.endpoint.set_private(p.a.private, 1.0)
    assert p.a.endpoint.take_messages() == [SessionLost(B, KEY_CHANGED)]
    p.send_b(b"on its way")
    p.carry_b_to_a()
    assert unpadded(p.a.received) == [b"on its way"]  # what was sealed before the peer heard of it still opens
    p.b.endpoint.set_peers({A: p.a.private.public.raw}, 1.0)
    p.b.wire.clear()
    p.send_a(b"new")
    assert p.carry_a_to_b() == ["initiation"]
    p.settle()
    assert unpadded(p.b.received) == [b"new"]
    p.run_until(2000.0)
    assert p.a.endpoint.next_timer() == NEVER


def test_own_key_change_does_not_strand_packets_that_waited():
    p = Pair()
    p.send_a(b"waiting")
    p.drop_a_to_b()
    p.a.private = private("another")
    p.b.endpoint.set_peers({A: p.a.private.public.raw}, 0.1)
    p.now = 0.1
    p.a.endpoint.set_private(p.a.private, 0.1)
    p.a.collect(0.1)
    assert kinds(p.a.wire) == ["initiation"]
    p.settle()
    assert unpadded(p.b.received) == [b"waiting"]


def test_peer_that_hears_of_our_new_key_late_is_asked_again_soon():
    p = Pair().connect()
    p.a.endpoint.set_private(private("another"), 0.0)
    p.send_a(b"new")
    asked = []
    while p.now < 20.0:
        assert p.drop_a_to_b() == ["initiation"]
        asked.append(p.now)
        p.tick(p.a.endpoint.next_timer())
    assert asked[:7] == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    assert 13.0 <= asked[7] < 13.4  # as ever

    p.b.endpoint.set_peers({A: private("another").public.raw}, p.now)
    p.settle()
    assert unpadded(p.b.received) == [b"new"]


def test_own_key_change_to_a_peers_key_drops_that_peer():
    p = Pair().connect()
    p.a.endpoint.set_private(p.b.private, 1.0)
    assert p.a.endpoint.statistics().peers == 0


def test_path_of_a_run_is_the_only_roaming_there_is():
    p = Pair().connect()
    for path in (("203.0.113.5", 5), (900, b"k" * 32), ("203.0.113.5", 5, 77)):
        p.send_a(b"x")
        datagrams, p.a.wire = p.a.wire, []
        [(peer, came_by, packets)] = p.b.endpoint.receive([(path, datagrams)], p.now)
        assert (peer, came_by, unpadded(packets)) == (A, path, [b"x"])


def test_keepalives_and_handshakes_are_empty_runs():
    p = Pair()
    p.send_a(b"x")
    assert p.b.endpoint.receive([(PATH_A, p.a.wire)], 0.0) == [(A, PATH_A, [])]
    p.b.collect(0.0)
    assert p.a.endpoint.receive([(PATH_B, p.b.wire)], 0.0) == [(B, PATH_B, [])]
    p.b.wire.clear()
    p.a.wire.clear()
    p.a.collect(0.0)
    p.carry_a_to_b()
    p.tick(10.0)
    assert p.a.endpoint.receive([(PATH_B, p.b.wire)], 10.0) == [(B, PATH_B, [])]


def test_runs_are_opened_per_session_and_keep_their_order():
    p = Pair().connect()
    p.send_a(*[b"%d" % n for n in range(100)])
    noise = [b"", b"\4\0\0\0", b"\4\0\0\0\1\2\3\4" + bytes(40), b"garbage"]
    mixed = [*p.a.wire[:50], *noise, *p.a.wire[50:]]
    opened = p.b.endpoint.receive([(PATH_A, mixed)], 0.0)
    assert [len(packets) for _, _, packets in opened] == [50, 50]
    assert unpadded([packet for _, _, packets in opened for packet in packets]) == [b"%d" % n for n in range(100)]
    assert p.b.endpoint.drops == {because.NOT_WIREGUARD: 2, because.NO_SESSION: 2}


def test_damaged_and_repeated_datagrams_in_a_run_harm_only_themselves():
    p = Pair().connect()
    p.send_a(*[b"%d" % n for n in range(10)])
    run = p.a.wire
    prefix = run[0][:8]
    run[3] = run[3][:-1] + bytes([run[3][-1] ^ 1])
    damaged = [run[0], run[0], prefix, prefix + bytes(8), *run[1:], run[5]]
    [(_, _, packets)] = p.b.endpoint.receive([(PATH_A, damaged)], 0.0)
    assert unpadded(packets) == [b"%d" % n for n in range(10) if n != 3]
    assert p.b.endpoint.drops == {because.FORGED: 3, because.REPLAYED: 2}


def test_forged_datagram_does_not_move_the_replay_window_or_any_timer():
    p = Pair().connect()
    p.run_until(15.0)
    p.send_a(b"x")
    [genuine] = p.a.wire
    before = p.b.endpoint.next_timer(), p.b.endpoint.peer_statistics(A)
    forged = genuine[:8] + (1 << 40).to_bytes(8, "little") + genuine[16:]
    assert p.b.endpoint.receive([(PATH_A, [forged] * 3)], p.now) == []
    assert (p.b.endpoint.next_timer(), p.b.endpoint.peer_statistics(A)) == before
    p.carry_a_to_b()
    assert unpadded(p.b.received) == [b"x"]


@pytest.mark.parametrize(("size", "padded"), [(1, 16), (16, 16), (17, 32), (1270, 1280), (1280, 1280), (1300, 1300)])
def test_padding_is_to_sixteen_bytes_and_never_beyond_the_mtu(size, padded):
    p = Pair().connect()
    p.send_a(b"x" * size)
    assert [len(datagram) - 32 for datagram in p.a.wire] == [padded]


def test_packet_sent_ahead_passes_what_was_staged():
    p = Pair()
    p.send_a(b"staged")
    assert not p.a.endpoint.send_ahead(B, b"advert", 0.0)
    assert not p.a.endpoint.send_ahead(99, b"advert", 0.0)
    p.carry_a_to_b()
    p.a.take(PATH_B, p.b.wire, 0.0)
    assert p.a.endpoint.take_messages() == [SessionEstablished(B, 0.0)]
    assert p.a.endpoint.send_ahead(B, b"advert", 0.0)
    p.send_a(b"later")
    p.carry_a_to_b()
    assert unpadded(p.b.received) == [b"advert", b"staged", b"later"]


def test_statistics_count_datagrams_and_their_bytes():
    p = Pair().connect()
    p.send_a(b"x" * 100, b"y")
    p.settle()
    sent, got = p.a.endpoint.peer_statistics(B), p.b.endpoint.peer_statistics(A)
    assert (sent.packets_out, sent.bytes_out) == (3, 48 + 144 + 48)
    assert (got.packets_in, got.bytes_in) == (3, 48 + 144 + 48)
    assert sent.handshake_at == 0.0
    assert p.a.endpoint.peer_statistics(55) == PeerStatistics(handshake_at=None)
    p.run_until(300.0)
    p.send_a(b"waits")
    assert p.a.endpoint.peer_statistics(B).staged == 1


def test_ten_thousand_idle_peers_are_cheap_and_silent():
    keys = {n: n.to_bytes(32, "big") for n in range(1, 10_001)}
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        endpoint = Endpoint(private("x"), entropy=stream(1), wall_clock=time.time)
        endpoint.set_peers(keys, 0.0)
        known = tracemalloc.get_traced_memory()[0]
        for peer_id in keys:
            endpoint._roster.peer(peer_id)
        touched = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (known - before) / 10_000 < 300
    assert (touched - known) / 10_000 < 1024
    assert endpoint.next_timer() == NEVER
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        endpoint.set_peers(keys, 1.0)
    finally:
        sys.setprofile(None)
    assert calls < 1.1 * len(keys), "the same peers again cost more than one look at each"
