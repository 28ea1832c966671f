"""Segments larger than the MSS: who is told, when they are cut, and what happens when the way under them changes."""

from __future__ import annotations

import random

import pytest
from netsim import A, B, Net
from netstack_scripts import Script

from ts_base.ip_headers import ACK, SYN
from ts_base.who import Hop
from ts_netstack import icmp
from ts_netstack.arrivals import USUAL
from ts_netstack.segments import LARGEST_SUMMED, SegmentWriter
from ts_netstack.tcp import TcpConnection
from ts_netstack.tcp_listen import HALF_OPEN_LIMIT
from ts_netstack.wire import (
    LARGE_PREFIX,
    Sizes,
    is_transport_checksum_right,
    parse_options_untrusted,
    parse_packet_untrusted,
    parse_segment_untrusted,
    syn_options,
)

LARGE, SMALL = 32_688, 1280


class Roads:
    """Everything is a peer's own address unless `offered` says otherwise; `carried` is the width of the way there."""

    def __init__(self, offered: int = LARGE, carried: int = LARGE) -> None:
        self.offered, self.carried = offered, carried

    def offered_to(self, hop: Hop) -> int:
        return self.offered

    def carried_to(self, hop: Hop) -> int:
        return self.carried


def large_net(a: Roads | None = None, b: Roads | None = None, **path: float) -> Net:
    net = Net(**path)
    net.widths = {net.a: a or Roads(), net.b: b or Roads()}
    return net


def noise(size: int, seed: int = 5) -> bytes:
    return random.Random(seed).randbytes(size)


# -- what is said -------------------------------------------------------------------------------------------------


def test_the_offer_is_an_option_beside_the_mss():
    text = syn_options(Sizes(1240, 16_264), 8, True, 7, 9)
    assert len(text) % 4 == 0
    assert len(text) <= 40
    said = parse_options_untrusted(text)
    assert (said.mss, said.large, said.scale, said.sack_permitted, said.stamps) == (1240, 16_264, 8, True, (7, 9))
    assert syn_options(Sizes(1240), 8, True, 7, 9) == text[:-8]


@pytest.mark.parametrize(
    "text", [b"\xfd\x08tsLX\x40\x00", b"\xfd\x06tsLS", b"\xfe\x08tsLS\x40\x00", b"\xfd\x08tsLS\x40"]
)
def test_other_experiments_are_no_offer(text):
    assert parse_options_untrusted(text).large == 0


def test_the_mss_is_everybodys_and_a_peer_that_offers_nothing_gets_no_more():
    conn = Script()
    conn.widths = Roads()
    connection = conn.stack.connect((bytes([100, 64, 0, 2]), 5000), 0.0)
    syn = conn.expect(0.0, SYN)
    assert (syn.options.mss, syn.options.large) == (1240, LARGE - 40)
    conn.segment(0.01, SYN | ACK, seq=0, ack=1)
    conn.expect(0.01, ACK)
    connection.write(noise(200_000))
    assert {len(segment.payload) for segment in conn.flush()} == {1228}


def test_a_syn_without_the_offer_is_answered_without_it():
    conn = Script()
    conn.widths = Roads()
    conn.stack.listen(80)
    conn.segment(0.0, SYN)
    assert conn.expect(0.0, SYN | ACK).options.large == 0


def test_where_somebody_may_live_behind_the_address_nothing_is_offered():
    conn = Script()
    conn.widths = Roads(offered=0)
    conn.stack.connect((bytes([10, 0, 0, 2]), 5000), 0.0)
    [(_, [packet])] = conn.stack.transmit(0.0, conn.widths)
    assert LARGE_PREFIX not in packet


def test_a_cookie_promises_nothing_it_cannot_remember():
    conn = Script()
    conn.widths = Roads()
    conn.stack.listen(80)
    offer = syn_options(Sizes(1240, LARGE - 40), 8, True, 7, 0)
    for number in range(HALF_OPEN_LIMIT + 1):
        conn.peer_port = 1000 + number
        conn.segment(0.0, SYN, options=offer)
    said = {bool(segment.options.large) for segment in conn.flush()}
    assert conn.drops["tcp.syn_cookie"]
    assert said == {True, False}


# -- how it is cut ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v6", [False, True])
def test_where_both_take_it_and_the_way_carries_it_segments_grow_to_all_there_is(v6):
    net = large_net(delay=0.001)
    client, server = net.pair(v6=v6)
    data = noise(6_000_001)
    net.transfer(client, server, data)
    assert LARGE - 1300 < net.to_b.largest <= LARGE
    net.transfer(server, client, data)
    assert LARGE - 1300 < net.to_a.largest <= LARGE
    assert not net.a.drops
    assert not net.b.drops


@pytest.mark.parametrize(("a", "b"), [(Roads(), Roads(offered=0)), (Roads(offered=0), Roads())])
def test_one_that_does_not_offer_gets_and_sends_ordinary_ones(a, b):
    net = large_net(a, b, delay=0.001)
    client, server = net.pair()
    data = noise(1_000_000)
    net.transfer(client, server, data)
    net.transfer(server, client, data)
    assert max(net.to_a.largest, net.to_b.largest) <= SMALL


def test_the_first_flight_is_no_larger_for_it():
    net = large_net(delay=0.05)
    client, _ = net.pair()
    before = net.carried
    client.write(noise(1_000_000))
    net.settle()
    assert client.statistics().outstanding <= 14_600
    assert net.carried - before <= 10


def test_on_a_slow_line_nobody_waits_behind_a_large_segment():
    net = large_net(delay=0.03, rate=8e6, queue=60_000)
    client, server = net.pair()
    net.transfer(client, server, noise(3_000_000))
    assert net.to_b.largest <= 2 * 1280


def test_a_lossy_way_still_carries_every_byte():
    net = large_net(delay=0.002, loss=0.02, reorder=0.02, duplicate=0.02)
    client, server = net.pair()
    net.transfer(client, server, noise(5_000_000))
    assert net.to_b.largest > 4 * SMALL


def test_one_large_segment_is_acknowledged_at_once():
    conn = Script()
    conn.accept()
    seq = conn.skip_quick_acks()
    conn.segment(5.0, ACK, seq=seq, ack=1, data=b"x" * 100)
    conn.quiet_until(5.01)
    conn.segment(5.01, ACK, seq=seq + 100, ack=1, data=b"x" * 16_000)
    conn.expect(5.01, ACK, ack=seq + 16_100)
    conn.segment(6.0, ACK, seq=seq + 16_100, ack=1, data=b"x" * 16_000)
    conn.expect(6.0, ACK, ack=seq + 32_100)


# -- when the way changes -----------------------------------------------------------------------------------------


def in_full_flight(net: Net) -> tuple[TcpConnection, TcpConnection, bytes, int]:
    """A transfer whose window has opened: the connection, what is written, and how much of it was read."""
    client, server = net.pair()
    data = noise(12_000_000)
    written = client.write(data[: 1 << 18])
    got = bytearray()
    while len(got) < 3_000_000 or client.statistics().outstanding < 50_000:
        written += client.write(data[written : written + (1 << 18)])
        got += server.read(1 << 20)
        assert net.step()
    assert bytes(got) == data[: len(got)]
    return client, server, data[len(got) :], written - len(got)


def finish(net: Net, client: TcpConnection, server: TcpConnection, rest: bytes, written: int) -> float:
    began, got = net.now, bytearray()
    while len(got) < len(rest):
        written += client.write(rest[written : written + (1 << 18)])
        got += server.read(1 << 20)
        if len(got) < len(rest):
            assert net.step() or len(got), "stuck"
            assert net.now - began < 60
    assert bytes(got) == rest
    return net.now - began


@pytest.mark.parametrize("loss", [0.0, 0.01])
def test_a_way_that_narrows_sees_no_large_segment_any_more(loss):
    roads = Roads()
    net = large_net(roads, delay=0.004)
    client, server, rest, written = in_full_flight(net)
    net.to_b.loss = loss
    assert net.to_b.largest > 16_000
    # The direct path: what flies by relay still arrives, what leaves from now on must be small.
    roads.carried, net.to_b.mtu, net.to_b.delay, net.to_b.largest = 0, SMALL, 0.001, 0
    finish(net, client, server, rest, written)
    assert net.to_b.largest <= SMALL
    assert net.to_b.dropped == 0


@pytest.mark.parametrize("loss", [0.0, 0.01])
def test_a_way_that_widens_is_used(loss):
    roads = Roads(carried=0)
    net = large_net(roads, delay=0.002)
    client, server, rest, written = in_full_flight(net)
    assert net.to_b.largest <= SMALL
    roads.carried, net.to_b.delay, net.to_b.loss = LARGE, 0.004, loss
    finish(net, client, server, rest, written)
    assert net.to_b.largest > 8_000 or loss
    assert net.to_b.largest > 2 * SMALL


def test_back_and_forth_with_large_segments_lost_in_between():
    roads = Roads()
    net = large_net(roads, delay=0.004)
    client, server, rest, written = in_full_flight(net)
    at = 0
    for carried in (0, LARGE, 0, LARGE, 0):
        roads.carried = carried
        net.to_b.mtu = 65_535 if carried else SMALL
        if not carried:  # and the relay went down with all that was in it
            net.lose_in_flight(SMALL)
        until = at + len(rest) // 5
        got = bytearray()
        while len(got) < until - at:
            written += client.write(rest[written : written + (1 << 18)])
            got += server.read(until - at - len(got))
            assert net.step() or len(got) >= until - at
        assert bytes(got) == rest[at:until]
        at = until
    assert net.to_b.dropped == 0


def test_a_way_that_swallows_large_segments_in_silence_is_found_out():
    net = large_net(delay=0.004)
    client, server, rest, written = in_full_flight(net)
    net.to_b.mtu = SMALL  # but the path table still says relay
    assert finish(net, client, server, rest, written) < 20


def test_a_packet_too_big_from_the_path_ends_large_segments_there():
    net = large_net(delay=0.001)
    client, server = net.pair()
    net.transfer(client, server, noise(2_000_000))
    client.write(noise(3000))
    [(_, [packet, *_])] = net.a.transmit(net.now, net.widths[net.a])
    too_big = icmp.message(B, A, icmp.UNREACHABLE4, icmp.FRAGMENTATION_NEEDED4, 1200, packet[:48])
    net.a.receive([(USUAL, [too_big])], net.now)
    while server.unread < 3000:
        assert net.step()
    server.read(3000)
    net.to_b.largest = 0
    net.transfer(client, server, noise(2_000_000))
    assert net.to_b.largest <= 1200
    assert net.a._paths.large_segment_size((A, 0), Roads()) == LARGE - 40


# -- checksums ----------------------------------------------------------------------------------------------------


def test_large_segments_have_no_checksum_and_all_others_a_right_one():
    writer = SegmentWriter((bytes([100, 64, 0, 1]), 80), (bytes([100, 64, 0, 2]), 5000))
    large = [
        *writer.burst(2**32 - 9000, [noise(8596)] * 3, 7, ACK, 9, b""),
        writer.single(7, 7, ACK, 9, b"", noise(8596)),
    ]
    usual = [
        *writer.burst(7, [noise(1228)] * 3, 7, ACK, 9, b""),
        writer.single(7, 7, ACK, 9, b"", noise(LARGEST_SUMMED)),
    ]
    assert {packet[36:38] for packet in large} == {b"\0\0"}
    assert [parse_segment_untrusted(packet[20:]).seq for packet in large] == [2**32 - 9000, 2**32 - 404, 8192, 7]
    for packet in usual:
        assert is_transport_checksum_right(parse_packet_untrusted(packet, True))
