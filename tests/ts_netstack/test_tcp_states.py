"""The states of a connection: figure 5 of RFC 9293 as a table, every step of it walked, and nobody else who steps."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from netstack_scripts import PEER, Script

import ts_netstack
from ts_base.ip_headers import ACK, FIN, RST, SYN
from ts_netstack.tcp_states import CLOSED, ESTABLISHED, LAST_ACK, STEPS, TIME_WAIT, State

# What leads from where to where in the figure, LISTEN left out. "any" is its note 3.
FIGURE_5 = """
CLOSED        SYN-SENT      active OPEN
SYN-SENT      SYN-RECEIVED  rcv SYN
SYN-SENT      ESTABLISHED   rcv SYN,ACK
SYN-RECEIVED  ESTABLISHED   rcv ACK of SYN
SYN-RECEIVED  FIN-WAIT-1    CLOSE
ESTABLISHED   FIN-WAIT-1    CLOSE
ESTABLISHED   CLOSE-WAIT    rcv FIN
FIN-WAIT-1    FIN-WAIT-2    rcv ACK of FIN
FIN-WAIT-1    CLOSING       rcv FIN
FIN-WAIT-2    TIME-WAIT     rcv FIN
CLOSE-WAIT    LAST-ACK      CLOSE
CLOSING       TIME-WAIT     rcv ACK of FIN
LAST-ACK      CLOSED        rcv ACK of FIN
TIME-WAIT     CLOSED        timeout
"""
OURS = {("CLOSED", "ESTABLISHED")}  # a listener made the connection


def test_the_table_is_figure_5():
    figure = {(line.split()[0], line.split()[1]) for line in FIGURE_5.strip().splitlines()}
    any_to_closed = {(str(state), "CLOSED") for state in State if state is not CLOSED}
    table = {(str(before), str(after)) for before, steps in STEPS.items() for after in steps}
    assert table == figure | any_to_closed | OURS


def opening(conn: Script) -> None:
    conn.connection = conn.stack.connect((PEER, 5000), 0.0)
    conn.expect(0.0, SYN, seq=0)


def opened_from_both_ends(conn: Script) -> None:
    opening(conn)
    conn.segment(0.1, SYN, seq=0)
    conn.expect(0.1, SYN | ACK, seq=0, ack=1)


def connected(conn: Script) -> None:
    conn.connect()


def accepted(conn: Script) -> None:
    conn.accept()


def closing(conn: Script) -> None:
    connected(conn)
    conn.connection.send_eof(conn.now)
    conn.expect(0.0, FIN | ACK)


def closed_by_peer(conn: Script) -> None:
    connected(conn)
    conn.segment(0.1, FIN, seq=1, ack=1)
    conn.expect(0.1, ACK, ack=2)


def closed_here(conn: Script) -> None:
    closing(conn)
    conn.segment(0.1, ACK, seq=1, ack=2)


def closed_at_once(conn: Script) -> None:
    closing(conn)
    conn.segment(0.1, FIN, seq=1, ack=1)
    conn.expect(0.1, ACK, ack=2)


def closed_by_both(conn: Script) -> None:
    closed_by_peer(conn)
    conn.connection.send_eof(conn.now)
    conn.expect(0.1, FIN | ACK)


WALKS = [
    (opening, "SYN-SENT", (SYN, 0, None), "SYN-RECEIVED"),
    (opening, "SYN-SENT", (SYN, 0, 1), "ESTABLISHED"),
    (opening, "SYN-SENT", (RST, 0, 1), "CLOSED"),
    (opened_from_both_ends, "SYN-RECEIVED", (SYN, 0, 1), "ESTABLISHED"),
    (opened_from_both_ends, "SYN-RECEIVED", (RST, 1, None), "CLOSED"),
    (connected, "ESTABLISHED", (FIN, 1, 1), "CLOSE-WAIT"),
    (connected, "ESTABLISHED", "close", "FIN-WAIT-1"),
    (connected, "ESTABLISHED", (RST, 1, None), "CLOSED"),
    (accepted, "ESTABLISHED", (FIN, 1, 1), "CLOSE-WAIT"),
    (closing, "FIN-WAIT-1", (ACK, 1, 2), "FIN-WAIT-2"),
    (closing, "FIN-WAIT-1", (FIN, 1, 1), "CLOSING"),
    (closing, "FIN-WAIT-1", (FIN, 1, 2), "TIME-WAIT"),
    (closing, "FIN-WAIT-1", (RST, 1, None), "CLOSED"),
    (closed_here, "FIN-WAIT-2", (FIN, 1, 2), "TIME-WAIT"),
    (closed_here, "FIN-WAIT-2", (RST, 1, None), "CLOSED"),
    (closed_by_peer, "CLOSE-WAIT", "close", "LAST-ACK"),
    (closed_by_peer, "CLOSE-WAIT", (RST, 2, None), "CLOSED"),
    (closed_at_once, "CLOSING", (ACK, 2, 2), "TIME-WAIT"),
    (closed_at_once, "CLOSING", (RST, 2, None), "CLOSED"),
    (closed_by_both, "LAST-ACK", (ACK, 2, 2), "CLOSED"),
    (closed_by_both, "LAST-ACK", (RST, 2, None), "CLOSED"),
]


@pytest.mark.parametrize(("walk", "before", "event", "after"), WALKS)
def test_an_event_leads_where_the_figure_says(walk, before, event, after):
    conn = Script()
    walk(conn)
    assert conn.state == before
    if event == "close":
        conn.connection.send_eof(conn.now)
    else:
        flags, seq, ack = event
        conn.segment(conn.now + 0.1, flags, seq=seq, ack=ack)
    assert conn.state == after


def test_a_close_while_opening_from_both_ends_waits_for_the_handshake():
    conn = Script()
    opened_from_both_ends(conn)
    conn.connection.send_eof(0.1)
    assert conn.state == "SYN-RECEIVED"
    conn.segment(0.2, ACK, seq=1, ack=1)
    assert conn.state == "FIN-WAIT-1"
    conn.expect(0.2, FIN | ACK, seq=1)


@pytest.mark.parametrize("walk", [opening, opened_from_both_ends, connected, closing, closed_by_peer, closed_here])
def test_an_abort_closes_from_anywhere(walk):
    conn = Script()
    walk(conn)
    conn.connection.abort(conn.now)
    assert conn.state == "CLOSED"


def test_the_names_are_the_rfcs():
    assert [str(state) for state in (CLOSED, ESTABLISHED, LAST_ACK, TIME_WAIT)] == [
        *("CLOSED", "ESTABLISHED", "LAST-ACK", "TIME-WAIT")
    ]


def written_by(tree: ast.Module) -> list[tuple[str, ast.Attribute]]:
    """Every attribute that is assigned to, with the function that does."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [
        (function.name, node)
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    ]


def test_a_connection_writes_its_own_fields_only_and_its_state_in_one_place():
    tree = ast.parse((Path(ts_netstack.__file__).parent / "tcp.py").read_text())
    written = written_by(tree)
    assert {ast.unparse(target.value) for _, target in written} == {"self"}, "a half owns its numbers: ask it by a verb"
    assert [name for name, target in written if target.attr == "state"] == ["__init__", "_enter"]
