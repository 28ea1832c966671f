"""What a stack says is its own, where somebody else has the same addresses."""

from __future__ import annotations

import pytest
from netsim import A6, B6, A, B, Net

from ts_base.ip import UDP
from ts_netstack import icmp
from ts_netstack.fragments import cut
from ts_netstack.wire import udp_payload

FAMILIES = pytest.mark.parametrize(("ours", "theirs"), [(A, B), (A6, B6)], ids=["v4", "v6"])
PEER = 2


def from_b(net: Net) -> list[bytes]:
    return [packet for _, run in net.b.transmit(net.now) for packet in run]


@FAMILIES
def test_segments_of_connections_and_to_listeners_are_held(ours, theirs):
    net = Net()
    net.a.listen(80)
    net.b.connect((ours, 80), 0.0)
    net.b.connect((ours, 81), 0.0)
    to_listener, to_nobody = from_b(net)
    assert net.a.holds(to_listener, PEER)
    assert not net.a.holds(to_nobody, PEER)
    net.b.listen(7)
    net.a.connect((theirs, 7), 0.0)
    for hop, packets in net.a.transmit(0.0):
        assert hop == (theirs, 0)
        net.b.receive([((1, True), packets)], 0.0)
    [syn_ack] = from_b(net)
    assert net.a.holds(syn_ack, PEER)
    reset = icmp.port_unreachable(syn_ack, theirs, ours)  # quotes what we never sent
    assert not net.a.holds(reset, PEER)


@FAMILIES
def test_datagrams_to_bound_ports_are_held_whole_and_in_pieces(ours, theirs):
    net = Net()
    net.a.bind_udp(1000)
    port = net.b.bind_udp(2000)
    for number in (1000, 1001):
        port.send(b"x", (ours, number), 0.0)
    assert [net.a.holds(packet, PEER) for packet in from_b(net)] == [True, False]
    payload = udp_payload((theirs, 2000), (ours, 1000), bytes(3000))
    first, *rest = cut(theirs, ours, UDP, payload, 1280, 9)
    assert net.a.holds(first, PEER)
    assert not any(net.a.holds(piece, PEER) for piece in rest), "nothing of it is here yet"
    net.a.receive([((PEER, True), [first])], 0.0)
    assert all(net.a.holds(piece, PEER) for piece in rest)
    assert not any(net.a.holds(piece, PEER + 1) for piece in rest), "another peer's pieces are another datagram's"


@FAMILIES
def test_answers_to_pings_and_errors_about_ours_are_held(ours, theirs):
    net = Net()
    net.a.ping(theirs, 0.0)
    port = net.a.bind_udp(1000)
    port.send(b"x", (theirs, 9), 0.0)
    [(_, packets)] = net.a.transmit(0.0)
    net.b.receive([((1, True), packets)], 0.0)
    answers = from_b(net)
    assert len(answers) == 2
    assert all(net.a.holds(packet, PEER) for packet in answers)
    assert not net.a.holds(icmp.echo_request(theirs, ours, 7, b""), PEER), "whoever shares our addresses answers"


@pytest.mark.parametrize("data", [b"", b"\x45", bytes(20), b"\x60" + bytes(39), bytes([0x45]) + bytes(60)])
def test_what_is_no_packet_is_not_held(data):
    assert not Net().a.holds(data, PEER)
