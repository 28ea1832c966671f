"""An open connection: acknowledgement policy, windows, RFC 5961 challenges, PAWS, urgent data, tiny segments."""

from __future__ import annotations

import random

import pytest
from netstack_scripts import Script, stamps

from ts_base.ip_headers import ACK, FIN, PSH, RST, SYN, URG
from ts_netstack.tcp import ConnectionProblem
from ts_netstack.tcp_inbound import INITIAL_RECEIVE


@pytest.fixture
def conn():
    script = Script()
    script.accept()
    return script


def test_first_segments_are_acknowledged_at_once(conn):
    conn.segment(0.1, ACK, seq=1, ack=1, data=b"abc")
    conn.expect(0.1, ACK, ack=4)


def test_a_lone_segment_is_acknowledged_after_the_delay(conn):
    seq = conn.skip_quick_acks()
    conn.segment(1.0, ACK, seq=seq, ack=1, data=b"x" * 1228)
    conn.quiet_until(1.039)
    conn.expect(1.04, ACK, ack=seq + 1228)


def test_a_second_segment_is_acknowledged_at_once(conn):
    seq = conn.skip_quick_acks()
    conn.segment(1.0, ACK, seq=seq, ack=1, data=b"x" * 1228)
    conn.segment(1.01, ACK, seq=seq + 1228, ack=1, data=b"y" * 1228)
    conn.expect(1.01, ACK, ack=seq + 2456)


def test_a_burst_is_acknowledged_once(conn):
    conn.advance(1.0)
    run = [conn.packet(ACK, 1 + 1228 * index, 1, b"z" * 1228) for index in range(40)]
    conn.stack.receive(run, 1.0)
    conn.expect(1.0, ACK, ack=1 + 40 * 1228)
    conn.quiet_until(5.0)
    assert conn.connection.read(1 << 20) == b"z" * 1228 * 40


def test_a_reply_carries_the_acknowledgement(conn):
    seq = conn.skip_quick_acks()
    conn.segment(1.0, ACK, seq=seq, ack=1, data=b"question")
    conn.connection.write(b"answer")
    conn.expect(1.0, ACK | PSH, seq=1, ack=seq + 8, data=b"answer")
    conn.segment(1.1, ACK, seq=seq + 8, ack=7)
    conn.quiet_until(5.0)


def test_out_of_order_data_is_reported_in_sack_blocks_newest_first(conn):
    conn.segment(0.1, ACK, seq=11, ack=1, data=b"b" * 10)
    assert conn.sacked(conn.expect(0.1, ACK, ack=1)) == [(11, 21)]
    conn.segment(0.2, ACK, seq=31, ack=1, data=b"d" * 10)
    assert conn.sacked(conn.expect(0.2, ACK, ack=1)) == [(31, 41), (11, 21)]
    conn.segment(0.3, ACK, seq=1, ack=1, data=b"a" * 10)
    assert conn.sacked(conn.expect(0.3, ACK, ack=21)) == [(31, 41)]
    conn.segment(0.4, ACK, seq=21, ack=1, data=b"c" * 10)
    assert conn.sacked(conn.expect(0.4, ACK, ack=41)) == []
    assert conn.connection.read(100) == b"a" * 10 + b"b" * 10 + b"c" * 10 + b"d" * 10


def test_a_burst_with_many_holes_names_every_island(conn):
    conn.advance(0.1)
    run = [conn.packet(ACK, 1 + 1000 * index, 1, b"h" * 300) for index in range(1, 9)]
    conn.receive(run)
    named = {block for segment in conn.flush() for block in conn.sacked(segment)}
    assert named == {(1 + 1000 * index, 301 + 1000 * index) for index in range(1, 9)}


def test_a_duplicate_is_reported_as_such(conn):
    conn.segment(0.1, ACK, seq=1, ack=1, data=b"abcdef")
    conn.expect(0.1, ACK, ack=7)
    conn.segment(0.2, ACK, seq=1, ack=1, data=b"abcdef")
    assert conn.sacked(conn.expect(0.2, ACK, ack=7)) == [(1, 7)]
    assert conn.drops["tcp.duplicate"] == 1
    assert conn.connection.read(100) == b"abcdef"


def test_partly_old_data_is_trimmed(conn):
    conn.segment(0.1, ACK, seq=1, ack=1, data=b"abcdef")
    conn.segment(0.2, ACK, seq=3, ack=1, data=b"cdefGHI")
    assert conn.connection.read(100) == b"abcdefGHI"


def test_thousands_of_one_byte_segments_arrive_whole_and_cheaply(conn):
    text = random.Random(1).randbytes(5000)
    for at in range(0, len(text), 50):
        run = [conn.packet(ACK, 1 + index, 1, text[index : index + 1]) for index in range(at, at + 50)]
        conn.receive(run)
    assert conn.statistics.unread_pieces < 10
    assert conn.connection.read(10_000) == text


def test_urgent_data_is_delivered_in_line(conn):
    conn.segment(0.1, ACK | URG, seq=1, ack=1, data=b"!")
    assert conn.connection.read(10) == b"!"
    assert conn.drops["tcp.urgent"] == 1


def test_exact_reset_ends_the_connection(conn):
    conn.segment(0.1, RST, seq=1)
    assert conn.connection.error is ConnectionProblem.RESET
    assert conn.connection.readable
    assert conn.connection.write(b"x") == 0
    conn.quiet_until(100.0)
    assert conn.stack.connections == 0


def test_reset_elsewhere_in_the_window_is_challenged(conn):
    conn.segment(0.1, RST, seq=500)
    conn.expect(0.1, ACK, seq=1, ack=1)
    assert conn.drops["tcp.reset_in_window"] == 1
    conn.segment(0.2, RST, seq=501)
    conn.quiet_until(0.3)
    assert conn.drops["tcp.challenge_limit"] == 1
    assert conn.state == "ESTABLISHED"


def test_reset_outside_the_window_is_ignored(conn):
    conn.segment(0.1, RST, seq=1 << 30)
    conn.segment(0.1, RST, seq=-5)
    conn.quiet_until(1.0)
    assert conn.drops["tcp.reset_out_of_window"] == 2


def test_syn_in_the_window_is_challenged(conn):
    conn.segment(0.1, SYN, seq=100)
    conn.expect(0.1, ACK, seq=1, ack=1)
    assert conn.drops["tcp.syn_in_window"] == 1
    assert conn.state == "ESTABLISHED"


@pytest.mark.parametrize("ack", [2, 5000, 1 << 31, -(9 << 20), -(1 << 30)])
def test_wild_acknowledgements_are_challenged(conn, ack):
    conn.segment(0.1, ACK, seq=1, ack=ack, data=b"x")
    conn.expect(0.1, ACK, seq=1, ack=1)
    assert conn.drops["tcp.wild_ack"] == 1
    assert conn.connection.read(10) == b""


@pytest.mark.parametrize("seq", [1 << 20, 1 << 30, -1000, -(1 << 30)])
def test_wild_sequence_numbers_are_answered_and_dropped(conn, seq):
    conn.segment(0.1, ACK, seq=seq, ack=1, data=b"wild")
    conn.expect(0.1, ACK, seq=1, ack=1)
    assert conn.connection.read(10) == b""
    assert conn.drops["tcp.out_of_window"] + conn.drops["tcp.duplicate"] == 1


def test_a_segment_without_ack_is_dropped(conn):
    conn.segment(0.1, PSH, seq=1, data=b"x")
    assert conn.drops["tcp.no_ack"] == 1
    assert not conn.connection.unread


def test_wild_sack_blocks_are_ignored(conn):
    conn.connection.write(b"x" * 1000)
    conn.flush()
    conn.segment(0.01, ACK, seq=1, ack=1, options=conn.sack_option((500_000, 600_000), (900, 10)))
    assert conn.drops["tcp.wild_sack"] == 1
    assert conn.statistics.sacked == 0


def test_old_timestamps_are_dropped_and_acknowledged(conn):
    conn.segment(20.0, ACK, seq=1, ack=1, data=b"new")
    conn.flush()
    conn.segment(20.1, ACK, seq=4, ack=1, data=b"old", stamp=2000)
    conn.expect(20.1, ACK, ack=4)
    assert conn.drops["tcp.paws"] == 1
    assert conn.connection.read(10) == b"new"


def test_old_timestamps_within_a_burst_acknowledge_nothing(conn):
    conn.connection.write(b"x" * 1000)
    conn.flush()
    conn.advance(20.0)
    run = [conn.packet(ACK, 1, 1, b"new"), conn.packet(ACK, 4, 1001, b"old", stamp=10)]
    conn.stack.receive(run, 20.0)
    assert conn.drops["tcp.paws"] == 1
    assert conn.connection.unsent == 1000
    assert conn.connection.read(10) == b"new"


def test_timestamps_idle_for_weeks_are_believed_again(conn):
    conn.segment(20.0, ACK, seq=1, ack=1, data=b"new")
    conn.advance(20.0 + 25 * 86400)
    conn.segment(conn.now, ACK, seq=4, ack=1, data=b"older stamp", stamp=2000)
    assert conn.connection.read(100) == b"newolder stamp"


def test_our_stamps_echo_the_earliest_unacknowledged_segment(conn):
    seq = conn.skip_quick_acks()
    conn.segment(1.0, ACK, seq=seq, ack=1, data=b"x" * 300, stamp=70_000)
    conn.segment(1.01, ACK, seq=seq + 300, ack=1, data=b"x" * 300, stamp=70_010)
    assert conn.expect(1.01, ACK).options.stamps[1] == 70_000


@pytest.mark.parametrize(
    "options",
    [
        b"\x08",
        b"\x08\x01" + bytes(2),
        b"\x08\xff" + bytes(2),
        b"\x05\x03\x00\x00",
        b"\x02\x04\x00\x00",
        b"\x63\x00\x63\x63",
        b"\x63\x04\x00\x00" * 10,
        b"\x05\x0a" + bytes(10),
        b"\x00" * 40,
        b"\x01" * 40,
    ],
)
def test_malformed_options_never_confuse(conn, options):
    options += bytes(-len(options) % 4)
    conn.segment(0.1, ACK, seq=1, ack=1, data=b"payload", options=options)
    assert conn.connection.read(100) == b"payload"


def test_zero_window_is_told_and_reopened_by_reading(conn):
    sent = 0
    while sent < INITIAL_RECEIVE:
        size = min(1228, INITIAL_RECEIVE - sent)
        conn.segment(0.1, ACK, seq=1 + sent, ack=1, data=b"w" * size)
        sent += size
    assert conn.flush()[-1].window == 0
    conn.segment(5.0, ACK, seq=1 + sent, ack=1, data=b"!")
    conn.expect(5.0, ACK, ack=1 + sent, window=0)
    conn.segment(10.0, ACK, seq=sent, ack=1)
    conn.expect(10.0, ACK, ack=1 + sent, window=0)
    assert len(conn.connection.read(100)) == 100
    conn.quiet_until(11.0)
    assert len(conn.connection.read(1 << 20)) == INITIAL_RECEIVE - 100
    assert conn.expect(11.0, ACK, ack=1 + sent).window == INITIAL_RECEIVE >> 8


def test_the_right_edge_of_the_window_never_moves_back(conn):
    edge = 0
    dice = random.Random(3)
    seq = 1
    for step in range(300):
        data = dice.randbytes(dice.choice((1, 200, 1228)))
        conn.segment(step / 100, ACK, seq=seq, ack=1, data=data)
        seq += len(data)
        if dice.random() < 0.4:
            conn.connection.read(dice.choice((10, 3000, 100_000)))
        for segment in conn.flush():
            reach = (segment.ack - conn.irs) + (segment.window << 8)
            assert reach > edge - 256
            edge = max(edge, reach)


def test_keepalive_probes_a_silent_peer_and_gives_up(conn):
    conn.connection.set_keepalive(10.0, 2.0, 3)
    conn.expect(10.0, ACK, seq=0, ack=1, data=0)
    conn.expect(12.0, ACK, seq=0, ack=1, data=0)
    conn.segment(12.5, ACK, seq=1, ack=1)
    for at in (22.5, 24.5, 26.5):
        conn.expect(at, ACK, seq=0, data=0)
    conn.expect(28.5, RST | ACK)
    assert conn.connection.error is ConnectionProblem.TIMED_OUT


def test_keepalive_probes_of_the_peer_are_answered(conn):
    for at in (100.0, 175.0):
        conn.segment(at, ACK, seq=0, ack=1)
        conn.expect(at, ACK, seq=1, ack=1)


def test_sequence_numbers_wrap_in_both_directions():
    conn = Script(irs=0xFFFFF000)
    connection = conn.accept()
    text = random.Random(4).randbytes(40_000)
    for at in range(0, len(text), 1000):
        conn.segment(0.1, ACK, seq=1 + at, ack=1, data=text[at : at + 1000])
    assert connection.read(1 << 20) == text


def test_a_peer_without_timestamps_sack_or_scaling_is_served():
    conn = Script(stamped=False, sack=False)
    connection = conn.accept()
    conn.segment(0.1, ACK, seq=1, ack=1, data=b"plain")
    conn.expect(0.1, ACK, ack=6)
    connection.write(b"y" * 1240)
    conn.expect(0.1, ACK, seq=1, data=1240)
    assert connection.read(10) == b"plain"


def test_fin_before_its_data_waits_for_the_gap(conn):
    conn.segment(0.1, ACK | FIN, seq=4, ack=1, data=b"def")
    assert not conn.connection.at_eof
    conn.expect(0.1, ACK, ack=1)
    conn.segment(0.2, ACK, seq=1, ack=1, data=b"abc")
    conn.expect(0.2, ACK, ack=8)
    assert conn.connection.read(10) == b"abcdef"
    assert conn.connection.at_eof


def test_data_behind_a_fin_is_not_delivered(conn):
    conn.segment(0.1, ACK | FIN, seq=1, ack=1, data=b"end")
    conn.segment(0.2, ACK, seq=5, ack=1, data=b"beyond")
    assert conn.connection.read(100) == b"end"
    assert conn.connection.at_eof
    assert conn.drops["tcp.after_fin"] == 1


def test_nagle_holds_small_segments_when_asked(conn):
    conn.connection.set_nodelay(False)
    conn.connection.write(b"one")
    conn.expect(0.0, ACK, data=b"one")
    conn.connection.write(b"two")
    conn.connection.write(b"three")
    conn.quiet_until(0.05)
    conn.segment(0.05, ACK, seq=1, ack=4)
    conn.expect(0.05, ACK, data=b"twothree")


def test_a_run_shorter_than_its_header_is_counted(conn):
    good = conn.packet(ACK, 1, 1, b"data")
    for cut in (0, 1, 9, 19, 23, 30, 39, 45, 51):
        conn.stack.receive([good[:cut]], 0.0)
    assert sum(conn.drops.values()) == 9
    assert not conn.connection.unread
    padded = good + bytes(11)
    conn.stack.receive([padded], 0.0)
    assert conn.connection.read(100) == b"data"


def test_options_of_the_fast_path_survive_odd_stamps(conn):
    conn.segment(0.1, ACK, seq=1, ack=1, data=b"n" * 500, options=b"\x01" * 12)
    conn.segment(0.1, ACK, seq=501, ack=1, data=b"m" * 500, options=stamps(5000, 0) + b"\x01" * 4)
    assert conn.connection.read(2000) == b"n" * 500 + b"m" * 500


def test_a_write_that_was_cut_short_makes_writable_mean_that_somebody_is_told(conn):
    """Room for a byte is no news: who waits for room and who asks for it must hear the same."""
    connection = conn.connection
    taken = connection.write(bytes(1 << 20))
    assert taken < 1 << 20
    seq = 1
    for _ in range(200):
        for segment in conn.flush():
            seq = max(seq, conn.relative_seq(segment) + len(segment.payload))
        conn.stack.take_messages()
        was_writable = connection.writable
        conn.segment(conn.now + 0.01, ACK, seq=1, ack=seq)
        if connection.writable:
            break
        assert connection not in conn.stack.take_messages()
        assert connection.write(b"x") == 0
    assert not was_writable
    assert connection in conn.stack.take_messages()
    assert connection.unsent * 2 <= taken
