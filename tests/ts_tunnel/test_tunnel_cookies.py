"""Load: who is asked for a cookie, what a cookie buys, and what a flood may cost."""

from __future__ import annotations

import pytest
from tunnel_scripts import KIND_NAMES, PATH_A, PATH_B, A, Pair, Side, guard_of, kinds, peer_of, stream, unpadded

from ts_base.keys import clamp
from ts_tunnel import drops as because
from ts_tunnel.cookie import append_macs, keyed_mac, mac1_key_of
from ts_tunnel.handshake import Initiation, encode_timestamp
from ts_tunnel.handshake_guard import LoadGauge, SourceBudgets, origin_of, source_of
from ts_tunnel.params import (
    CALM_INITIATIONS_PER_SECOND,
    COOKIE_REPLIES_PER_SECOND,
    HANDSHAKES_PER_SECOND,
    REPLIES_LIMIT,
    SOURCE_BURST,
    SOURCE_TABLE_LIMIT,
)
from ts_tunnel.wire import MACS_LENGTH


def initiations_from_strangers(count: int, target: Side) -> list[bytes]:
    """Well formed, and right up to the first mac, which only takes our public key; the rest is noise."""
    entropy, key = stream("strangers"), mac1_key_of(target.private.public.raw)
    return [append_macs(b"\1\0\0\0" + entropy(112), key, None) for _ in range(count)]


def put_under_load(side: Side, now: float) -> None:
    side.take(("203.0.113.9", 9), initiations_from_strangers(CALM_INITIATIONS_PER_SECOND + 1, side), now)
    side.endpoint.take_replies()
    side.wire.clear()
    side.endpoint.drops.clear()


def test_initiator_is_asked_for_a_cookie_and_comes_back_with_it():
    p = Pair()
    put_under_load(p.b, 0.0)
    p.send_a(b"x")
    p.carry_a_to_b()
    assert kinds(p.b.wire) == ["cookie"]
    assert p.b.endpoint.drops == {because.NO_COOKIE: 1}
    assert p.b.endpoint.statistics().active_peers == 0
    p.carry_b_to_a()
    assert p.a.wire == []  # a cookie is no reason to hurry
    put_under_load(p.b, 5.0)
    p.tick(5.4)
    assert p.a.wire[0][-16:] != bytes(16)
    p.carry_a_to_b()
    assert kinds(p.b.wire) == ["response"]
    p.settle()
    assert unpadded(p.b.received) == [b"x"]


def test_cookie_is_bound_to_the_path_it_was_given_on():
    p = Pair()
    put_under_load(p.b, 0.0)
    p.send_a(b"x")
    p.settle()
    put_under_load(p.b, 5.0)
    p.tick(5.4)
    p.b.take(("198.51.100.7", 41641), p.a.wire, p.now)
    p.b.collect(p.now)
    assert kinds(p.b.wire) == ["cookie"]


def test_cookie_is_forgotten_after_two_minutes():
    p = Pair()
    put_under_load(p.b, 0.0)
    p.send_a(b"x")
    p.settle()
    p.tick(100.0)
    p.drop_a_to_b()
    p.now = 119.0
    p.send_a(b"x")
    assert p.a.wire.pop()[-16:] != bytes(16)
    p.now = 125.0
    p.send_a(b"x")
    assert p.a.wire.pop()[-16:] == bytes(16)


def test_load_is_over_a_second_after_the_flood():
    p = Pair()
    put_under_load(p.b, 0.0)
    p.now = 1.1
    p.send_a(b"x")
    p.settle()
    assert unpadded(p.b.received) == [b"x"]


def test_second_mac_is_not_needed_and_does_no_harm_without_load():
    p = Pair()
    p.send_a(b"x")
    [initiation] = p.a.wire
    p.a.wire = [initiation[:-16] + b"\7" * 16]
    p.settle()
    assert unpadded(p.b.received) == [b"x"]


def test_forged_cookie_replies_are_dropped_and_change_nothing():
    p = Pair()
    put_under_load(p.b, 0.0)
    p.send_a(b"x")
    p.carry_a_to_b()
    [reply] = p.b.wire
    for position in (8, 31, 32, 47, 63):
        damaged = bytearray(reply)
        damaged[position] ^= 1
        p.a.take(PATH_B, [bytes(damaged)], 0.0)
    assert p.a.endpoint.drops == {because.FORGED: 5}
    p.a.take(PATH_B, [reply[:4] + bytes(4) + reply[8:]], 0.0)
    assert p.a.endpoint.drops[because.NO_SESSION] == 1
    p.a.take(PATH_B, [reply, reply], 0.0)
    assert p.a.endpoint.drops[because.NO_SESSION] == 2  # the second copy answers nothing any more
    assert p.a.heard == 0


def test_cookie_in_answer_to_a_response_is_kept_too():
    p = Pair()
    p.send_a(b"x")
    p.carry_a_to_b()
    [response] = p.b.wire
    reply = guard_of(p.a.endpoint)._cookies.reply(response, int.from_bytes(response[4:8], "little"), b"source", 0.0)
    p.b.take(PATH_A, [reply], 0.0)
    assert p.b.endpoint.drops == {}
    assert peer_of(p.b.endpoint, A).cookie(1.0) is not None


@pytest.mark.parametrize("mac", ["wrong", "right"])
def test_flood_of_initiations_is_bounded_and_cheap(mac):
    p = Pair()
    flood = initiations_from_strangers(3000, p.b)
    if mac == "wrong":
        flood = [datagram[:-MACS_LENGTH] + bytes(32) for datagram in flood]
    p.b.take(("203.0.113.9", 9), flood, 0.0)
    replies = p.b.endpoint.take_replies()
    drops = p.b.endpoint.drops
    assert p.b.endpoint.statistics().active_peers == p.b.endpoint.statistics().sessions == 0
    if mac == "wrong":
        assert drops == {because.WRONG_MAC: 3000}
        assert replies == []
    else:
        assert drops[because.FORGED] == CALM_INITIATIONS_PER_SECOND  # as many key exchanges were paid for
        assert drops[because.NO_COOKIE] == 3000 - CALM_INITIATIONS_PER_SECOND
        assert len(replies) == REPLIES_LIMIT
        assert drops[because.REPLIES_FULL] == 3000 - CALM_INITIATIONS_PER_SECOND - REPLIES_LIMIT


def test_cookie_replies_per_second_are_bounded():
    p = Pair()
    sent = 0
    flood = initiations_from_strangers(200, p.b)
    for n in range(50):
        p.b.take(("203.0.113.9", 9), flood, n / 50)
        sent += len(p.b.endpoint.take_replies())
    assert sent <= 2 * COOKIE_REPLIES_PER_SECOND


def test_asymmetric_work_per_second_is_bounded_even_with_cookies_from_everywhere():
    p = Pair()
    key = mac1_key_of(p.b.private.public.raw)
    entropy, tried = stream("botnet"), 0
    put_under_load(p.b, 0.0)
    for n in range(3 * HANDSHAKES_PER_SECOND):
        path = (f"198.51.{n >> 8}.{n & 255}", 1)
        body = b"\1\0\0\0" + entropy(112)
        p.b.take(path, [append_macs(body, key, None)], 0.5)
        replies = p.b.endpoint.take_replies()
        if not replies:
            break
        cookie = keyed_mac(guard_of(p.b.endpoint)._cookies._secret, source_of(path))
        p.b.take(path, [append_macs(body, key, cookie)], 0.5)
        tried += 1
    assert tried > HANDSHAKES_PER_SECOND
    assert p.b.endpoint.drops[because.FORGED] <= 2 * HANDSHAKES_PER_SECOND
    assert p.b.endpoint.drops[because.TOO_BUSY] > 0


def test_one_source_with_a_cookie_gets_twenty_handshakes_a_second():
    budgets = SourceBudgets()
    assert sum(budgets.take(b"source", n / 1000) for n in range(1000)) in range(20, 20 + SOURCE_BURST + 1)
    assert budgets.take(b"other", 1.0)


def test_source_table_is_bounded_and_forgets_who_rested():
    budgets = SourceBudgets()
    for n in range(SOURCE_TABLE_LIMIT + 10):
        budgets.take(n.to_bytes(4, "big"), 0.0)
    assert len(budgets) == SOURCE_TABLE_LIMIT
    assert not budgets.take(b"new", 0.5)
    assert budgets.take(b"new", 1.5)
    assert len(budgets) == 1


def test_a_calm_tailnet_is_never_under_load():
    gauge = LoadGauge()
    assert not any(gauge.on_initiation(n / CALM_INITIATIONS_PER_SECOND) for n in range(1000))


def test_flood_of_initiations_does_not_keep_our_own_handshake_from_completing():
    p = Pair()
    p.send_b(b"x")
    p.carry_b_to_a()
    put_under_load(p.b, 0.0)
    for _ in range(HANDSHAKES_PER_SECOND * 2):
        guard_of(p.b.endpoint)._is_within(guard_of(p.b.endpoint)._initiations, 0.0)
    p.settle()
    assert unpadded(p.a.received) == [b"x"]


def test_paths_are_told_apart_without_ambiguity():
    paths = [("192.0.2.1", 1), ("192.0.2.1", 11), ("192.0.2.1", 1, 1), (900, b"k" * 32), (901, b"k" * 32)]
    assert len({source_of(path) for path in paths}) == len(paths)
    assert origin_of(paths[0]) == origin_of(paths[1]) == origin_of(paths[2])
    assert origin_of(paths[3]) == origin_of(paths[4]) == b"k" * 32


def test_known_peer_that_floods_is_held_to_its_spacing():
    """Even the holder of a peer's key gets one session per 20 ms out of us."""
    p = Pair()
    entropy = stream("flooding peer")
    flood = []
    for n in range(60):
        initiation = Initiation(
            p.a.private.raw,
            p.b.private.public.raw,
            ephemeral=clamp(entropy(32)),
            timestamp=encode_timestamp(10_000 + n),
            index=n + 1,
        )
        flood.append(append_macs(initiation.body, mac1_key_of(p.b.private.public.raw), None))
    p.b.take(PATH_A, flood, 0.0)
    p.b.collect(0.0)
    assert kinds(p.b.wire) == [KIND_NAMES[2]]
    assert p.b.endpoint.drops == {because.HURRIED_INITIATION: 59}
    assert p.b.endpoint.statistics().sessions == 1
