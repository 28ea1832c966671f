"""Packets for addresses that are not ours: held, told, admitted or refused; and what no peer takes from the others."""

from __future__ import annotations

import math
import random

import pytest
from netstack_scripts import PEER, US, Script

from ts_base.ip_headers import ACK, FIN, RST, SYN, ip_packet
from ts_netstack import forwarder, icmp
from ts_netstack.forwarder import HELD_SECONDS, Echo, ForwardedFlow, ForwarderLimits, Knock
from ts_netstack.stack import Stack
from ts_netstack.tcp import ConnectionProblem, TcpConnection
from ts_netstack.wire import parse_packet_untrusted, tcp_packet, udp_payload

INSIDE, LOOPBACK = bytes([10, 0, 0, 5]), bytes([127, 0, 0, 1])
LIMITS = ForwarderLimits(held=512, held_each=64, admitted_each=1024, flows=1024, flows_each=256)
FLOW_IDLE, DNS_IDLE = LIMITS.flow_idle, LIMITS.dns_idle
PEER_ID = 9
ORIGIN = (PEER_ID, True)


class Tens:
    """10.0.0.0/8 and, as a careless exit node would, everything that begins with 127 or 224."""

    def covers(self, address: bytes) -> bool:
        return address[0] in (10, 127, 224)


class Forwarding(Script):
    """A script whose peer talks to `host` behind us."""

    host = INSIDE

    def __init__(self, **rest: object) -> None:
        super().__init__(**rest)  # type: ignore[arg-type]
        self.stack.forwarder.set_routes(Tens())
        self.stack.forwarder.set_limits(LIMITS)

    def says(self, at: float, flags: int, seq: int = 0, ack: int | None = None, data: bytes = b"") -> None:
        self.advance(at)
        number = 0 if ack is None else (self.iss or 0) + ack
        flags |= ACK if ack is not None else 0
        ends = (PEER, self.peer_port), (self.host, self.port)
        self.stack.receive([(ORIGIN, [tcp_packet(*ends, self.irs + seq, number, flags, 65535, b"", data)])], at)
        self._flush()

    def knock(self, at: float = 0.0) -> Knock:
        """The peer's SYN arrives, and this is told of it."""
        self.says(at, SYN)
        [message] = self.stack.forwarder.take_news()
        assert isinstance(message, Knock)
        return message

    def carried(self, at: float = 0.0) -> TcpConnection:
        """A connection that was admitted and is established."""
        connection = self.stack.forwarder.admit(self.knock(at), at)
        assert connection is not None
        self.expect(at, SYN | ACK, seq=0, ack=1)
        self.says(at, ACK, seq=1, ack=1)
        assert connection.is_established
        return connection

    def datagram(self, at: float, data: bytes, host: bytes = INSIDE, port: int = 7, peer: int = PEER_ID) -> None:
        self.advance(at)
        payload = udp_payload((PEER, self.peer_port), (host, port), data)
        self.stack.receive([((peer, True), [ip_packet(PEER, host, 17, payload)])], at)

    def icmp_sent(self, at: float) -> list[tuple[int, int]]:
        """Kind and code of the errors that leave now."""
        packets = [parse_packet_untrusted(raw) for _, run in self.stack.transmit(at) for raw in run]
        return [(packet.payload[0], packet.payload[1]) for packet in packets if packet.protocol == 1]


@pytest.fixture
def conn() -> Forwarding:
    return Forwarding()


def syn_from(host: bytes, port: int, target: bytes = INSIDE) -> bytes:
    return tcp_packet((host, port), (target, 80), 7, 0, SYN, 65535)


# -- TCP ----------------------------------------------------------------------------------------------------------


def test_a_syn_is_told_once_and_answered_by_nobody(conn: Forwarding) -> None:
    knock = conn.knock()
    assert (knock.local, knock.remote, knock.peer) == ((INSIDE, 80), (PEER, 5000), PEER_ID)
    conn.says(1.0, SYN)
    conn.says(3.0, SYN)
    assert not conn.stack.forwarder.take_news()
    conn.quiet_until(5.0)
    assert conn.stack.statistics().forwarder.held == 1


def test_an_admitted_syn_is_answered_from_the_foreign_address(conn: Forwarding) -> None:
    knock = conn.knock()
    conn.advance(2.0)
    connection = conn.stack.forwarder.admit(knock, 2.0)
    assert connection is not None
    assert (connection.local, connection.remote) == ((INSIDE, 80), (PEER, 5000))
    conn.expect(2.0, SYN | ACK, seq=0, ack=1)
    assert not connection.is_established
    conn.says(2.1, ACK, seq=1, ack=1, data=b"hello")
    assert connection.read(100) == b"hello"
    conn.expect(2.1, ACK, seq=1, ack=6)
    connection.write(b"from inside")
    conn.expect(2.1, ACK, seq=1, data=b"from inside")


def test_the_syn_ack_is_sent_again_until_it_is_heard(conn: Forwarding) -> None:
    connection = conn.stack.forwarder.admit(conn.knock(), 0.0)
    assert connection is not None
    conn.expect(0.0, SYN | ACK, seq=0, ack=1)
    conn.says(0.5, SYN)
    conn.expect(1.0, SYN | ACK, seq=0, ack=1)
    conn.says(1.1, ACK, seq=1, ack=1)
    assert connection.is_established


def test_an_admitted_peer_that_is_gone_is_given_up(conn: Forwarding) -> None:
    connection = conn.stack.forwarder.admit(conn.knock(), 0.0)
    assert connection is not None
    conn.advance(300.0)
    assert connection.error is ConnectionProblem.TIMED_OUT
    assert conn.stack.statistics().forwarder.admitted == 0


def test_a_refused_syn_is_reset_or_told_that_the_host_is_unreachable(conn: Forwarding) -> None:
    knock = conn.knock()
    conn.advance(0.5)
    conn.stack.forwarder.refuse(knock, 0.5, is_reachable=True)
    conn.iss = 0
    conn.expect(0.5, RST | ACK, seq=0, ack=1)
    knock = conn.knock(1.0)
    conn.advance(1.5)
    conn.stack.forwarder.refuse(knock, 1.5, is_reachable=False)
    [(_, [told, reset])] = conn.stack.transmit(1.5)
    assert parse_packet_untrusted(told).payload[:2] == bytes([icmp.UNREACHABLE4, icmp.HOST4]), "the reason comes first"
    assert parse_packet_untrusted(reset).payload[13] == RST | ACK
    conn.stack.forwarder.refuse(knock, 1.6, is_reachable=True)
    conn.quiet_until(2.0)


def test_a_caller_that_gives_up_is_told_to_whoever_dials(conn: Forwarding) -> None:
    knock = conn.knock()
    conn.says(1.0, SYN)
    conn.says(3.0, RST, seq=1)
    assert conn.stack.forwarder.take_gone() == [knock.key]
    assert conn.stack.forwarder.admit(knock, 3.0) is None
    conn.says(5.0, SYN)
    conn.says(5.1, RST, seq=1)
    assert conn.stack.forwarder.take_news() == []
    assert conn.stack.forwarder.take_gone() == [], "nobody had heard of it yet"


def test_a_caller_is_waited_for_as_long_as_it_says_its_syn(conn: Forwarding) -> None:
    knock = conn.knock()
    for at in (1.0, 3.0, 7.0, 15.0, 31.0, 60.0):
        conn.says(at, SYN)
    conn.advance(60.0 + HELD_SECONDS - 0.1)
    assert conn.stack.forwarder.take_gone() == []
    conn.advance(60.0 + HELD_SECONDS)
    assert conn.stack.forwarder.take_gone() == [knock.key]
    assert conn.is_asleep()


def test_a_syn_and_a_datagram_of_one_pair_of_ports_are_both_told(conn: Forwarding) -> None:
    both = [syn_from(PEER, 5000), ip_packet(PEER, INSIDE, 17, udp_payload((PEER, 5000), (INSIDE, 80), b"?"))]
    conn.stack.receive([(ORIGIN, both)], 0.0)
    assert {type(news) for news in conn.stack.forwarder.take_news()} == {Knock, ForwardedFlow}


def test_a_held_syn_is_forgotten_in_the_end(conn: Forwarding) -> None:
    knock = conn.knock()
    assert conn.stack.next_timer() == HELD_SECONDS
    conn.advance(HELD_SECONDS)
    assert conn.drops["tcp.knock_expired"] == 1
    assert conn.stack.forwarder.admit(knock, HELD_SECONDS) is None
    assert conn.is_asleep()
    assert conn.knock(40.0) == knock


def test_a_peer_that_takes_its_syn_back_is_not_admitted(conn: Forwarding) -> None:
    knock = conn.knock()
    conn.says(0.1, RST, seq=77)
    assert conn.drops["tcp.handshake_wild"] == 1
    conn.says(0.2, RST, seq=1)
    assert conn.stack.forwarder.admit(knock, 0.3) is None
    conn.says(0.4, SYN)
    conn.says(0.4, RST, seq=1)
    assert not conn.stack.forwarder.take_news()


def test_only_the_newest_syn_of_the_same_ports_completes(conn: Forwarding) -> None:
    knock = conn.knock()
    conn.irs += 1000
    conn.says(0.1, SYN)
    assert not conn.stack.forwarder.take_news()
    conn.advance(0.2)
    assert conn.stack.forwarder.admit(knock, 0.2) is not None
    conn.expect(0.2, SYN | ACK, ack=1)


def test_a_segment_of_no_connection_is_reset_for_the_host(conn: Forwarding) -> None:
    conn.iss = 0
    conn.says(0.0, ACK, seq=5, ack=99)
    conn.expect(0.0, RST, seq=99)
    assert conn.drops["tcp.no_connection"] == 1


@pytest.mark.parametrize("host", [LOOPBACK, bytes([224, 0, 0, 1]), bytes([192, 168, 0, 1])])
def test_what_is_not_covered_or_belongs_on_no_wire_is_not_ours(conn: Forwarding, host: bytes) -> None:
    conn.stack.receive([(ORIGIN, [syn_from(PEER, 1, host)])], 0.0)
    assert not conn.stack.forwarder.take_news()
    assert conn.drops["ip.not_our_address"] == 1


def test_an_unusual_peer_may_not_knock(conn: Forwarding) -> None:
    conn.stack.receive([((PEER_ID, False), [syn_from(PEER, 1)])], 0.0)
    assert not conn.stack.forwarder.take_news()
    assert conn.drops["tcp.wrong_peer"] == 1


def test_what_was_admitted_outlives_new_addresses_and_withdrawn_routes(conn: Forwarding) -> None:
    connection = conn.carried()
    conn.stack.set_addresses([bytes([100, 64, 0, 77])])
    conn.stack.forwarder.set_routes(None)
    conn.says(1.0, ACK, seq=1, ack=1, data=b"still")
    assert connection.error is None
    assert connection.read(10) == b"still"


def test_withdrawn_routes_forget_who_knocked(conn: Forwarding) -> None:
    knock = conn.knock()
    conn.stack.forwarder.set_routes(None)
    assert conn.stack.forwarder.admit(knock, 0.1) is None
    assert conn.is_asleep()


def test_a_forwarded_connection_ends_like_any_other(conn: Forwarding) -> None:
    connection = conn.carried()
    assert conn.stack.statistics().forwarder.admitted == 1
    conn.advance(1.0)
    connection.close(1.0)
    conn.expect(1.0, FIN | ACK, seq=1)
    conn.says(1.1, FIN | ACK, seq=1, ack=2)
    conn.expect(1.1, ACK, seq=2, ack=2)
    statistics = conn.stack.statistics()
    assert (statistics.forwarder.admitted, statistics.tcp.time_wait) == (0, 1)
    conn.stack.forwarder.take_news()
    conn.irs += 100_000
    assert isinstance(conn.knock(2.0), Knock)  # a new incarnation needs no minute of patience


def test_one_peer_holds_its_share_and_all_of_them_no_more_than_there_is(conn: Forwarding) -> None:
    flood = [syn_from(bytes([100, 65, port >> 8, port & 255]), port) for port in range(1, 200)]
    conn.stack.receive([(ORIGIN, flood)], 0.0)
    assert conn.stack.statistics().forwarder.held == LIMITS.held_each
    assert conn.drops["tcp.knocks_share_full"] == 199 - LIMITS.held_each
    for peer in range(100, 130):
        conn.stack.receive(
            [((peer, True), [syn_from(bytes([100, 66, peer, 1]), 1 + index) for index in range(64)])], 0.0
        )
    assert conn.stack.statistics().forwarder.held == LIMITS.held
    assert len(conn.stack.forwarder.take_news()) == LIMITS.held
    assert conn.drops["tcp.knocks_full"]
    assert not conn.stack.transmit(0.0)
    conn.stack.listen(80)  # and our own sockets are as they were
    conn.stack.receive([(ORIGIN, [syn_from(PEER, 9, US)])], 0.0)
    assert len(conn.stack.transmit(0.0)) == 1
    conn.advance(HELD_SECONDS)
    assert conn.stack.statistics().forwarder.held == 0
    assert conn.drops["tcp.knock_expired"] == LIMITS.held


def test_a_peer_that_never_finishes_opening_uses_up_its_own_share(conn: Forwarding) -> None:
    conn.stack.forwarder.set_limits(LIMITS._replace(admitted_each=3))
    admitted = []
    for port in range(1, 6):
        conn.stack.receive([(ORIGIN, [syn_from(PEER, port)])], 0.0)
        [knock] = conn.stack.forwarder.take_news()
        assert isinstance(knock, Knock)
        admitted.append(conn.stack.forwarder.admit(knock, 0.0))
        conn.stack.forwarder.take_news()
    assert [one is not None for one in admitted] == [True] * 3 + [False] * 2
    assert conn.drops["tcp.forwarded_share_full"] == 2


# -- UDP ----------------------------------------------------------------------------------------------------------


def flow_of(conn: Forwarding) -> ForwardedFlow:
    [message] = conn.stack.forwarder.take_news()
    assert isinstance(message, ForwardedFlow)
    return message


def test_a_datagram_for_others_begins_a_flow_that_answers_for_them(conn: Forwarding) -> None:
    conn.datagram(0.0, b"question")
    flow = flow_of(conn)
    assert (flow.local, flow.peer_address, flow.peer, flow.owner) == ((INSIDE, 7), (PEER, 5000), PEER_ID, None)
    assert flow.receive() == (b"question", (PEER, 5000))
    flow.reply(b"answer", 0.1)
    [(hop, [raw])] = conn.stack.transmit(0.1)
    packet = parse_packet_untrusted(raw)
    assert (hop, packet.source, packet.payload[:4], packet.payload[8:]) == (
        (PEER, 0),
        INSIDE,
        b"\x00\x07\x13\x88",
        b"answer",
    )
    conn.stack.take_messages()
    conn.datagram(0.2, b"more")
    assert conn.stack.take_messages() == [flow], "news of the flow, but no new flow"
    assert conn.stack.forwarder.take_news() == []


def test_a_silent_flow_ends_and_a_talking_one_does_not(conn: Forwarding) -> None:
    conn.datagram(0.0, b"question")
    flow = flow_of(conn)
    conn.advance(FLOW_IDLE - 1)
    flow.reply(b"late answer", FLOW_IDLE - 1)
    conn.advance(2 * FLOW_IDLE - 2)
    assert not flow.is_closed
    conn.stack.take_messages()
    conn.advance(2 * FLOW_IDLE - 1)
    assert flow.is_closed
    assert conn.stack.take_messages() == [flow], "its owner sees that it is closed"
    assert conn.is_asleep()
    conn.datagram(300.0, b"again")
    assert flow_of(conn) is not flow


def test_a_closed_flow_gives_its_place_back(conn: Forwarding) -> None:
    conn.datagram(0.0, b"question")
    flow_of(conn).close()
    conn.stack.transmit(0.0)
    assert conn.stack.statistics().forwarder.flows == 0
    assert conn.is_asleep()


def test_a_question_to_a_resolver_is_not_waited_for_so_long(conn: Forwarding) -> None:
    conn.datagram(0.0, b"question", port=53)
    flow = flow_of(conn)
    conn.advance(DNS_IDLE - 0.1)
    assert not flow.is_closed
    conn.advance(DNS_IDLE)
    assert flow.is_closed


def test_a_peer_with_all_its_flows_loses_the_one_that_was_silent_longest(conn: Forwarding) -> None:
    conn.stack.forwarder.set_limits(LIMITS._replace(flows_each=3))
    for at, port in enumerate((1, 2, 3, 1)):
        conn.datagram(float(at), b"?", port=port)
    news = conn.stack.forwarder.take_news()
    first, second, third = (one for one in news if isinstance(one, ForwardedFlow))
    conn.datagram(4.0, b"?", port=4)
    assert (first.is_closed, second.is_closed, third.is_closed) == (False, True, False)
    third.reply(b"!", 5.0)
    conn.datagram(5.0, b"?", port=5, peer=PEER_ID + 1)
    assert conn.stack.statistics().forwarder.flows == 4, "another peer has a share of its own"
    assert conn.drops["udp.flows_share_full"] == 1


def test_of_all_flows_the_heaviest_peer_makes_room(conn: Forwarding) -> None:
    conn.stack.forwarder.set_limits(LIMITS._replace(flows=10, flows_each=8))
    conn.datagram(0.0, b"?", bytes([10, 0, 1, 1]), 9, peer=1)
    for port in range(1, 40):
        conn.datagram(float(port), b"?", bytes([10, 0, 1, 2]), port, peer=2)
    for port in range(1, 40):
        conn.datagram(40.0 + port, b"?", bytes([10, 0, 1, 3]), port, peer=3)
    flows = conn.stack.forwarder.flows.values()
    assert len(flows) == 10
    assert [flow.peer for flow in flows].count(1) == 1, "whoever asks for little keeps it"
    assert conn.drops["udp.flows_full"]


def test_flows_come_and_go_and_nothing_stays(conn: Forwarding) -> None:
    for port in range(1, 10_001):
        conn.datagram(port / 1000, b"?", port=port)
        assert len(conn.stack.forwarder.flows) <= LIMITS.flows_each
        conn.stack.transmit(port / 1000)
    conn.advance(10.0 + FLOW_IDLE)
    conn.stack.transmit(10.0 + FLOW_IDLE)
    assert conn.stack.statistics().forwarder.flows == 0
    conn.stack.take_messages()
    assert conn.is_asleep()


def test_an_unread_flow_keeps_no_more_than_its_queue(conn: Forwarding) -> None:
    for _ in range(forwarder.FLOW_DATAGRAMS + 5):
        conn.datagram(0.0, b"?")
    assert conn.drops["udp.queue_full"] == 5


def test_a_report_about_a_forwarded_datagram_reaches_its_flow(conn: Forwarding) -> None:
    conn.datagram(0.0, b"question")
    flow = flow_of(conn)
    flow.reply(b"answer", 0.1)
    [(_, [raw])] = conn.stack.transmit(0.1)
    conn.stack.receive([(ORIGIN, [icmp.port_unreachable(raw, PEER, INSIDE)])], 0.2)
    assert flow.error == "unreachable"


# -- the rest -----------------------------------------------------------------------------------------------------


def echoes_of(conn: Forwarding) -> list[Echo]:
    return [one for one in conn.stack.forwarder.take_news() if isinstance(one, Echo)]


def test_a_ping_for_others_is_answered_when_somebody_says_so(conn: Forwarding) -> None:
    asked = icmp.echo_request(PEER, INSIDE, 77, b"payload")
    conn.stack.receive([(ORIGIN, [asked, asked])], 0.0)
    [echo] = echoes_of(conn)
    assert (echo.local, echo.peer) == (INSIDE, PEER_ID)
    assert not conn.stack.transmit(0.0)
    conn.stack.forwarder.settle_echo(echo, 0.1, is_there=True)
    [(_, [raw])] = conn.stack.transmit(0.1)
    packet = parse_packet_untrusted(raw)
    assert (packet.source, packet.destination) == (INSIDE, PEER)
    assert (packet.payload[0], packet.payload[4:8], packet.payload[8:]) == (
        icmp.ECHO_REPLY4,
        (77).to_bytes(4, "big"),
        b"payload",
    )
    assert conn.stack.statistics().forwarder.echoes == 0


def test_pings_for_others_are_few_at_once_and_few_of_each_peer(conn: Forwarding) -> None:
    for number in range(100):
        conn.stack.receive([((1 + number % 4, True), [icmp.echo_request(PEER, INSIDE, number, b"")])], 0.0)
    told = echoes_of(conn)
    assert len(told) == LIMITS.echoes == 20
    for echo in told:
        conn.stack.forwarder.settle_echo(echo, 0.0, is_there=False)
    for number in range(100, 200):
        conn.stack.receive([((1, True), [icmp.echo_request(PEER, INSIDE, number, b"")])], 10.0)
    assert len(echoes_of(conn)) == LIMITS.echoes_per_second == 10
    assert not conn.stack.transmit(10.0)


def test_a_ping_whose_route_is_gone_is_not_answered(conn: Forwarding) -> None:
    conn.stack.receive([(ORIGIN, [icmp.echo_request(PEER, INSIDE, 1, b"")])], 0.0)
    [echo] = echoes_of(conn)
    conn.stack.forwarder.set_routes(None)
    conn.stack.forwarder.settle_echo(echo, 0.1, is_there=True)
    assert not conn.stack.transmit(0.1)


def test_a_closed_udp_port_behind_us_is_told_as_such(conn: Forwarding) -> None:
    conn.datagram(0.0, b"anybody?")
    conn.stack.forwarder.report_refusal(flow_of(conn), 0.1)
    [(_, [raw])] = conn.stack.transmit(0.1)
    packet = parse_packet_untrusted(raw)
    report = icmp.read_error_untrusted(packet, *icmp.parse_untrusted(packet))
    assert report is not None
    assert (packet.source, report.local, report.remote, report.quoted[:4]) == (
        INSIDE,
        PEER,
        INSIDE,
        bytes.fromhex("13880007"),
    )


def test_we_do_not_speak_other_protocols_for_others(conn: Forwarding) -> None:
    conn.stack.receive([(ORIGIN, [ip_packet(PEER, INSIDE, 200, b"")])], 0.0)
    assert not conn.stack.transmit(0.0)
    assert conn.drops["ip.not_forwarded"] == 1


def test_a_stack_that_forwards_nothing_sleeps(conn: Forwarding) -> None:
    assert conn.stack.next_timer() == math.inf
    assert conn.stack.forwarder.take_news() == []


def test_what_is_held_passes_its_checksums_again() -> None:
    Forwarding(verify_checksums=True).carried()


@pytest.mark.parametrize("reset", [True, False])
def test_ipv6_is_held_and_refused_alike(reset: bool) -> None:
    ours, peer, host = (bytes([0xFD, 0x7A]) + bytes(13) + bytes([number]) for number in (1, 2, 3))
    stack = Stack(entropy=random.Random(7).randbytes)
    stack.set_addresses([ours])

    class Everything:
        def covers(self, address: bytes) -> bool:
            return True

    stack.forwarder.set_routes(Everything())
    syn = tcp_packet((peer, 5000), (host, 80), 7, 0, SYN, 65535)
    stack.receive([(ORIGIN, [syn])], 0.0)
    [knock] = stack.forwarder.take_news()
    assert isinstance(knock, Knock)
    stack.forwarder.refuse(knock, 0.1, is_reachable=reset)
    [(hop, sent)] = stack.transmit(0.1)
    *told, reset_packet = map(parse_packet_untrusted, sent)
    assert (hop, {packet.source for packet in (*told, reset_packet)}) == ((peer, 0), {host})
    assert reset_packet.payload[13] == RST | ACK
    expected = [] if reset else [bytes([icmp.UNREACHABLE6, icmp.ADDRESS6])]
    assert [packet.payload[:2] for packet in told] == expected
