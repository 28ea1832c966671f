"""Opening a connection: retransmission, refusal, simultaneous open, what a SYN agrees on, floods and cookies."""

from __future__ import annotations

import struct

import pytest
from netstack_scripts import PEER, US, Script, stamps

from ts_base.ip_headers import ACK, FIN, RST, SYN
from ts_netstack.arrivals import USUAL
from ts_netstack.tcp import ConnectionProblem
from ts_netstack.tcp_listen import HALF_OPEN_LIMIT, HALF_OPEN_LIMIT_PER_HOST
from ts_netstack.wire import parse_packet_untrusted, parse_segment_untrusted, tcp_packet


@pytest.fixture
def conn():
    return Script()


def test_syn_is_retransmitted_with_doubling_and_then_given_up(conn):
    connection = conn.connection = conn.stack.connect((PEER, 5000), 0.0)
    for at in (0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0):
        conn.expect(at, SYN, seq=0)
    conn.quiet_until(126.9)
    conn.quiet_until(127.0)
    assert connection.error is ConnectionProblem.TIMED_OUT
    assert conn.is_asleep()


def test_syn_carries_the_mss_of_the_tunnel_and_all_offers(conn):
    conn.stack.connect((PEER, 5000), 0.0)
    options = conn.expect(0.0, SYN).options
    assert options.mss == 1240
    assert options.scale == 8
    assert options.sack_permitted
    assert options.stamps is not None


def test_syn_ack_is_retransmitted_after_one_second(conn):
    conn.stack.listen(80)
    conn.segment(0.0, SYN)
    conn.expect(0.0, SYN | ACK, ack=1)
    conn.quiet_until(0.999)
    for at in (1.0, 3.0, 7.0, 15.0, 31.0):
        conn.expect(at, SYN | ACK, ack=1)
    conn.quiet_until(100.0)
    assert conn.drops["tcp.handshake_timeout"] == 1
    assert conn.is_asleep()


def test_a_repeated_syn_is_answered_again(conn):
    conn.stack.listen(80)
    for at in (0.0, 0.5):
        conn.segment(at, SYN)
        conn.expect(at, SYN | ACK, seq=0, ack=1)


def test_reset_in_answer_to_syn_refuses(conn):
    connection = conn.stack.connect((PEER, 5000), 0.0)
    conn.expect(0.0, SYN)
    conn.segment(0.1, RST | ACK, ack=77)
    assert connection.error is None
    conn.segment(0.1, RST, seq=0)
    assert conn.drops["tcp.blind_reset"] == 1
    conn.flush()
    conn.segment(0.2, RST | ACK, ack=1)
    assert connection.error is ConnectionProblem.REFUSED
    assert connection.readable


def test_syn_ack_for_another_syn_is_reset(conn):
    connection = conn.stack.connect((PEER, 5000), 0.0)
    conn.expect(0.0, SYN)
    conn.segment(0.1, SYN | ACK, ack=900)
    conn.expect(0.1, RST, seq=900)
    assert connection.error is None
    assert conn.drops["tcp.handshake_ack"] == 1


def test_simultaneous_open_establishes(conn):
    conn.connection = conn.stack.connect((PEER, 5000), 0.0)
    conn.expect(0.0, SYN, seq=0)
    conn.segment(0.1, SYN, seq=0)
    conn.expect(0.1, SYN | ACK, seq=0, ack=1)
    assert conn.state == "SYN-RECEIVED"
    conn.segment(0.2, SYN | ACK, seq=0, ack=1)
    assert conn.state == "ESTABLISHED"
    conn.connection.write(b"hello")
    conn.expect(0.2, ACK, seq=1, ack=1, data=b"hello")


def test_data_with_the_last_handshake_segment_is_delivered(conn):
    listener = conn.stack.listen(80)
    conn.segment(0.0, SYN)
    conn.expect(0.0, SYN | ACK)
    conn.segment(0.0, ACK | FIN, seq=1, ack=1, data=b"all in one")
    connection = listener.accept()
    assert connection.read(100) == b"all in one"
    assert connection.at_eof
    conn.expect(0.0, ACK, ack=12)


def test_data_in_syn_is_left_for_later(conn):
    conn.stack.listen(80)
    conn.segment(0.0, SYN, data=b"early")
    conn.expect(0.0, SYN | ACK, ack=1)
    assert conn.drops["tcp.data_in_syn"] == 1


def test_reset_of_a_half_open_connection_forgets_it(conn):
    conn.stack.listen(80)
    conn.segment(0.0, SYN)
    conn.expect(0.0, SYN | ACK)
    conn.segment(0.1, RST, seq=5)
    assert conn.drops["tcp.blind_reset"] == 1
    conn.segment(0.1, RST, seq=1)
    conn.quiet_until(50.0)
    assert conn.is_asleep()


def test_wrong_ack_of_a_syn_ack_is_reset_and_the_record_kept(conn):
    listener = conn.stack.listen(80)
    conn.segment(0.0, SYN)
    conn.expect(0.0, SYN | ACK)
    conn.segment(0.1, ACK, seq=1, ack=5000)
    conn.expect(0.1, RST, seq=5000)
    conn.segment(0.2, ACK, seq=1, ack=1)
    assert listener.accept() is not None


def test_full_accept_queue_drops_the_ack_and_never_resets():
    conn = Script()
    listener = conn.stack.listen(80, backlog=1)
    for port in (5000, 5001):
        conn.peer_port = port
        conn.segment(0.0, SYN)
        conn.expect(0.0, SYN | ACK)
        conn.segment(0.0, ACK, seq=1, ack=1)
    assert conn.drops["tcp.accept_queue_full"] == 1
    assert listener.accept() is not None
    conn.expect(1.0, SYN | ACK)
    conn.segment(1.0, ACK, seq=1, ack=1)
    assert listener.accept() is not None


def accepted_from(conn: Script, hosts: list[bytes], first_port: int, each: int) -> None:
    """Each of `hosts` completes `each` handshakes, in bursts that the tables for half-open ones hold."""
    for host in hosts:
        for at in range(first_port, first_port + each, 64):
            ports = range(at, min(at + 64, first_port + each))
            conn.stack.receive([(USUAL, [tcp_packet((host, port), (US, 80), 7, 0, SYN, 65535) for port in ports])], 0.0)
            answers = [
                parse_segment_untrusted(parse_packet_untrusted(raw).payload)
                for _, run in conn.stack.transmit(0.0)
                for raw in run
            ]
            acks = [tcp_packet((host, one.destination_port), (US, 80), 8, one.seq + 1, ACK, 65535) for one in answers]
            conn.stack.receive([(USUAL, acks)], 0.0)


def test_one_peer_fills_no_more_than_half_of_an_accept_queue_and_the_others_are_next():
    conn = Script()
    listener = conn.stack.listen(80, backlog=100)
    flooder, others = bytes([100, 65, 0, 1]), [bytes([100, 65, 1, number]) for number in range(3)]
    accepted_from(conn, [flooder], 1000, 300)
    assert listener.waiting == 50
    assert conn.drops["tcp.accept_share_full"] >= 250
    accepted_from(conn, others, 1000, 2)
    accepted_from(conn, [flooder], 2000, 60)  # who floods tries again before anybody is accepted
    taken = [connection.remote[0] for _ in range(8) if (connection := listener.accept()) is not None]
    assert [taken.count(host) for host in others] == [2, 2, 2]
    assert taken.count(flooder) == 2


def test_many_peers_together_may_fill_an_accept_queue():
    conn = Script()
    listener = conn.stack.listen(80, backlog=10)
    accepted_from(conn, [bytes([100, 65, 2, number]) for number in range(12)], 1000, 1)
    assert listener.waiting == 10
    assert conn.drops["tcp.accept_queue_full"] == 2
    assert [listener.accept() is not None for _ in range(11)] == [True] * 10 + [False]
    assert not listener.readable


def test_segment_for_nobody_is_reset_as_rfc_9293_says(conn):
    conn.iss = 0
    conn.segment(0.0, SYN)
    conn.expect(0.0, RST | ACK, seq=0, ack=1)
    conn.iss = 0
    conn.segment(0.1, ACK, seq=5, ack=99, data=b"abc")
    conn.expect(0.1, RST, seq=99)
    conn.segment(0.2, RST, seq=5)
    conn.quiet_until(1.0)
    assert conn.drops["tcp.no_connection"] == 3


def test_closing_a_listener_resets_what_nobody_accepted(conn):
    listener = conn.stack.listen(80)
    conn.segment(0.0, SYN)
    conn.expect(0.0, SYN | ACK)
    conn.segment(0.0, ACK, seq=1, ack=1)
    listener.close()
    conn.expect(0.0, RST | ACK, seq=1, ack=1)
    assert conn.stack.connections == 0


def flood_syn(index: int) -> bytes:
    peer = bytes([100, 65]) + index.to_bytes(2, "big")
    options = struct.pack(">BBH", 2, 4, 1240) + b"\x01\x03\x03\x07\x04\x02\x01\x01" + stamps(index, 0)
    return tcp_packet((peer, 1024), (US, 80), index, 0, SYN, 65535, options)


def test_ten_thousand_syns_leave_memory_bounded_and_others_working(conn):
    connection = conn.accept()
    conn.flush()
    for at in range(0, 10_000, 500):
        conn.stack.receive([(USUAL, [flood_syn(index) for index in range(at, at + 500)])], 0.1)
        conn.stack.transmit(0.1)
    assert conn.stack.statistics().tcp.half_open == HALF_OPEN_LIMIT
    assert conn.drops["tcp.syn_cookie"] == 10_000 - HALF_OPEN_LIMIT
    conn.now = 0.1
    conn.segment(0.1, ACK, seq=1, ack=1, data=b"still here")
    assert connection.read(100) == b"still here"


def test_one_host_may_not_fill_the_table(conn):
    conn.stack.listen(80)
    for port in range(2000, 2000 + 400):
        conn.peer_port = port
        conn.segment(0.0, SYN)
    assert conn.stack.statistics().tcp.half_open == HALF_OPEN_LIMIT_PER_HOST


@pytest.mark.parametrize("stamped", [True, False])
def test_a_cookie_opens_a_connection_with_its_options(stamped):
    conn = Script(stamped=stamped)
    listener = conn.stack.listen(80)
    conn.stack.receive([(USUAL, [flood_syn(index) for index in range(HALF_OPEN_LIMIT)])], 0.0)
    conn.stack.transmit(0.0)
    conn.segment(0.0, SYN)
    conn.expect(0.0, SYN | ACK, seq=0, ack=1)
    before = conn.stack.statistics().tcp.half_open
    conn.segment(30.0, ACK, seq=1, ack=1, data=b"through the flood")
    connection = listener.accept()
    assert connection.read(100) == b"through the flood"
    assert conn.stack.statistics().tcp.half_open <= before
    assert connection.mss == (1228 if stamped else 1240)
    assert connection.statistics().selective is stamped
    assert connection.statistics().peer_shift == (7 if stamped else 0)


def test_an_invented_cookie_opens_nothing(conn):
    listener = conn.stack.listen(80)
    conn.stack.receive([(USUAL, [flood_syn(index) for index in range(HALF_OPEN_LIMIT + 1)])], 0.0)
    conn.stack.transmit(0.0)
    conn.iss = 0x12345678
    conn.segment(0.0, ACK, seq=1, ack=1)
    conn.expect(0.0, RST)
    assert listener.accept() is None
    assert conn.drops["tcp.bad_cookie"] == 1


def test_two_hundred_syns_at_once_are_all_accepted():
    conn = Script()
    listener = conn.stack.listen(80)
    syns = []
    for index in range(200):
        peer = bytes([100, 66, 0, index])
        syns.append(tcp_packet((peer, 1024), (US, 80), index, 0, SYN, 65535))
    conn.stack.receive([(USUAL, syns)], 0.0)
    answers = []
    for (destination, _), packets in conn.stack.transmit(0.0):
        segment = parse_segment_untrusted(parse_packet_untrusted(packets[0]).payload)
        answers.append(tcp_packet((destination, 1024), (US, 80), segment.ack, segment.seq + 1, ACK, 65535))
    conn.stack.receive([(USUAL, answers)], 0.1)
    assert sum(listener.accept() is not None for _ in range(200)) == 200
