"""Through whom: what is opened via a peer leaves by it and hears nobody else."""

from __future__ import annotations

import random

import pytest
from netstack_scripts import PEER, US

from ts_base.ip_headers import ACK, FIN, SYN, ip_packet
from ts_base.who import Hop, Origin
from ts_netstack import icmp
from ts_netstack.arrivals import USUAL
from ts_netstack.fragments import cut
from ts_netstack.sockets import Sockets
from ts_netstack.stack import Stack
from ts_netstack.tcp import SYN_SENT, TIME_WAIT, ConnectionProblem, TcpConnection
from ts_netstack.wire import Address, Segment, parse_packet_untrusted, parse_segment_untrusted, tcp_packet, udp_payload

WEB = bytes([93, 184, 216, 34])
DEFAULT, OTHER = 3, 4  # two exits; what nobody chose goes to the first
BY_DEFAULT: Origin = (DEFAULT, True)
BY_OTHER: Origin = (OTHER, False)


@pytest.fixture
def stack() -> Stack:
    made = Stack(entropy=random.Random(7).randbytes)
    made.set_addresses([US])
    return made


def segments(stack: Stack, now: float = 0.0) -> dict[Hop, list[Segment]]:
    return {
        hop: [parse_segment_untrusted(parse_packet_untrusted(packet).payload) for packet in packets]
        for hop, packets in stack.transmit(now)
    }


def answer(connection: TcpConnection, syn: Segment) -> bytes:
    return tcp_packet(connection.remote, connection.local, 900, syn.seq + 1, SYN | ACK, 60000)


def datagram(source: Address, target: Address, data: bytes) -> bytes:
    return ip_packet(source[0], target[0], 17, udp_payload(source, target, data))


def test_two_connections_to_one_remote_go_two_ways(stack: Stack) -> None:
    usual, other = stack.connect((WEB, 443), 0.0), stack.connect((WEB, 443), 0.0, via=OTHER)
    assert (usual.via, usual.hop, other.via, other.hop) == (0, (WEB, 0), OTHER, (WEB, OTHER))
    assert usual.local != other.local
    sent = segments(stack)
    assert sorted(sent) == [(WEB, 0), (WEB, OTHER)]
    syns = {hop: syn for hop, [syn] in sent.items()}
    stack.receive([(BY_DEFAULT, [answer(usual, syns[usual.hop])]), (BY_OTHER, [answer(other, syns[other.hop])])], 0.1)
    assert usual.is_established
    assert other.is_established
    other.write(b"this way")
    usual.write(b"that way")
    sent = segments(stack, 0.1)
    assert b"this way" in [one.payload for one in sent[(WEB, OTHER)]]
    assert b"that way" in [one.payload for one in sent[(WEB, 0)]]


@pytest.mark.parametrize(
    ("via", "origin"), [(0, BY_OTHER), (OTHER, BY_DEFAULT), (OTHER, (5, False)), (OTHER, (5, True))]
)
def test_a_segment_by_another_peer_is_dropped_without_an_answer(stack: Stack, via: int, origin: Origin) -> None:
    connection = stack.connect((WEB, 443), 0.0, via=via)
    [[syn]] = segments(stack).values()
    stack.receive([(origin, [answer(connection, syn)])], 0.1)
    assert connection.state == SYN_SENT
    assert stack.drops["tcp.wrong_peer"] == 1
    assert not stack.transmit(0.1)


def test_options_in_the_header_do_not_lead_around_the_rule(stack: Stack) -> None:
    connection = stack.connect((WEB, 443), 0.0)
    [[syn]] = segments(stack).values()
    plain = answer(connection, syn)
    long = b"\x46\0" + (len(plain) + 4).to_bytes(2, "big") + plain[4:20] + b"\1\1\1\1" + plain[20:]
    stack.receive([(BY_OTHER, [long])], 0.1)
    assert connection.state == SYN_SENT
    assert stack.drops["tcp.wrong_peer"] == 1
    stack.receive([(BY_DEFAULT, [long])], 0.1)
    assert connection.is_established


def test_the_peer_it_was_opened_through_may_also_be_the_usual_one(stack: Stack) -> None:
    connection = stack.connect((WEB, 443), 0.0, via=DEFAULT)
    [[syn]] = segments(stack).values()
    stack.receive([(BY_DEFAULT, [answer(connection, syn)])], 0.1)
    assert connection.is_established


def test_strangers_open_nothing_by_an_unusual_peer(stack: Stack) -> None:
    listener = stack.listen(80)
    stack.bind_udp(53)
    knocks = [
        (tcp_packet((WEB, 5000), (US, 80), 1, 0, SYN, 100), "tcp.wrong_peer"),
        (tcp_packet((WEB, 5000), (US, 81), 1, 0, SYN, 100), "tcp.wrong_peer"),
        (datagram((WEB, 5000), (US, 53), b"?"), "udp.wrong_peer"),
        (datagram((WEB, 5000), (US, 54), b"?"), "udp.wrong_peer"),
        (icmp.echo_request(WEB, US, 1, b"?"), "icmp.wrong_peer"),
        (ip_packet(WEB, US, 200, b"?"), "ip.wrong_peer"),
    ]
    for packet, reason in knocks:
        before = stack.drops[reason]
        stack.receive([(BY_OTHER, [packet])], 0.0)
        assert stack.drops[reason] == before + 1
    assert not stack.transmit(0.0)
    assert listener.accept() is None


def test_a_udp_port_via_a_peer_speaks_and_hears_there(stack: Stack) -> None:
    port = stack.bind_udp(via=OTHER)
    port.send(b"who", (WEB, 53), 0.0)
    [(hop, [_])] = stack.transmit(0.0)
    assert hop == (WEB, OTHER)
    reply = datagram((WEB, 53), (US, port.port), b"me")
    stack.receive([(BY_DEFAULT, [reply])], 0.1)
    assert port.receive() is None
    assert stack.drops["udp.wrong_peer"] == 1
    stack.receive([(BY_OTHER, [reply])], 0.1)
    assert port.receive() == (b"me", (WEB, 53))


def test_a_ping_via_a_peer_is_answered_by_it_alone(stack: Stack) -> None:
    ping = stack.ping(WEB, 0.0, via=OTHER)
    [(hop, [request])] = stack.transmit(0.0)
    assert hop == (WEB, OTHER)
    reply = icmp.reply_to_echo(parse_packet_untrusted(request))
    stack.receive([(BY_DEFAULT, [reply])], 0.1)
    assert not ping.is_done
    stack.receive([(BY_OTHER, [reply])], 0.2)
    assert ping.round_trip == pytest.approx(0.2)


def test_a_report_is_believed_by_the_way_the_packet_took(stack: Stack) -> None:
    connection = stack.connect((WEB, 443), 0.0, via=OTHER)
    [(_, [syn])] = stack.transmit(0.0)
    report = icmp.message(WEB, US, icmp.UNREACHABLE4, icmp.HOST4, 0, syn[:28])
    stack.receive([(BY_DEFAULT, [report])], 0.1)
    assert connection.error is None
    assert stack.drops["icmp.wrong_peer"] == 1
    stack.receive([(BY_OTHER, [report])], 0.1)
    assert connection.error is not None


def test_what_is_learnt_of_one_way_does_not_hold_for_another(stack: Stack) -> None:
    port, other = stack.bind_udp(), stack.bind_udp(via=OTHER)
    other.send(bytes(1000), (WEB, 53), 0.0)
    [(_, [packet])] = stack.transmit(0.0)
    too_big = icmp.message(WEB, US, icmp.UNREACHABLE4, icmp.FRAGMENTATION_NEEDED4, 600, packet[:48])
    stack.receive([(BY_OTHER, [too_big])], 0.1)
    port.send(bytes(1000), (WEB, 53), 0.2)
    other.send(bytes(1000), (WEB, 53), 0.2)
    assert {hop: len(packets) for hop, packets in stack.transmit(0.2)} == {(WEB, 0): 1, (WEB, OTHER): 2}
    stack.path_changed(WEB)
    other.send(bytes(1000), (WEB, 53), 0.3)
    assert [len(packets) for _, packets in stack.transmit(0.3)] == [1]


def test_one_peer_adds_no_fragment_to_anothers_datagram(stack: Stack) -> None:
    port = stack.bind_udp(53)
    whole = datagram((PEER, 9), (US, 53), bytes(1600))
    first, second = cut(PEER, US, 17, whole[20:], 1280, 7)
    stack.receive([(USUAL, [first]), (BY_OTHER, [second])], 0.0)
    assert port.receive() is None
    stack.receive([(USUAL, [second])], 0.0)
    assert port.receive() == (bytes(1600), (PEER, 9))


def test_a_stack_tells_how_full_it_is(stack: Stack) -> None:
    sockets: Sockets = stack
    sockets.listen(80)
    sockets.bind_udp(53)
    sockets.ping(WEB, 0.0)
    sockets.connect((WEB, 443), 0.0)
    stack.receive(
        [(USUAL, [tcp_packet((PEER, 9), (US, 80), 1, 0, SYN, 100), cut(PEER, US, 17, bytes(2000), 600, 1)[0]])], 0
    )
    stack.receive([(BY_OTHER, [datagram((WEB, 5000), (US, 53), b"?")])], 0.0)
    told = stack.statistics()
    assert (told.tcp.connections, told.tcp.half_open, told.tcp.listeners, told.tcp.waiting) == (1, 1, 1, 0)
    assert (told.udp.ports, told.icmp.pings, told.fragments.assemblies, told.forwarder.held) == (1, 1, 1, 0)
    assert told.drops == {"udp.wrong_peer": 1}


def test_a_stack_that_talks_to_itself_lets_others_have_their_turn(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ts_netstack.stack.LOOP_ROUNDS", 1)
    stack.listen(80)
    client = stack.connect((US, 80), 1.0)
    rounds = 0
    while not client.is_established:
        stack.transmit(1.0)
        assert stack.next_timer() == 1.0
        stack.handle_timer(1.0)
        rounds += 1
    assert rounds == 2


def test_nobody_leads_to_ourselves(stack: Stack) -> None:
    listener = stack.listen(80)
    connection = stack.connect((US, 80), 0.0, via=OTHER)
    assert not stack.transmit(0.0)
    assert connection.is_established
    assert listener.accept() is not None


def closed_by_us(stack: Stack) -> tuple[TcpConnection, bytes]:
    """A connection through an exit in TIME-WAIT, and the other side's FIN."""
    connection = stack.connect((WEB, 443), 0.0, via=OTHER)
    [[syn]] = segments(stack).values()
    stack.receive([(BY_OTHER, [answer(connection, syn)])], 0.1)
    connection.close(0.1)
    stack.transmit(0.1)
    fin = tcp_packet(connection.remote, connection.local, 901, syn.seq + 2, FIN | ACK, 60000)
    stack.receive([(BY_OTHER, [fin])], 0.2)
    assert segments(stack, 0.2)[(WEB, OTHER)]
    assert connection.state == TIME_WAIT
    return connection, fin


def test_a_connection_that_ended_here_still_answers_the_exit_it_went_through(stack: Stack) -> None:
    _, fin = closed_by_us(stack)
    stack.receive([(BY_DEFAULT, [fin])], 1.0)
    assert stack.drops["tcp.wrong_peer"] == 1
    assert not stack.transmit(1.0)
    stack.receive([(BY_OTHER, [fin])], 1.0)
    [[again]] = [said for hop, said in segments(stack, 1.0).items() if hop == (WEB, OTHER)]
    assert (again.flags, again.ack) == (ACK, 902)
    assert stack.exits_in_use == {OTHER: 1}
    stack.handle_timer(61.0)
    assert stack.exits_in_use == {}


def test_an_exit_opens_nothing_where_a_connection_through_it_has_ended(stack: Stack) -> None:
    connection, _ = closed_by_us(stack)
    listener = stack.listen(connection.local[1])
    later = tcp_packet(connection.remote, connection.local, 90_000, 0, SYN, 60000)
    stack.receive([(BY_OTHER, [later])], 1.0)
    assert all(not segment.flags & SYN for said in segments(stack, 1.0).values() for segment in said)
    assert not stack.statistics().tcp.half_open
    assert listener.accept() is None


def test_an_exit_is_in_use_while_something_of_ours_goes_through_it(stack: Stack) -> None:
    connection, port = stack.connect((WEB, 443), 0.0, via=OTHER), stack.bind_udp(via=OTHER)
    stack.ping(WEB, 0.0, via=DEFAULT)
    stack.connect((WEB, 443), 0.0)
    stack.connect((US, 443), 0.0, via=OTHER)  # no exit leads to ourselves
    assert stack.exits_in_use == {OTHER: 2, DEFAULT: 1}
    stack.handle_timer(30.0)  # the ping's
    connection.abort(30.0)
    stack.transmit(30.0)
    assert stack.exits_in_use == {OTHER: 1}
    port.close()
    stack.transmit(30.0)
    assert stack.exits_in_use == {}


def test_what_no_peer_takes_any_more_ends_where_an_exit_was_named_or_nothing_is_open_yet(stack: Stack) -> None:
    opening, named = stack.connect((WEB, 443), 0.0), stack.connect((WEB, 443), 0.0, via=OTHER)
    established = stack.connect((WEB, 443), 0.0)
    port, elsewhere = stack.bind_udp(via=OTHER), stack.bind_udp(via=OTHER)
    port.connect((WEB, 53))
    elsewhere.connect((US, 53))
    syn = next(one for one in segments(stack)[(WEB, 0)] if one.source_port == established.local[1])
    stack.receive([(BY_DEFAULT, [answer(established, syn)])], 0.1)
    stack.fail_hop((WEB, 0))
    assert opening.error is ConnectionProblem.NO_ROUTE
    assert established.error is named.error is None
    stack.fail_hop((WEB, OTHER))
    assert named.error is ConnectionProblem.NO_ROUTE
    assert (port.is_lost, elsewhere.is_lost) == (True, False)
    stack.follow_routes(lambda destination, via: via, {OTHER})
    assert not elsewhere.is_lost
    stack.follow_routes(lambda destination, via: None, set())
    assert elsewhere.is_lost
    assert established.error is None
