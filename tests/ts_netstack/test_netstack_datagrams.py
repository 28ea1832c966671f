"""UDP, ICMP and fragments between two stacks, and everything malformed that is not TCP."""

from __future__ import annotations

import errno
import random
import sys

import dpkt
import pytest
from netsim import A6, B6, A, B, Net

from ts_base.ip_headers import IP6, SYN, ip4_header, ip_packet
from ts_netstack import icmp
from ts_netstack.arrivals import USUAL
from ts_netstack.fragments import FRAGMENTS_LIMIT, HIGH_WATER, cut
from ts_netstack.icmp_demux import ERROR_BURST
from ts_netstack.stack import Stack
from ts_netstack.udp import QUEUE_BYTES, QUEUE_DATAGRAMS
from ts_netstack.wire import IP6_FRAGMENT_FIXED, parse_packet_untrusted, tcp_packet, udp_payload

FAMILIES = pytest.mark.parametrize(("ours", "theirs"), [(A, B), (A6, B6)], ids=["v4", "v6"])


@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 1232, 1233, 1252, 1253, 8192, 65000])
def test_datagrams_arrive_whole(ours, theirs, size):
    net = Net(delay=0.01)
    left, right = net.a.bind_udp(1000), net.b.bind_udp(2000)
    data = random.Random(size).randbytes(size)
    left.send(data, (theirs, 2000), net.now)
    net.run(1)
    assert right in net.b.take_messages()
    assert right.receive() == (data, (ours, 1000))
    assert right.receive() is None
    assert not net.b.drops


@FAMILIES
def test_every_packet_has_right_checksums_by_another_parser(ours, theirs):
    net = Net()
    port = net.a.bind_udp(1000)
    for size in (0, 1, 2, 7, 100, 1200):
        port.send(b"\xff" * size, (theirs, 2000), 0.0)
    net.a.connect((theirs, 80), 0.0)
    net.a.ping(theirs, 0.0, 33)
    packets = [packet for _, run in net.a.transmit(0.0) for packet in run]
    assert len(packets) == 8
    for raw in packets:
        layer = dpkt.ip.IP if len(ours) == 4 else dpkt.ip6.IP6
        parsed = layer(raw)
        parsed.data.sum = 0
        if len(ours) == 4:
            parsed.sum = 0
        assert bytes(parsed) == raw


@FAMILIES
def test_unreachable_reaches_a_connected_port(ours, theirs):
    net = Net(delay=0.01)
    port, stranger = net.a.bind_udp(), net.a.bind_udp()
    port.connect((theirs, 9))
    port.send(b"anybody?", (theirs, 9), 0.0)
    stranger.send(b"nobody?", (theirs, 9), 0.0)
    net.run(1)
    assert port.error == "unreachable"
    assert stranger.error is None
    assert net.b.drops["udp.no_port"] == 2


def test_a_connected_port_hears_only_its_peer():
    net = Net()
    port, right, wrong = net.a.bind_udp(7), net.b.bind_udp(8), net.b.bind_udp(9)
    port.connect((B, 8))
    wrong.send(b"spam", (A, 7), 0.0)
    right.send(b"ham", (A, 7), 0.0)
    net.run(1)
    assert port.receive() == (b"ham", (B, 8))
    assert port.receive() is None
    assert port.dropped == 1


def test_binding_twice_is_address_in_use_until_closed():
    net = Net()
    port = net.a.bind_udp(53)
    for host in (None, A):
        with pytest.raises(OSError) as problem:
            net.a.bind_udp(53, host)
        assert problem.value.errno == errno.EADDRINUSE
    port.close()
    net.a.bind_udp(53, A)
    with pytest.raises(OSError) as problem:
        net.a.bind_udp(54, B)
    assert problem.value.errno == errno.EADDRNOTAVAIL


def test_the_queue_of_a_port_is_bounded_in_both_measures():
    net = Net()
    port, small = net.b.bind_udp(1), net.b.bind_udp(2)
    sender = net.a.bind_udp()
    for _ in range(QUEUE_BYTES // 1000 + 50):
        sender.send(bytes(1000), (B, 1), 0.0)
    for _ in range(QUEUE_DATAGRAMS + 20):
        sender.send(b"", (B, 2), 0.0)
    net.run(1)
    assert port.dropped == 50
    assert small.dropped == 20
    assert net.b.drops["udp.queue_full"] == 70


@FAMILIES
@pytest.mark.parametrize("size", [0, 56, 1400, 20_000])
def test_ping_is_answered(ours, theirs, size):
    net = Net(delay=0.02)
    ping = net.a.ping(theirs, 0.0, size)
    net.run(1)
    assert ping.round_trip == pytest.approx(0.04, abs=0.001)
    assert net.a.take_messages() == [ping]


def test_ping_of_ourselves_is_answered_inside():
    net = Net()
    ping = net.a.ping(A, 0.0)
    assert net.a.transmit(0.0) == []
    assert ping.round_trip == 0.0


def test_ping_without_answer_times_out():
    net = Net()
    net.to_b.up = False
    ping = net.a.ping(B, 0.0, timeout=3.0)
    net.run(2.9)
    assert not ping.is_done
    net.run(0.2)
    assert ping.error == "timed out"


def test_a_reply_nobody_asked_for_is_counted():
    net = Net()
    net.a.receive([(USUAL, [icmp.message(B, A, icmp.ECHO_REPLY4, 0, 77, b"")])], 0.0)
    assert net.a.drops["icmp.echo_reply_unasked"] == 1


def test_a_fragment_costs_no_more_beside_a_thousand_others():
    def calls_for_one(net: Net, ident: int) -> int:
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            net.b.receive([(USUAL, [piece(0, 16, True, ident)])], 0.0)
        finally:
            sys.setprofile(None)
        return calls

    net = Net()
    calls_for_one(net, 1)
    beside_one = calls_for_one(net, 2)
    net.b.receive([(USUAL, [piece(0, 16, True, ident) for ident in range(3, 1000)])], 0.0)
    assert net.b.statistics().fragments.assemblies == 999
    assert calls_for_one(net, 1001) <= beside_one


def test_echo_and_errors_are_rate_limited():
    net = Net()
    net.b.receive([(USUAL, [icmp.echo_request(A, B, index, b"") for index in range(200)])], 0.0)
    assert net.b.drops["icmp.echo_limit"] == 150
    net.b.transmit(0.0)
    stray = ip_packet(A, B, 17, udp_payload((A, 1), (B, 2), b"x"))
    net.b.receive([(USUAL, [stray] * 200)], 0.0)
    assert sum(len(run) for _, run in net.b.transmit(0.0)) == ERROR_BURST


def test_errors_are_never_answered_with_errors():
    net = Net()
    stray = ip_packet(B, A, 17, udp_payload((B, 1), (A, 2), b"x"))
    net.b.receive([(USUAL, [icmp.port_unreachable(stray, A, B)])], 0.0)
    assert net.b.transmit(0.0) == []
    assert net.b.drops["icmp.no_port"] == 1


def too_big(inner: bytes, mtu: int, v6: bool) -> bytes:
    if v6:
        return icmp.message(B6, A6, icmp.TOO_BIG6, 0, mtu, inner[:500])
    return icmp.message(B, A, icmp.UNREACHABLE4, icmp.FRAGMENTATION_NEEDED4, mtu, inner[:28])


@pytest.mark.parametrize("v6", [False, True])
def test_packet_too_big_shrinks_segments_and_resends(v6):
    net = Net(delay=0.01, mtu=1500)
    client, server = net.pair(v6=v6)
    client.write(bytes(50_000))
    packets = [packet for _, run in net.a.transmit(net.now) for packet in run]
    before = client.mss
    net.a.receive([(USUAL, [too_big(packets[0], 1300, v6)])], net.now)
    assert client.mss == before - 200
    resent = [packet for _, run in net.a.transmit(net.now) for packet in run]
    assert resent
    assert max(map(len, resent)) <= 1300
    net.b.receive([(USUAL, resent)], net.now)
    assert server.unread > 0
    again = net.a.connect((B6 if v6 else B, 99), net.now)
    assert again.statistics().path_mss == 1300 - (60 if v6 else 40)
    net.a.path_changed(B6 if v6 else B)
    assert client.mss == before


def test_packet_too_big_for_wild_sequence_is_ignored():
    net = Net(delay=0.01, mtu=1500)
    client, _ = net.pair()
    inner = tcp_packet(client.local, client.remote, 12345, 0, 16, 0, b"", b"x" * 100)
    net.a.receive([(USUAL, [too_big(inner, 600, False)])], net.now)
    assert net.a.drops["icmp.wild_sequence"] == 1
    assert client.mss == 1448


def test_packet_too_big_has_a_floor():
    net = Net(delay=0.01, mtu=1500)
    client, _ = net.pair()
    client.write(b"x" * 1000)
    inner = net.a.transmit(net.now)[0][1][0]
    net.a.receive([(USUAL, [too_big(inner, 0, False)])], net.now)
    assert client.mss == icmp.MINIMUM_MTU4 - 40 - 12


def test_unreachable_fails_a_connection_only_while_it_opens():
    net = Net()
    client = net.a.connect((B, 80), 0.0)
    syn = net.a.transmit(0.0)[0][1][0]
    net.a.receive([(USUAL, [icmp.message(B, A, icmp.UNREACHABLE4, 1, 0, syn[:28])])], 0.0)
    assert client.error is not None
    net = Net()
    client, _ = net.pair()
    client.write(b"x")
    data = net.a.transmit(net.now)[0][1][0]
    net.a.receive([(USUAL, [icmp.message(B, A, icmp.UNREACHABLE4, 1, 0, data[:28])])], net.now)
    assert client.error is None


def fragments(size: int = 4000, ident: int = 9) -> list[bytes]:
    return cut(A, B, 17, udp_payload((A, 1), (B, 2), bytes(size)), 1280, ident)


def test_fragments_expire():
    net = Net()
    net.b.receive([(USUAL, fragments()[:2])], 0.0)
    assert net.b.statistics().fragments.assemblies == 1
    net.b.transmit(0.0)
    assert net.b.next_timer() == 30.0
    net.b.handle_timer(30.0)
    assert net.b.statistics().fragments.assemblies == 0
    assert net.b.drops["ip.fragment_expired"] == 1


def piece(offset: int, size: int, more: bool, ident: int = 5) -> bytes:
    return ip4_header(A, B, 17, size, ident, offset // 8 | (0x2000 if more else 0)) + bytes(size)


@pytest.mark.parametrize(
    ("packets", "counter"),
    [
        ([piece(0, 16, True), piece(8, 16, True)], "ip.fragment_overlap"),
        ([piece(0, 16, True), piece(8, 16, True), piece(64, 16, True)], "ip.fragment_of_spoilt"),
        ([piece(16, 16, False), piece(24, 16, True)], "ip.fragment_overlap"),
        ([piece(16, 16, False), piece(32, 16, False)], "ip.fragment_overlap"),
        ([piece(0, 16, True), piece(0, 16, True)], "ip.fragment_duplicate"),
        ([piece(0, 3, True)], "ip.fragment_tiny"),
        ([piece(8, 0, False)], "ip.fragment_tiny"),
        ([piece(0, 12, True)], "ip.fragment_misaligned"),
        ([piece(65528, 16, False)], "ip.fragment_oversized"),
        ([piece(8 * index, 8, True) for index in range(FRAGMENTS_LIMIT + 1)], "ip.fragment_count"),
    ],
)
def test_bad_fragments_are_counted_and_never_delivered(packets, counter):
    net = Net()
    port = net.b.bind_udp(0)
    net.b.receive([(USUAL, packets)], 0.0)
    assert net.b.drops[counter] == 1
    assert port.receive() is None


def test_fragment_memory_is_bounded():
    net = Net()
    for ident in range(5000):
        net.b.receive([(USUAL, [piece(0, 1200, True, ident)])], 0.0)
        assert net.b.statistics().fragments.cost <= HIGH_WATER + 4096
    assert net.b.drops["ip.fragment_memory"] > 0


def ip6_with(kind: int, body: bytes) -> bytes:
    return IP6.pack(0x60000000, len(body), kind, 64, A6, B6) + body


UDP6 = udp_payload((A6, 1), (B6, 2), b"inside")
SYN4 = tcp_packet((A, 1), (B, 2), 5, 0, SYN, 100)
BAD = [
    (b"", "ip.runt"),
    (b"\x45" * 3, "ip.runt"),
    (SYN4[:12], "ip.runt"),  # cut where the addresses would begin
    (b"\x55" + bytes(40), "ip.version"),
    (b"\x00" * 40, "ip.version"),
    (b"\x60" + bytes(30), "ip.runt"),
    (b"\x44" + SYN4[1:], "ip.header_length"),
    (SYN4[:30], "ip.truncated"),
    (SYN4[:2] + b"\xff\xff" + SYN4[4:], "ip.truncated"),
    (b"\x46\0\0\x2c" + SYN4[4:20] + b"\x83\x04\x04\x00" + SYN4[20:], "ip.source_routed"),
    (b"\x46\0\0\x2c" + SYN4[4:20] + b"\x89\x04\x04\x00" + SYN4[20:], "ip.source_routed"),
    (ip4_header(b"\x7f\0\0\1", B, 17, 8) + bytes(8), "ip.martian_source"),
    (ip4_header(b"\xe0\0\0\1", B, 17, 8) + bytes(8), "ip.martian_source"),
    (ip4_header(b"\xff\xff\xff\xff", B, 17, 8) + bytes(8), "ip.martian_source"),
    (ip4_header(bytes(4), B, 17, 8) + bytes(8), "ip.martian_source"),
    (ip4_header(A, b"\1\2\3\4", 17, 8) + bytes(8), "ip.not_our_address"),
    (ip4_header(A, B, 6, 12) + bytes(12), "tcp.truncated"),
    (tcp_packet((A, 1), (B, 2), 5, 0, SYN, 100)[:32] + b"\x40" + SYN4[33:], "tcp.data_offset"),
    (tcp_packet((A, 1), (B, 2), 5, 0, SYN, 100)[:32] + b"\xf0" + SYN4[33:], "tcp.data_offset"),
    (tcp_packet((A, 0), (B, 2), 5, 0, SYN, 100), "tcp.port_zero"),
    (ip4_header(A, B, 17, 4) + bytes(4), "udp.truncated"),
    (ip4_header(A, B, 17, 8) + b"\0\1\0\2\0\x20\0\0", "udp.length"),
    (ip4_header(A, B, 17, 8) + b"\0\1\0\2\0\x07\0\0", "udp.length"),
    (ip4_header(A, B, 17, 8) + b"\0\1\0\0\0\x08\0\0", "udp.port_zero"),
    (ip4_header(A, B, 1, 4) + bytes(4), "icmp.truncated"),
    (icmp.echo_request(A, B, 1, b"x")[:-1] + b"y", "icmp.checksum"),
    (icmp.message(A, B, 13, 0, 0, b""), "icmp.ignored"),
    (icmp.message(A, B, 3, 3, 0, b"\x45short"), "icmp.quote"),
    (icmp.message(A, B, 3, 3, 0, SYN4), "icmp.not_ours"),
    (ip4_header(A, B, 200, 4) + bytes(4), "ip.unknown_protocol"),
    (ip6_with(0, b"\x11\xff" + bytes(6)), "ip.extension"),
    (ip6_with(60, b"\x11"), "ip.extension"),
    (ip6_with(43, b"\x11\x00\x00\x01" + bytes(4) + UDP6), "ip.source_routed"),
    (ip6_with(60, (b"\x3c\x00" + bytes(6)) * 9 + UDP6), "ip.extension"),
    (ip6_with(59, b""), "ip.unknown_protocol"),
]


@pytest.mark.parametrize(("packet", "counter"), BAD, ids=range(len(BAD)))
def test_malformed_packets_have_a_named_counter(packet, counter):
    net = Net()
    net.b.receive([(USUAL, [packet])], 0.0)
    assert net.b.drops == {counter: 1}
    net.b.transmit(0.0)


@pytest.mark.parametrize(("place", "counter"), [(8, "ip.checksum"), (25, "tcp.checksum")], ids=["header", "segment"])
def test_wrong_checksums_are_dropped_where_nobody_vouches(place, counter):
    net = Net(verify=True)
    net.b.listen(2)
    net.b.receive([(USUAL, [SYN4[:place] + bytes([SYN4[place] ^ 4]) + SYN4[place + 1 :]])], 0.0)
    assert net.b.drops[counter] == 1


@pytest.mark.parametrize(
    "body",
    [
        UDP6,
        b"\x11\x00" + bytes(6) + UDP6,
        b"\x3c\x00" + bytes(6) + b"\x11\x00" + bytes(6) + UDP6,
        IP6_FRAGMENT_FIXED.pack(17, 0, 0, 7) + UDP6,
    ],
    ids=["plain", "hop-by-hop", "two headers", "atomic fragment"],
)
def test_extension_headers_are_walked(body):
    net = Net()
    port = net.b.bind_udp(2)
    kinds = {len(UDP6): 17, len(UDP6) + 16: 0}
    kind = kinds.get(len(body), 44 if body[0] == 17 and body[4:8] == b"\0\0\0\x07" else 0)
    net.b.receive([(USUAL, [ip6_with(kind, body)])], 0.0)
    assert port.receive() == (b"inside", (A6, 1))


def test_ip_options_are_skipped_for_tcp():
    net = Net()
    listener = net.b.listen(2)
    net.b.receive([(USUAL, [b"\x46\0\0\x2c" + SYN4[4:20] + b"\x01\x01\x01\x00" + SYN4[20:]])], 0.0)
    answer = parse_packet_untrusted(net.b.transmit(0.0)[0][1][0])
    assert answer.payload[13] == 0x12
    assert listener.accept() is None


def test_an_absurd_mtu_is_our_misuse():
    with pytest.raises(ValueError, match="MTU"):
        Stack(entropy=random.Random(1).randbytes, mtu=10)
