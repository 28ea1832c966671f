"""Ending a connection: every order of FINs, RST with data unread, TIME-WAIT and its reuse, orphans."""

from __future__ import annotations

import pytest
from netstack_scripts import Script

from ts_base.ip_headers import ACK, FIN, RST, SYN
from ts_netstack.tcp import ConnectionProblem


@pytest.fixture
def conn():
    script = Script()
    script.accept()
    return script


def test_active_close_goes_through_fin_wait(conn):
    conn.connection.send_eof(0.1)
    conn.now = 0.1
    conn.expect(0.1, FIN | ACK, seq=1, ack=1)
    assert conn.state == "FIN-WAIT-1"
    conn.segment(0.2, ACK, seq=1, ack=2)
    assert conn.state == "FIN-WAIT-2"
    conn.segment(0.3, ACK, seq=1, ack=2, data=b"more")
    conn.expect(0.3, ACK, ack=5)
    conn.segment(0.4, FIN | ACK, seq=5, ack=2)
    conn.expect(0.4, ACK, seq=2, ack=6)
    assert conn.state == "TIME-WAIT"
    assert conn.connection.read(10) == b"more"
    assert conn.connection.at_eof
    assert conn.stack.connections == 0
    conn.quiet_until(60.3)
    conn.quiet_until(60.5)
    assert not conn.stack.statistics().tcp.time_wait
    assert conn.is_asleep()


def test_passive_close_goes_through_close_wait(conn):
    conn.segment(0.1, FIN | ACK, seq=1, ack=1)
    conn.expect(0.1, ACK, ack=2)
    assert conn.state == "CLOSE-WAIT"
    conn.connection.write(b"bye")
    conn.connection.send_eof(0.1)
    conn.expect(0.1, FIN | ACK, seq=1, data=b"bye")
    assert conn.state == "LAST-ACK"
    conn.segment(0.2, ACK, seq=2, ack=5)
    assert conn.state == "CLOSED"
    assert conn.connection.error is None
    assert not conn.stack.statistics().tcp.time_wait


def test_simultaneous_close_goes_through_closing(conn):
    conn.connection.send_eof(0.1)
    conn.now = 0.1
    conn.expect(0.1, FIN | ACK, seq=1, ack=1)
    conn.segment(0.1, FIN | ACK, seq=1, ack=1)
    conn.expect(0.1, ACK, seq=2, ack=2)
    assert conn.state == "CLOSING"
    conn.segment(0.2, ACK, seq=2, ack=2)
    assert conn.state == "TIME-WAIT"


def test_reset_after_the_fin_leaves_what_came_whole(conn):
    conn.segment(0.1, FIN | ACK, seq=1, ack=1, data=b"all")
    conn.flush()
    conn.segment(0.2, RST, seq=5)
    assert conn.state == "CLOSED"
    assert conn.connection.error is ConnectionProblem.RESET
    assert conn.connection.read(10) == b"all"
    assert conn.connection.at_eof


def test_reset_before_the_fin_takes_what_came_with_it(conn):
    conn.segment(0.1, ACK, seq=1, ack=1, data=b"part")
    conn.flush()
    conn.segment(0.2, RST, seq=5)
    assert conn.state == "CLOSED"
    assert conn.connection.read(10) == b""
    assert not conn.connection.at_eof


def test_fin_is_retransmitted(conn):
    conn.connection.send_eof(0.0)
    for at in (0.0, 1.0, 3.0, 7.0):
        conn.expect(at, FIN | ACK, seq=1)


def test_close_with_unread_data_resets(conn):
    conn.segment(0.1, ACK, seq=1, ack=1, data=b"unread")
    conn.flush()
    conn.connection.close(0.1)
    conn.expect(0.1, RST | ACK, seq=1, ack=7)
    assert conn.state == "CLOSED"


def test_data_after_close_resets(conn):
    conn.connection.close(0.0)
    conn.expect(0.0, FIN | ACK)
    conn.segment(0.1, ACK, seq=1, ack=2, data=b"too late")
    conn.expect(0.1, RST | ACK, seq=2)
    assert conn.state == "CLOSED"
    assert conn.drops["tcp.reader_gone"] == 1


def test_half_closed_connection_still_reads(conn):
    conn.connection.send_eof(0.0)
    conn.expect(0.0, FIN | ACK)
    conn.segment(0.1, ACK, seq=1, ack=2, data=b"welcome")
    conn.expect(0.1, ACK, ack=8)
    assert conn.connection.read(100) == b"welcome"


def test_orphan_in_fin_wait_2_is_let_go(conn):
    conn.connection.close(0.0)
    conn.expect(0.0, FIN | ACK)
    conn.segment(0.1, ACK, seq=1, ack=2)
    conn.quiet_until(60.0)
    assert conn.stack.connections == 1
    conn.quiet_until(60.2)
    assert conn.stack.connections == 0


def test_abort_resets_and_forgets(conn):
    conn.connection.write(b"never mind")
    conn.connection.abort(0.0)
    conn.expect(0.0, RST | ACK, seq=1)
    assert conn.connection.error is ConnectionProblem.ABORTED
    assert conn.stack.connections == 0
    assert conn.is_asleep()


def test_write_after_eof_is_our_misuse(conn):
    conn.connection.send_eof(0.0)
    with pytest.raises(ValueError, match="after the end"):
        conn.connection.write(b"x")


def test_close_before_the_handshake_says_nothing_more():
    conn = Script()
    connection = conn.stack.connect((bytes([100, 64, 0, 2]), 5000), 0.0)
    conn.expect(0.0, SYN)
    connection.close(0.0)
    conn.quiet_until(10.0)
    assert conn.stack.connections == 0


def time_waiting() -> Script:
    conn = Script()
    conn.accept()
    conn.segment(10.0, ACK, seq=1, ack=1)
    conn.connection.send_eof(10.0)
    conn.expect(10.0, FIN | ACK)
    conn.segment(10.1, FIN | ACK, seq=1, ack=2)
    conn.expect(10.1, ACK, seq=2, ack=2)
    return conn


def test_time_wait_acknowledges_a_repeated_fin():
    conn = time_waiting()
    conn.segment(11.0, FIN | ACK, seq=1, ack=2)
    conn.expect(11.0, ACK, seq=2, ack=2)


def test_time_wait_ignores_resets():
    conn = time_waiting()
    conn.segment(11.0, RST, seq=2)
    conn.quiet_until(12.0)
    assert conn.stack.statistics().tcp.time_wait == 1


def test_time_wait_gives_way_to_a_newer_syn():
    conn = time_waiting()
    conn.segment(12.0, SYN, seq=900)
    conn.expect(12.0, SYN | ACK, ack=901)
    assert not conn.stack.statistics().tcp.time_wait


def test_time_wait_keeps_out_an_old_syn():
    conn = time_waiting()
    conn.segment(12.0, SYN, seq=-5000, stamp=500)
    conn.expect(12.0, ACK, seq=2, ack=2)
    assert conn.stack.statistics().tcp.time_wait == 1


def test_time_wait_asks_no_peer_whether_it_is_there():
    conn = time_waiting()
    conn.connection.set_keepalive(1.0, 1.0, 2)
    conn.quiet_until(50.0)
    assert conn.connection.error is None


def test_losing_an_address_fails_its_connections(conn):
    conn.stack.set_addresses([bytes([100, 64, 0, 9])])
    assert conn.connection.error is ConnectionProblem.UNREACHABLE
