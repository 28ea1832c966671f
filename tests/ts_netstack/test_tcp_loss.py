"""Loss and what only looks like it: SACK recovery, timeouts and their undo, probes, closed windows, black holes."""

from __future__ import annotations

import itertools

import pytest
from netstack_scripts import Script, stamps

from ts_base.ip_headers import ACK, RST
from ts_netstack.tcp import ConnectionProblem
from ts_netstack.tcp_recovery import Recovery

MSS = 1228


def sending(segments: int = 10, **options: object) -> Script:
    """A connection with a 100 ms round trip and `segments` full segments in flight since 1.0."""
    conn = Script(**options)
    conn.connection = conn.stack.connect((bytes([100, 64, 0, 2]), 5000), 0.0)
    conn.expect(0.0, 2)
    conn.segment(0.1, 2 | ACK, seq=0, ack=1)
    conn.expect(0.1, ACK)
    conn.segment(0.2, ACK, seq=1, ack=1)
    conn.advance(1.0)
    conn.connection.write(b"d" * MSS * segments)
    for index in range(segments):
        conn.expect(1.0, ACK, seq=1 + index * MSS, data=MSS)
    return conn


def at(index: int) -> int:
    return 1 + index * MSS


def test_a_hole_reported_by_sack_is_repaired_at_once():
    conn = sending()
    conn.segment(1.1, ACK, seq=1, ack=1, options=conn.sack_option((at(1), at(5))))
    conn.expect(1.1, ACK, seq=1, data=MSS)
    conn.quiet_until(1.15)
    conn.segment(1.2, ACK, seq=1, ack=at(10))
    assert conn.statistics.recovery is Recovery.OPEN
    assert conn.statistics.congestion_window == int(10 * MSS * 0.7)


def test_statistics_tell_of_a_repair():
    conn = sending()
    before = conn.statistics
    assert (before.unsent, before.outstanding, before.in_flight, before.acknowledged) == (10 * MSS,) * 3 + (1,)
    conn.segment(1.1, ACK, seq=1, ack=1, options=conn.sack_option((at(1), at(5))))
    during = conn.statistics
    assert during.recovery is Recovery.RECOVERY
    assert (during.sacked, during.lost, during.resent, during.in_flight) == (4 * MSS, 0, MSS, 6 * MSS)
    conn.segment(1.2, ACK, seq=1, ack=at(10))
    after = conn.statistics
    assert after.recovery is Recovery.OPEN
    assert (after.unsent, after.outstanding, after.sacked, after.timeouts) == (0, 0, 0, 0)
    assert after.slow_start_threshold == after.congestion_window < before.congestion_window
    assert after.smallest_round_trip <= after.round_trip < after.retransmission_timeout


def test_two_holes_are_repaired_and_nothing_else():
    conn = sending()
    options = conn.sack_option((at(5), at(9)), (at(1), at(4)))
    conn.segment(1.1, ACK, seq=1, ack=1, options=options)
    conn.advance(1.12)
    conn.segment(1.12, ACK, seq=1, ack=1, options=conn.sack_option((at(5), at(10)), (at(1), at(4))))
    repaired = {conn.relative_seq(segment) for segment in conn.flush()}
    assert repaired == {at(0), at(4)}


def test_acknowledgements_stay_inside_a_window_that_shrank():
    """gVisor, full and with its own segments lost, took back its window, and ignored what stood beyond it for ever."""
    conn = sending()
    conn.segment(1.1, ACK, seq=1, ack=at(3), window=0)
    for _ in range(2):  # it sends again what it believes lost
        conn.segment(1.15, ACK, seq=1, ack=at(3), window=0, data=b"lost?")
    conn.expect(1.15, ACK, seq=at(3), ack=6)
    conn.segment(1.16, ACK, seq=6, ack=at(3), window=65535, data=b"more")
    answer = conn.flush()
    assert conn.relative_seq(answer[0]) == at(3)


def test_slight_reordering_is_waited_for():
    conn = sending()
    conn.segment(1.1, ACK, seq=1, ack=1, options=conn.sack_option((at(1), at(2))))
    conn.quiet_until(1.11)
    conn.segment(1.11, ACK, seq=1, ack=at(2))
    conn.advance(1.12)
    assert conn.statistics.recovery is Recovery.OPEN
    assert conn.statistics.congestion_window >= 10 * MSS


def test_the_tail_is_probed_before_the_timeout():
    conn = sending(3)
    conn.advance(1.3)
    assert conn.sent[0].at == pytest.approx(1.2, abs=0.01)
    assert conn.relative_seq(conn.flush()[0]) == at(2)


def test_timeouts_double_and_the_connection_gives_up():
    conn = sending(1)
    times = []
    while conn.connection.error is None:
        conn.advance(conn.stack.next_timer())
        times += [sent.at for sent in conn.sent if not sent.segment.flags & RST]
        conn.sent.clear()
    assert conn.connection.error is ConnectionProblem.TIMED_OUT
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert waits[-1] == pytest.approx(120.0)
    assert 300 < times[-1] < 2000


def test_a_timeout_that_was_only_delay_is_undone():
    conn = sending()
    window = conn.statistics.congestion_window
    echo = conn.our_stamp
    conn.advance(1.6)
    assert conn.statistics.recovery is Recovery.TIMED_OUT
    resent = conn.flush()
    assert resent
    # Two seconds later the answer to the original comes: it echoes a stamp from before the retransmission.
    options = stamps(4000, echo)
    conn.segment(3.0, ACK, seq=1, ack=at(10), options=options)
    assert conn.statistics.recovery is Recovery.OPEN
    assert conn.statistics.congestion_window >= window
    assert conn.statistics.outstanding == 0


def test_a_timeout_without_stamps_is_undone_when_unsent_data_is_acknowledged():
    conn = Script(stamped=False)
    connection = conn.connect()
    connection.write(b"d" * 5000)
    conn.flush()
    conn.advance(1.05)
    assert conn.statistics.recovery is Recovery.TIMED_OUT
    conn.flush()
    conn.segment(1.1, ACK, seq=1, ack=4 * 1240 + 1)
    assert conn.statistics.recovery is Recovery.OPEN


def test_three_duplicate_acks_repair_for_a_peer_without_sack():
    conn = sending(sack=False)
    for step in range(3):
        conn.segment(1.1 + step / 1000, ACK, seq=1, ack=1)
    sent = conn.flush()
    assert [conn.relative_seq(segment) for segment in sent if conn.relative_seq(segment) < at(10)] == [at(0)]
    conn.segment(1.2, ACK, seq=1, ack=at(4))
    assert conn.relative_seq(conn.flush()[0]) == at(4)
    conn.segment(1.3, ACK, seq=1, ack=at(10))
    assert conn.statistics.recovery is Recovery.OPEN


def test_a_closed_window_is_probed_for_ever_and_resumes():
    conn = Script()
    connection = conn.connect(window=0)
    assert connection.write(b"patience") == 8
    conn.quiet_until(0.1)
    probes = 0
    while conn.now < 3600:
        conn.advance(conn.stack.next_timer())
        for segment in conn.flush():
            assert conn.relative_seq(segment) == 0
            assert not segment.payload
            probes += 1
            conn.segment(conn.now, ACK, seq=1, ack=1, window=0)
    assert probes > 55
    assert connection.error is None
    conn.segment(conn.now, ACK, seq=1, ack=1, window=100)
    assert conn.flush()[0].payload == b"patience"


def test_a_silent_peer_behind_a_closed_window_is_given_up():
    conn = Script()
    connection = conn.connect(window=0)
    connection.write(b"patience")
    while connection.error is None:
        conn.advance(max(conn.now, conn.stack.next_timer()))
    assert connection.error is ConnectionProblem.TIMED_OUT


def test_a_stale_window_does_not_overwrite_a_newer_one():
    conn = Script()
    conn.connect(window=1000)
    conn.segment(0.1, ACK, seq=1, ack=1, data=b"abc")
    conn.segment(0.1, ACK, seq=4, ack=1, window=0)
    conn.segment(0.1, ACK, seq=1, ack=1, window=60000)
    assert conn.statistics.peer_window == 0


def test_a_small_window_is_filled_without_silliness():
    conn = Script()
    connection = conn.connect(window=8)  # 1,024 bytes with the peer's scale of 7
    conn.segment(0.0, ACK, seq=1, ack=1, window=8)
    assert conn.statistics.largest_peer_window == 1024
    connection.write(b"s" * 3000)
    assert conn.flush()[0].payload == b"s" * 1024


def test_full_segments_that_vanish_are_cut_smaller():
    conn = sending(6)
    sizes = []
    while conn.connection.unsent:
        conn.advance(max(conn.now, conn.stack.next_timer()))
        for segment in conn.flush():
            sizes.append(len(segment.payload))
            end = conn.relative_seq(segment) + len(segment.payload)
            if len(segment.payload) <= 1024:
                conn.segment(conn.now + 0.1, ACK, seq=1, ack=end)
    assert 1024 in sizes
    assert conn.now < 30


def test_sack_that_is_taken_back_does_not_stall():
    conn = sending()
    conn.segment(1.1, ACK, seq=1, ack=1, options=conn.sack_option((at(1), at(10))))
    conn.flush()
    conn.segment(1.2, ACK, seq=1, ack=at(1))
    for _ in range(30):
        conn.advance(conn.now + 0.5)
        for segment in conn.flush():
            if conn.relative_seq(segment) == conn.statistics.acknowledged:
                conn.segment(conn.now, ACK, seq=1, ack=conn.relative_seq(segment) + len(segment.payload))
    assert conn.connection.unsent == 0


def test_after_a_timeout_the_window_grows_though_what_was_lost_had_not_filled_it():
    """Repair is slow start too: else all that an outage swallowed comes again one segment at a time."""
    conn = sending(4)
    conn.advance(1.7)
    conn.flush()
    assert conn.statistics.congestion_window == MSS
    conn.segment(1.8, ACK, seq=1, ack=at(1))
    assert conn.statistics.congestion_window == 2 * MSS
    assert [conn.relative_seq(segment) for segment in conn.flush()] == [at(1), at(2)]
